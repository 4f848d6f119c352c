"""Moments as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from gateway.errors import InvalidRequest
from gateway.history.times import moment

ZONE = timezone(timedelta(hours=2))
NOW = datetime(2026, 11, 18, 15, 30, tzinfo=ZONE)  # a Wednesday


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("2026-11-17", datetime(2026, 11, 17, tzinfo=ZONE)),
        ("2026-11-17T12:00", datetime(2026, 11, 17, 12, tzinfo=ZONE)),
        ("2026-11-17 12:00:30.5", datetime(2026, 11, 17, 12, 0, 30, 500_000, tzinfo=ZONE)),
        ("2026-11-17T12:00Z", datetime(2026, 11, 17, 12, tzinfo=UTC)),
        ("2026-11-17T12:00+05:30", datetime(2026, 11, 17, 6, 30, tzinfo=UTC)),
        ("90 seconds ago", NOW - timedelta(seconds=90)),
        ("5m ago", NOW - timedelta(minutes=5)),
        ("  2   Hours AGO ", NOW - timedelta(hours=2)),
        ("1 day ago", NOW - timedelta(days=1)),
        ("3 weeks ago", NOW - timedelta(weeks=3)),
        ("today 09:15", datetime(2026, 11, 18, 9, 15, tzinfo=ZONE)),
        ("yesterday", datetime(2026, 11, 17, tzinfo=ZONE)),
        ("yesterday at 14:30", datetime(2026, 11, 17, 14, 30, tzinfo=ZONE)),
        ("last tuesday", datetime(2026, 11, 17, tzinfo=ZONE)),
        ("Thursday 08:00", datetime(2026, 11, 12, 8, tzinfo=ZONE)),
        ("last wednesday", datetime(2026, 11, 11, tzinfo=ZONE)),
    ],
)
def test_a_moment(text: str, expected: datetime) -> None:
    assert moment(text, NOW) == expected.timestamp()


@pytest.mark.parametrize(
    "text",
    ["", "soon", "12:00", "2026-13-01", "2026-11-17T25:00", "ago", "-1 hours ago", "last day",
     "yesterday noon", "99999999 weeks ago", "0001-01-01", "9999-12-31T23:59", "x" * 5000],
)  # fmt: skip
def test_what_is_no_moment_is_refused_in_one_line(text: str) -> None:
    try:
        at = moment(text, NOW)
    except InvalidRequest as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 300
    else:
        # Far away, and a time all the same.
        assert at < 0


def test_what_is_still_to_come_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="still to come"):
        moment("2026-11-18T15:31", NOW)


def test_summer_time_counts_as_it_was_then(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        summer = datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
        # Asked in winter: the offset is that of the day that is named.
        assert moment("2026-07-01T12:00") == summer.timestamp()
    finally:
        monkeypatch.undo()
        time.tzset()
