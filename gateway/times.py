"""Times as people read them."""

from __future__ import annotations

from datetime import UTC, datetime


def local_time(at: float | None = None) -> str:
    """A moment (Unix seconds; now unless given) in the zone of this machine, to the second:
    ``2026-11-17 12:00:00+01:00``."""
    moment = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    return moment.astimezone().isoformat(" ", "seconds")
