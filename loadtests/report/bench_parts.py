"""Where the time of a request goes: the server's figures beside the client's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loadtests.bench.results import Point, Result

from . import look, marks
from .levels import Second, levels
from .look import Spec
from .marks import Row
from .words import duration, share

PARTS: Final = ("waiting to leave", "queue", "execute", "the rest")


def parts_of_latency(result: Result) -> Spec | None:
    """Mean latency of each level in its parts, each as a share of the whole; bars from zero.

    Without the levels at which requests had no answer: nobody knows where their time went.
    """
    found = [
        level
        for level in levels(result)
        if level.point.server and level.point.latency.count and not level.point.unanswered
    ]
    if not found:
        return None
    rows: list[Row] = []
    for level in found:
        mean = level.point.latency.mean_us
        below = 0.0
        for part, us in parts(level.point).items():
            reach = min(below + us / max(mean, 1e-9), 1.0)
            rows.append(
                {
                    "level": level.name,
                    "part": part,
                    "low": below,
                    "high": reach,
                    "Share": share(reach - below),
                    "Mean": duration(us),
                }
            )
            below = reach
    y: Spec = {"field": "level", "type": "nominal", "sort": None, "axis": marks.names_axis()}
    x: Spec = {
        "type": "quantitative",
        "axis": {"title": "share of the mean latency", "format": ".0%", "grid": True},
        "scale": {"domain": [0, 1.12], "nice": False},
    }
    x["axis"] |= {"values": [0, 0.2, 0.4, 0.6, 0.8, 1], "labelOverlap": False}
    totals = [
        {"level": level.name, "at": 1.0, "text": duration(level.point.latency.mean_us)}
        for level in found
    ]
    layers: list[Spec] = [
        {
            "mark": {"type": "bar", "height": {"band": 0.62}},
            "encoding": {
                "x": {**x, "field": "low"},
                "x2": {"field": "high"},
                "y": y,
                "color": marks.coloured("part", PARTS),
                "tooltip": marks.tips("level", "part", "Mean", "Share"),
            },
        },
        {
            "data": {"values": totals},
            "mark": {"type": "text", "align": "left", "dx": 6, "color": look.INK.light},
            "encoding": {"x": {**x, "field": "at"}, "y": y, "text": {"field": "text"}},
        },
    ]
    return marks.frame(layers, height=34 * len(found) + 10, data={"values": rows})


def parts(point: Point) -> dict[str, float]:
    """Mean µs: waiting to leave the client, the server's queue, its execution, all the rest."""
    server = point.server
    assert server is not None
    waited = max(0.0, point.latency.mean_us - point.service.mean_us) if point.load.open else 0.0
    left = max(0.0, point.latency.mean_us - waited)
    queue = min(max(server.queue_us, 0.0), left)
    execute = min(max(server.execute_us, 0.0), left - queue)
    return dict(zip(PARTS, (waited, queue, execute, left - queue - execute), strict=True))


def server_over_time(seconds: Sequence[Second], first: Point | None) -> Spec | None:
    """The server's queue and execute time, stacked, under the client's p50; one level at a time."""
    known = [s for s in seconds if s.tick.queue_us is not None and s.tick.at_s >= 0]
    if not known:
        return None
    with_figures = list({second.level.name: second.level for second in known}.values())
    names = ("execute", "queue", "p50")
    areas: list[Row] = []
    lines: list[Row] = []
    about: list[Row] = []
    for second in known:
        tick = second.tick
        row = second.row()
        base = {"at": round(tick.at_s + tick.seconds / 2, 3), "level": second.level.name}
        execute = tick.execute_us or 0.0
        both = execute + (tick.queue_us or 0.0)
        areas.append({**base, "what": "execute", "low": 0.0, "high": execute})
        areas.append({**base, "what": "queue", "low": execute, "high": both})
        lines.append({**base, "what": "p50", "us": tick.p50_us})
        about.append(
            {
                **row,
                **base,
                "Queue (mean)": duration(tick.queue_us),
                "Execute (mean)": duration(tick.execute_us),
            }
        )
    across: Spec = {
        "field": "at",
        "type": "quantitative",
        "axis": {"title": "seconds of the measurement", "format": ",~f", "tickCount": 12},
        "scale": {"nice": False, "zero": True},
    }
    y = marks.latency_zero_y("time of a request")
    tint = marks.coloured("what", names)
    layers: list[Spec] = [
        {
            "data": {"values": areas},
            "mark": {"type": "area", "opacity": 0.9},
            "encoding": {
                "x": across,
                "y": {**y, "field": "low"},
                "y2": {"field": "high"},
                "color": tint,
            },
        },
        {
            "data": {"values": lines},
            "mark": {"type": "line"},
            "encoding": {"x": across, "y": {**y, "field": "us"}, "color": tint},
        },
        marks.hover(about, across, ["Level", "Second", "Queue (mean)", "Execute (mean)", "p50 "]),
    ]
    more = marks.one_at_a_time(
        layers,
        [level.name for level in with_figures],
        next((level.name for level in with_figures if level.point is first), ""),
    )
    return marks.frame(layers, **more)
