"""Charts of a benchmark over time, as the client saw it."""

from __future__ import annotations

from collections.abc import Sequence

from . import marks
from .levels import Level, Second
from .look import Spec, colour
from .marks import Row
from .words import digits


def span(found: Sequence[Level]) -> tuple[Spec, list[Spec]]:
    """The x channel of a whole run, and the shades and names of its levels."""
    spans, names = [], []
    last = 1.0
    for level in found:
        begin = min([-level.point.warmup_s, *(tick.at_s for tick in level.point.ticks)])
        if begin < 0:
            spans.append((level.starts + begin, level.starts))
        names.append((level.starts + begin, level.name))
        last = max(
            [
                last,
                level.starts + level.point.seconds,
                *(level.starts + tick.at_s + tick.seconds for tick in level.point.ticks),
            ]
        )
    first = min((at for at, _ in names), default=0.0)
    x = marks.time_x(first, last, "seconds of the whole run")
    titles = marks.named_spans(names, x) if 1 < len(names) <= 10 else []
    return x, [*marks.shaded(spans, x), *titles]


def latency_over_time(found: Sequence[Level], seconds: Sequence[Second]) -> Spec | None:
    """p50 and p99 of every second or so; warm-up in grey, arrows where requests had no answer."""
    rows = [second.row() for second in seconds]
    if not any(row["p50"] for row in rows):
        return None
    x, behind = span(found)
    y = marks.log_y([row[key] for row in rows for key in ("p50", "p99")], "latency")
    across = {**x, "field": "at"}
    names = ("p50", "p99")
    lines: list[Row] = [
        {
            "at": row["at"],
            "level": row["level"],
            "what": name,
            "us": row[name],
            "known": second.known(name),
        }
        for row, second in zip(rows, seconds, strict=True)
        for name in names
    ]
    tint = marks.coloured("what", names, line=True)
    layers: list[Spec] = [
        *behind,
        {
            "data": {"values": lines},
            "mark": {"type": "line", "point": {"size": 12} if len(rows) < 200 else False},
            "encoding": {
                "x": across,
                "y": {**y, "field": "us"},
                "color": tint,
                "detail": {"field": "level"},
            },
        },
        *marks.arrows(lines, {"x": across, "y": {**y, "field": "us"}, "color": tint}),
        marks.hover(rows, across, ["Level", "Second", "p50 ", "p99 ", "Answered", "Failed"]),
    ]
    return marks.frame(layers)


def rate_over_time(found: Sequence[Level], seconds: Sequence[Second]) -> Spec | None:
    """Answers and failures a second, beside what was offered."""
    rows = [second.row() for second in seconds]
    if not rows:
        return None
    x, behind = span(found)
    y = marks.zero_y("requests/s")
    across = {**x, "field": "at"}
    names = ["answered"]
    if any(row["failed"] for row in rows):
        names.append("failed")
    lines: list[Row] = [
        {"at": row["at"], "level": row["level"], "what": name, "rate": row[name]}
        for row in rows
        for name in names
    ]
    promised: list[Row] = [
        {
            "from": level.starts,
            "to": level.starts + level.point.seconds,
            "rate": level.point.load.rate,
            "what": "offered",
        }
        for level in found
        if level.point.load.open
    ]
    if promised:
        names.append("offered")
    tint = marks.coloured("what", names, line=True)
    layers: list[Spec] = [
        *behind,
        {
            "data": {"values": promised},
            "mark": {"type": "rule", "strokeDash": [6, 4], "strokeWidth": 1.5},
            "encoding": {
                "x": {**x, "field": "from"},
                "x2": {"field": "to"},
                "y": {**y, "field": "rate"},
                "color": tint,
            },
        },
        {
            "data": {"values": lines},
            "mark": {"type": "line", "point": {"size": 12} if len(rows) < 200 else False},
            "encoding": {
                "x": across,
                "y": {**y, "field": "rate"},
                "color": tint,
                "detail": {"field": "level"},
            },
        },
        marks.hover(rows, across, ["Level", "Second", "Answered", "Failed"]),
    ]
    return marks.frame(layers, height=220)


def client_over_time(found: Sequence[Level], seconds: Sequence[Second]) -> Spec | None:
    """Cores that the load generator used."""
    if not any(second.tick.client_cpu for second in seconds):
        return None
    x, behind = span(found)
    cores = max(level.point.client.cores for level in found)
    y = marks.zero_y("cores", form="~g")
    across = {**x, "field": "at"}
    rows: list[Row] = [
        {
            "at": second.row()["at"],
            "level": second.level.name,
            "cpu": second.tick.client_cpu,
            "Level": second.level.name,
            "Cores": f"{digits(second.tick.client_cpu)} of {cores}",
        }
        for second in seconds
    ]
    layers: list[Spec] = [
        *behind,
        {
            "data": {"values": rows},
            "mark": {"type": "line", "color": colour("client")},
            "encoding": {
                "x": across,
                "y": {**y, "field": "cpu"},
                "detail": {"field": "level"},
            },
        },
        marks.hover(rows, across, ["Level", "Cores"]),
    ]
    return marks.frame(layers, height=150)
