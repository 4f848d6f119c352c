"""No history: what there is in its place with ``history.enabled: false``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gateway.history.base import Change, Past


class NoHistory:
    """See `History`; keeps nothing."""

    enabled = False

    @contextmanager
    def because(self, model: str, action: str, who: str, message: str) -> Iterator[None]:
        yield

    async def start(self, gateway: str) -> None:
        pass

    async def close(self) -> None:
        pass

    async def changes(
        self, model: str, *, limit: int = 50, until: float | None = None
    ) -> Sequence[Change]:
        return ()

    async def past(self, model: str, at: float) -> Past:
        return Past(at, ())
