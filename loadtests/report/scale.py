"""Pictures of cost against size, and of what a server does under overload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from . import draw, marks
from .look import AXIS, CONFIG, Spec, colour, kinds
from .marks import Row
from .words import clean, rate, short, wrapped

_GUIDE: Final = "guide"


@dataclass(frozen=True)
class Series:
    """One line of a chart: the same thing, measured at several sizes."""

    name: str
    points: list[tuple[float, float]]
    """(x, y), in the units of the chart's axes."""
    spread: list[tuple[float, float]] | None = None
    """Smallest and largest y of the rounds, one pair a point; drawn as whiskers."""
    slope: str = ""
    """What is known of its slope, for the legend: that of the table beside."""


@dataclass(frozen=True)
class Chart:
    """Cost against one kind of size."""

    name: str
    """Of the file: ``models-memory``; small letters, digits and hyphens."""
    title: str
    """What is to be seen, in a few words: ``Memory against the number of models``."""
    x: str
    """Title of the axis, with its unit: ``models``, ``payload (bytes)``."""
    y: str
    """``resident memory (MiB)``."""
    series: list[Series]
    log_x: bool = True
    log_y: bool = True
    fit: bool = True
    """Whether a line shows what linear growth looks like, where both axes are logarithmic."""
    note: str = ""


@dataclass(frozen=True)
class OverloadPoint:
    """What a server did at one offered load."""

    offered: float
    """Requests/s sent, over requests/s at capacity: 0.5, 1, 3."""
    goodput: float
    """Requests/s answered well."""
    p99_us: float
    """Of the requests that were accepted and answered well."""
    refused: float
    """Share of the requests that were refused, 0 to 1."""
    failed: float = 0.0
    """Share of the requests that failed otherwise, 0 to 1."""
    memory_mib: float | None = None
    """Largest resident memory seen at this load."""


@dataclass(frozen=True)
class Overload:
    """A server from below to far above its capacity."""

    model: str
    capacity: float
    """Requests/s that it sustains: offered 1."""
    points: list[OverloadPoint] = field(default_factory=list)


def picture(chart: Chart) -> str:
    """The chart as an SVG file. Raises `BenchError` where vl-convert is missing."""
    return draw.picture(spec(chart), f"{chart.title}: {chart.y} against {chart.x}")


def spec(chart: Chart) -> Spec:
    """The chart. On two log axes a dotted line shows what linear growth looks like."""
    hidden = 0
    rows: list[Row] = []
    whiskers: list[Row] = []
    labels: list[str] = []
    for series in chart.series:
        label = short(series.name, 40) + (f": {series.slope}" if series.slope else "")
        if label in labels:
            label = f"{label} ({len(labels) + 1})"
        labels.append(label)
        for i, (size, cost) in enumerate(series.points):
            if (chart.log_x and size <= 0) or (chart.log_y and cost <= 0):
                hidden += 1
                continue
            rows.append({"x": size, "y": cost, "series": label})
            low, high = series.spread[i] if series.spread else (cost, cost)
            if low < high and (low > 0 or not chart.log_y):
                whiskers.append({"x": size, "low": low, "high": high, "series": label})
    x, y = _axes(chart, rows, whiskers)
    tint = marks.coloured("series", labels, kinds(len(labels)))
    encoding: Spec = {"x": {**x, "field": "x"}, "y": {**y, "field": "y"}, "color": tint}
    layers: list[Spec] = [
        *_guide(chart, rows, x, y),
        {"mark": {"type": "line"}, "encoding": encoding},
        {
            "data": {"values": whiskers},
            "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.7},
            "encoding": {
                "x": {**x, "field": "x"},
                "y": {**y, "field": "low"},
                "y2": {"field": "high"},
                "color": tint,
            },
        },
        {
            "mark": marks.dots(),
            "encoding": {**encoding, "shape": marks.shaped("series", labels)},
        },
    ]
    below = [line for line in (chart.note,) if line]
    if hidden:
        below.append(f"{hidden} of the values are 0 or less, which a log axis cannot show.")
    if any(layer.get("name") == _GUIDE for layer in layers):
        below.append("Dotted: linear growth.")
    title: Spec = {"text": clean(chart.title)}
    if below:
        title["subtitle"] = wrapped(" ".join(below), 110)
    frame = marks.frame(layers, height=300, data={"values": rows}, title=title)
    # A name is cut before it comes here: what is at the end, the slope, must be seen.
    legend = {
        **CONFIG["legend"],
        "columns": 1 if any(series.slope for series in chart.series) else 4,
        "labelLimit": 700,
    }
    frame["config"] = {**CONFIG, "legend": legend}
    return frame


def _axes(chart: Chart, rows: Sequence[Row], whiskers: Sequence[Row]) -> tuple[Spec, Spec]:
    reach = [row["y"] for row in rows]
    reach += [row[end] for row in whiskers for end in ("low", "high")]
    if chart.log_y:
        y = marks.log_y(reach, clean(chart.y), latency=False)
    else:
        y = marks.zero_y(clean(chart.y))
    xs = sorted({row["x"] for row in rows}) or [1.0]
    axis: Spec = {"title": clean(chart.x), "format": marks.NUMBER}
    if len(xs) <= 14:
        axis["values"] = xs
    if chart.log_x:
        axis["title"] += ", log scale"
        scale: Spec = {"type": "log", "domain": [xs[0] / 1.1, xs[-1] * 1.1], "nice": False}
    else:
        scale = {"domain": [min(0.0, xs[0]), xs[-1] * 1.03 or 1.0], "nice": False}
    if xs[-1] >= 1e5:
        axis["format"] = "~s"
    return {"type": "quantitative", "axis": axis, "scale": scale}, y


