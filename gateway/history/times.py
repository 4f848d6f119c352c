"""Moments as people write them."""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta
from typing import Final

from gateway.errors import InvalidRequest, printable

UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
EXAMPLES: Final = (
    "'2026-11-17', '2026-11-17T12:00', '2026-11-17T12:00+01:00', '2 hours ago', 'yesterday 14:30' "
    "or 'last tuesday'"
)

_AGO = re.compile(
    r"(\d{1,9})\s*(s|sec|seconds?|m|min|minutes?|h|hours?|d|days?|w|weeks?)\s+ago", re.IGNORECASE
)
_DAY = re.compile(
    rf"(today|yesterday|(?:last\s+)?(?:{'|'.join(DAYS)}))(?:\s+(?:at\s+)?(\S+))?", re.IGNORECASE
)


def moment(text: str, now: datetime | None = None) -> float:
    """Unix seconds of what a person wrote; a time without a zone is that of this machine, and a
    day without a time is its beginning.

    `now` has a zone. Raises `InvalidRequest`, also for what is still to come.
    """
    now = now or datetime.now().astimezone()
    words = " ".join(text.split())
    try:
        at = parsed(words, now)
    except (ValueError, OverflowError, OSError):
        at = None
    if at is None:
        raise InvalidRequest(f"'{printable(text)}' is no time; write {EXAMPLES}")
    if at > now.timestamp() + 1:
        raise InvalidRequest(f"'{printable(text)}' is still to come")
    return at


def parsed(words: str, now: datetime) -> float | None:
    """Unix seconds, or `None`. Raises `ValueError` or `OverflowError` for what is no time."""
    if words.lower() == "now":
        return now.timestamp()
    ago = _AGO.fullmatch(words)
    if ago is not None:
        return now.timestamp() - int(ago[1]) * UNITS[ago[2][0].lower()]
    day = _DAY.fullmatch(words)
    if day is not None:
        date = now.date() - timedelta(days=days_back(day[1].lower(), now))
        clock = time.fromisoformat(day[2]) if day[2] else time()
        return zoned(datetime.combine(date, clock), now).timestamp()
    return zoned(datetime.fromisoformat(words), now).timestamp()


def days_back(word: str, now: datetime) -> int:
    """How many days before today; a day of the week is the last one before today."""
    if word == "today":
        return 0
    if word == "yesterday":
        return 1
    return (now.weekday() - DAYS.index(word.split()[-1])) % 7 or 7


def zoned(at: datetime, now: datetime) -> datetime:
    """With the zone of this machine where it has none; that of `now` in tests."""
    if at.tzinfo is not None:
        return at
    own = datetime.now().astimezone().tzinfo
    return at.astimezone() if now.tzinfo == own else at.replace(tzinfo=now.tzinfo)
