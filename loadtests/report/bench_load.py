"""Charts of a benchmark over the load: latency, and answers a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loadtests.bench.results import Point, Result

from . import marks
from .levels import all_open, at, axis_title, left_out, levels, of_one_kind, told
from .look import Spec
from .marks import Row
from .words import between, rate, share

LINES: Final = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}


def lines(points: Sequence[Point]) -> list[str]:
    """The percentiles that are drawn: those that are known at some level."""
    answered = [point for point in points if point.latency.count]
    return [
        name
        for name, percentile in LINES.items()
        if any(not left_out(point, percentile) for point in answered)
    ]


def pale(result: Result) -> str:
    """What pale dots mean, where there are any."""
    return marks.worth(
        point.known(LINES[name])
        for point in result.points
        if point.latency.count
        for name in lines(result.points)
        if not left_out(point, LINES[name])
    )


def latency_against_load(result: Result) -> Spec | None:
    """Percentiles at every level, with the confidence of two; ``None`` for a single level."""
    found = [level for level in levels(result) if level.point.latency.count]
    if len({level.offered for level in found}) < 2 or not of_one_kind(result):
        return None
    names = lines([level.point for level in found])
    rows: list[Row] = []
    for level in sorted(found, key=lambda level: level.offered):
        point, latency = level.point, level.point.latency
        for name in names:
            value = at(latency, LINES[name])
            if value is None or left_out(point, LINES[name]):
                continue
            known = point.known(LINES[name])
            row: Row = {
                "load": level.offered, "percentile": name, "us": max(value, 1.0), "known": known,
            }  # fmt: skip
            interval = {"p50": latency.p50, "p99": latency.p99}.get(name)
            if interval and known == "well":
                row |= {"low": max(interval.low, 1.0), "high": max(interval.high, 1.0)}
            rows.append(row)
    x = marks.load_x([level.offered for level in found], axis_title(result))
    reach = [row[key] for row in rows for key in ("us", "low", "high") if key in row]
    y = marks.log_y(reach, "latency")
    tint = marks.coloured("percentile", names, legend=False)
    encoding: Spec = {
        "x": {**x, "field": "load"},
        "y": {**y, "field": "us"},
        "color": marks.coloured("percentile", names),
    }
    whiskers = [row for row in rows if "low" in row]
    about = [
        {
            "load": level.offered,
            "Load": level.name,
            "Answered": rate(level.point.rate),
            **{name: told(level.point, LINES[name]) for name in names},
            "p99, 95 %": between(level.point.latency.p99),
            "Failed": share(level.point.error_rate),
        }
        for level in found
    ]
    layers: list[Spec] = [
        {
            "mark": {"type": "line"},
            "encoding": {
                **encoding,
                "color": tint,
            },
        },
        {
            "data": {"values": whiskers},
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.7},
            "encoding": {
                **encoding,
                "y": {**y, "field": "low"},
                "y2": {"field": "high"},
                "color": tint,
            },
        },
        {
            "mark": marks.dots(),
            "encoding": {
                **encoding,
                "shape": marks.shaped("percentile", names),
                "opacity": marks.FAINT,
            },
        },
        *marks.arrows(rows, {"x": encoding["x"], "y": encoding["y"], "color": tint}),
        marks.hover(
            about, {**x, "field": "load"}, ["Load", "Answered", *names, "p99, 95 %", "Failed"]
        ),
    ]
    return marks.frame(layers, height=320, data={"values": rows})


def throughput_against_load(result: Result) -> Spec | None:
    """Answers a second at every level, with confidence; open loop: beside what was offered."""
    found = sorted(levels(result), key=lambda level: level.offered)
    if len({level.offered for level in found}) < 2 or not of_one_kind(result):
        return None
    x = marks.load_x([level.offered for level in found], axis_title(result))
    y = marks.zero_y("answered (requests/s)")
    names = ["answered"]
    rows: list[Row] = []
    about: list[Row] = []
    for level in found:
        point = level.point
        row: Row = {"load": level.offered, "what": "answered", "rate": point.rate}
        if point.rate_ci:
            row |= {"low": max(point.rate_ci.low, 0.0), "high": point.rate_ci.high}
        rows.append(row)
        about.append(
            {
                "load": level.offered,
                "Load": level.name,
                "Answered": rate(point.rate),
                "95 %": between(point.rate_ci, "rate"),
                "Failed": f"{point.failed:,} ({share(point.error_rate)})",
            }
        )
    ideal: list[Row] = []
    if all_open(result):
        names.append("offered")
        edge = max(level.offered for level in found)
        start = min(level.offered for level in found) if x["scale"].get("type") == "log" else 0
        ideal = [{"load": load, "what": "offered", "rate": load} for load in (start, edge)]
        if x["scale"].get("type") == "log":
            y = marks.log_y([*(row["rate"] for row in rows), start, edge], y["axis"]["title"],
                            latency=False)  # fmt: skip
    tint = marks.coloured("what", names, legend=False)
    across = {**x, "field": "load"}
    layers: list[Spec] = [
        {
            "data": {"values": ideal + rows},
            "mark": {"type": "line"},
            "encoding": {
                "x": across,
                "y": {**y, "field": "rate"},
                "color": marks.coloured("what", names, line=True),
                "strokeDash": marks.dashed("what", names),
            },
        },
        {
            "data": {"values": [row for row in rows if "low" in row]},
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.7},
            "encoding": {
                "x": across,
                "y": {**y, "field": "low"},
                "y2": {"field": "high"},
                "color": tint,
            },
        },
        {
            "data": {"values": rows},
            "mark": marks.dots(),
            "encoding": {"x": across, "y": {**y, "field": "rate"}, "color": tint},
        },
        marks.hover(about, across, ["Load", "Answered", "95 %", "Failed"]),
    ]
    return marks.frame(layers)
