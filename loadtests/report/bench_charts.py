"""The charts of a result of ``sluice bench``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from loadtests.bench.results import Point, Result

from . import curves, look, marks
from .levels import (
    Level,
    Second,
    all_open,
    axis_title,
    levels,
    of_one_kind,
    spread_out,
)
from .look import Spec, colour
from .marks import Row
from .words import between, digits, duration, rate, share

LINES: Final = ("p50", "p90", "p99", "p99.9")
PARTS: Final = ("waiting to leave", "queue", "execute", "the rest")
_NINES_LABEL: Final = (
    "datum.value == 0 ? '0 %' : "
    "format(100 - 100 * pow(10, -datum.value), '.' + max(0, datum.value - 2) + 'f') + ' %'"
)


def latency_against_load(result: Result) -> Spec | None:
    """Four percentiles at every level, with the confidence of two; ``None`` for a single level."""
    found = [level for level in levels(result) if level.point.latency.count]
    if len({level.offered for level in found}) < 2 or not of_one_kind(result):
        return None
    rows: list[Row] = []
    for level in sorted(found, key=lambda level: level.offered):
        latency = level.point.latency
        for name, known in zip(LINES, (latency.p50, None, latency.p99, None), strict=True):
            value = latency.percentiles_us.get(name.removeprefix("p"))
            if value is None:
                continue
            row: Row = {"load": level.offered, "percentile": name, "us": max(value, 1.0)}
            if known:
                row |= {"low": max(known.low, 1.0), "high": max(known.high, 1.0)}
            rows.append(row)
    x = marks.load_x([level.offered for level in found], axis_title(result))
    reach = [row[key] for row in rows for key in ("us", "low", "high") if key in row]
    y = marks.log_y(reach, "latency")
    encoding: Spec = {
        "x": {**x, "field": "load"},
        "y": {**y, "field": "us"},
        "color": marks.coloured("percentile", LINES),
    }
    whiskers = [row for row in rows if "low" in row]
    about = [
        {
            "load": level.offered,
            "Load": level.name,
            "Answered": rate(level.point.rate),
            **{
                name: duration(level.point.latency.percentiles_us.get(name.removeprefix("p")))
                for name in LINES
            },
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
                "color": marks.coloured("percentile", LINES, legend=False),
            },
        },
        {
            "data": {"values": whiskers},
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.7},
            "encoding": {
                **encoding,
                "y": {**y, "field": "low"},
                "y2": {"field": "high"},
                "color": marks.coloured("percentile", LINES, legend=False),
            },
        },
        {
            "mark": marks.dots(),
            "encoding": {**encoding, "shape": marks.shaped("percentile", LINES)},
        },
        marks.hover(
            about, {**x, "field": "load"}, ["Load", "Answered", *LINES, "p99, 95 %", "Failed"]
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


def percentile_curves(named: Sequence[tuple[str, str, Point]]) -> Spec | None:
    """(name, colour, point) → latency from the smallest to the largest, over "nines".

    A full line counts from when a request was due, a dashed one from when it left (open loop only).
    Faint: fewer than ten requests lie beyond.
    """
    rows: list[Row] = []
    kinds = ["from when it was due", "from when it left"]
    for name, _, point in named:
        if point.load.open:
            sources = list(zip(kinds, (point.latency, point.service), strict=True))
        else:
            sources = [(kinds[1], point.latency)]
        for kind, latency in sources:
            for nines, us, sure in curves.curve(latency.histogram):
                rows.append(
                    {
                        "nines": nines,
                        "us": max(us, 1.0),
                        "level": name,
                        "kind": kind,
                        "few": not sure,
                        "Percentile": _percentile(nines),
                        "Latency": duration(us),
                    }
                )
    if not rows:
        return None
    has_due = any(row["kind"] == kinds[0] for row in rows)
    most = max(1, math.ceil(max(row["nines"] for row in rows)))
    x: Spec = {
        "field": "nines",
        "type": "quantitative",
        "axis": {
            "title": "percentile: each step to the right is ten times rarer",
            "values": list(range(most + 1)),
            "labelExpr": _NINES_LABEL,
            "grid": True,
        },
        "scale": {"domain": [0, most], "nice": False},
    }
    y = marks.log_y([row["us"] for row in rows], "latency")
    names = [name for name, _, _ in named]
    tints = [tint for _, tint, _ in named]
    encoding: Spec = {
        "x": x,
        "y": {**y, "field": "us"},
        "color": marks.coloured("level", names, tints, line=True),
        "detail": [{"field": "kind", "type": "nominal"}],
    }
    if has_due:
        encoding["strokeDash"] = marks.dashed("kind", kinds)
    faint = {**encoding, "color": marks.coloured("level", names, tints, legend=False)}
    if has_due:
        faint["strokeDash"] = marks.dashed("kind", kinds, legend=False)
    # What is sure is drawn over by the whole, so that the two parts meet.
    sure_rows = [row for row in rows if not row["few"]]
    layers: list[Spec] = [
        {"data": {"values": sure_rows}, "mark": {"type": "line"}, "encoding": encoding},
        {"mark": {"type": "line", "opacity": 0.32}, "encoding": faint},
        {
            "name": "hover",
            "mark": {"type": "point", "filled": True, "size": 60},
            "params": [
                {
                    "name": "near",
                    "select": {
                        "type": "point",
                        "on": "pointerover",
                        "nearest": True,
                        "clear": "pointerout",
                    },
                }
            ],
            "encoding": {
                **{key: value for key, value in faint.items() if key != "strokeDash"},
                "opacity": {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0},
                "tooltip": marks.tips("level", "kind", "Percentile", "Latency"),
            },
        },
    ]
    return marks.frame(layers, height=340, data={"values": rows})


def _percentile(nines: float) -> str:
    return f"{100 * (1 - 10**-nines):.{max(1, math.ceil(nines))}f} %"


def curves_of(result: Result) -> tuple[Spec | None, int]:
    """The curves of the levels (eight at most), and how many levels were left out."""
    found = [level for level in levels(result) if level.point.latency.count]
    chosen = spread_out(found)
    spec = percentile_curves([(level.name, level.colour, level.point) for level in chosen])
    return spec, len(found) - len(chosen)


def _span(found: Sequence[Level]) -> tuple[Spec, list[Spec]]:
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
    """p50 and p99 of every second or so; warm-up in grey."""
    rows = [second.row() for second in seconds]
    if not any(row["p50"] for row in rows):
        return None
    x, behind = _span(found)
    y = marks.log_y([row[key] for row in rows for key in ("p50", "p99")], "latency")
    across = {**x, "field": "at"}
    names = ("p50", "p99")
    lines: list[Row] = [
        {"at": row["at"], "level": row["level"], "what": name, "us": row[name]}
        for row in rows
        for name in names
    ]
    layers: list[Spec] = [
        *behind,
        {
            "data": {"values": lines},
            "mark": {"type": "line", "point": {"size": 12} if len(rows) < 200 else False},
            "encoding": {
                "x": across,
                "y": {**y, "field": "us"},
                "color": marks.coloured("what", names, line=True),
                "detail": {"field": "level"},
            },
        },
        marks.hover(rows, across, ["Level", "Second", "p50 ", "p99 ", "Answered", "Failed"]),
    ]
    return marks.frame(layers)


def rate_over_time(found: Sequence[Level], seconds: Sequence[Second]) -> Spec | None:
    """Answers and failures a second, beside what was offered."""
    rows = [second.row() for second in seconds]
    if not rows:
        return None
    x, behind = _span(found)
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
    x, behind = _span(found)
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


def parts_of_latency(result: Result) -> Spec | None:
    """Mean latency of each level in its parts, each as a share of the whole; bars from zero."""
    found = [level for level in levels(result) if level.point.server and level.point.latency.count]
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