def _guide(chart: Chart, rows: Sequence[Row], x: Spec, y: Spec) -> list[Spec]:
    """A line of slope 1 that ends where the costliest series ends."""
    if not (chart.log_x and chart.log_y and chart.fit and rows):
        return []
    last = max(row["x"] for row in rows)
    first = min(row["x"] for row in rows)
    top = max(row["y"] for row in rows if row["x"] == last)
    low = y["scale"]["domain"][0]
    start = max(first, last * low / top)
    if start >= last:
        return []
    ends = [{"x": start, "y": top * start / last}, {"x": last, "y": top}]
    return [
        {
            "name": _GUIDE,
            "data": {"values": ends},
            "mark": {"type": "line", "color": AXIS.light, "strokeDash": [2, 4], "strokeWidth": 1.5},
            "encoding": {"x": {**x, "field": "x"}, "y": {**y, "field": "y"}},
        }
    ]


def overload(found: Overload) -> str:
    """Goodput, latency of what was accepted, refusals and memory in one SVG file.

    Raises `BenchError` where vl-convert is missing.
    """
    return draw.picture(overload_spec(found), f"Overload of {found.model}")


def overload_spec(found: Overload) -> Spec:
    """The chart of `overload`: its parts below each other, over the same offered loads."""
    points = sorted(found.points, key=lambda point: point.offered)
    offered = [point.offered for point in points] or [1.0]
    x: Spec = {
        "type": "quantitative",
        "field": "x",
        "axis": {"title": None, "values": offered, "format": ".4~g"},
        "scale": {"domain": [0, max(offered) * 1.03], "nice": False},
    }
    last = {**x, "axis": {**x["axis"], "title": "offered load (1 = capacity)"}}
    part = _Part(points, x)
    panels = [
        part.lines("goodput", marks.zero_y("answered well (requests/s)"), "answered",
                   lambda point: point.goodput, level=found.capacity),
        part.lines("p99 of what was accepted",
                   _tail(points), "p99",
                   lambda point: max(point.p99_us, 1.0)),
        part.shares(),
    ]  # fmt: skip
    if any(point.memory_mib is not None for point in points):
        panels.append(
            part.lines("memory", marks.zero_y("resident (MiB)"), "memory",
                       lambda point: point.memory_mib)
        )  # fmt: skip
    for layer in panels[-1]["layer"]:
        if "x" in layer["encoding"]:
            layer["encoding"]["x"] = last
    return {
        "$schema": panels[0]["$schema"],
        "config": CONFIG,
        "title": {
            "text": f"Overload: {short(found.model)}",
            "subtitle": f"Capacity: {rate(found.capacity)}. Dashed: capacity.",
        },
        "spacing": 22,
        "resolve": {"scale": {"color": "independent"}},
        "vconcat": [
            {key: value for key, value in panel.items() if key not in ("$schema", "config")}
            for panel in panels
        ],
    }


def _tail(points: Sequence[OverloadPoint]) -> Spec:
    """From zero, unless the smallest would vanish there."""
    values = marks.positive(point.p99_us for point in points)
    if values and max(values) > 20 * min(values):
        return marks.log_y(values, "p99")
    return marks.latency_zero_y("p99")


class _Part:
    """Panels over the offered load."""

    def __init__(self, points: Sequence[OverloadPoint], x: Spec) -> None:
        self._points = points
        self._x = x

    def lines(
        self,
        title: str,
        y: Spec,
        thing: str,
        read: Callable[[OverloadPoint], float | None],
        level: float | None = None,
    ) -> Spec:
        rows = [{"x": point.offered, "y": read(point)} for point in self._points]
        rows = [row for row in rows if row["y"] is not None]
        encoding: Spec = {"x": self._x, "y": {**y, "field": "y"}}
        layers: list[Spec] = [
            {"mark": {"type": "line", "color": colour(thing)}, "encoding": dict(encoding)},
            {"mark": marks.dots({"color": colour(thing)}), "encoding": dict(encoding)},
        ]
        if level is not None:
            layers.insert(
                0,
                {
                    "data": {"values": [{"y": level}]},
                    "mark": {"type": "rule", "strokeDash": [6, 4], "color": colour("offered")},
                    "encoding": {"y": {**y, "field": "y"}},
                },
            )
        heading = {"text": title, "fontSize": 12, "offset": 6}
        return marks.frame(layers, height=120, data={"values": rows}, title=heading)

    def shares(self) -> Spec:
        names = ("answered", "refused", "failed")
        rows: list[Row] = []
        for point in self._points:
            good = max(0.0, 1 - point.refused - point.failed)
            below = 0.0
            for name, part in zip(names, (good, point.refused, point.failed), strict=True):
                rows.append({"x": point.offered, "what": name, "low": below, "high": below + part})
                below += part
        y: Spec = {
            "type": "quantitative",
            "axis": {"title": "share", "format": ".0%", "tickCount": 4},
            "scale": {"domain": [0, 1]},
        }
        bar: Spec = {
            "mark": {"type": "bar", "width": 16},
            "encoding": {
                "x": self._x,
                "y": {**y, "field": "low"},
                "y2": {"field": "high"},
                "color": marks.coloured("what", names),
            },
        }
        heading = {"text": "what became of the requests", "fontSize": 12, "offset": 6}
        return marks.frame([bar], height=110, data={"values": rows}, title=heading)
