"""Parts of charts: frames, axes with honest scales, lines that answer the mouse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from loadtests.bench.results import FEWEST_BEYOND, Known

from .draw import HOVER, SPANS
from .look import CONFIG, HEIGHT, INK, PAPER, SHADE, SOFT, WIDTH, Spec, colour

Row = dict[str, Any]
"""One datum of a chart: field → value."""

NUMBER: Final = ",.6~r"
"""How numbers stand on axes: ``1,250``, ``0.5``."""
_LATENCY_LABEL: Final = (
    "datum.value >= 1e6 ? format(datum.value / 1e6, '~g') + ' s' : "
    "datum.value >= 1e3 ? format(datum.value / 1e3, '~g') + ' ms' : "
    "format(datum.value, '~g') + ' µs'"
)


def frame(layers: Sequence[Spec], *, height: int = HEIGHT, **more: Any) -> Spec:
    """A chart of ``layers`` that share their axes."""
    names = any(layer.get("name") == SPANS for layer in layers)
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "config": CONFIG if not names else {**CONFIG, "legend": {**CONFIG["legend"], "offset": 24}},
        "width": WIDTH,
        "height": height,
        "layer": list(layers),
        **more,
    }


def ticks(low: float, high: float) -> tuple[list[float], list[float]]:
    """Ends of a log axis from at most ``low`` to at least ``high``, and its labelled values."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    # One more on each side: a logarithm is rounded.
    found = [float(f"{n}e{power}") for power in range(first - 1, last + 2) for n in (1, 2, 5)]
    least = max((value for value in found if value <= low), default=found[0])
    most = min(value for value in found if value >= high and value > least)
    labels = [value for value in found if least <= value <= most]
    if most / least > 500:
        labels = [value for value in labels if f"{value:e}".startswith("1")]
    return [least, most], labels


def positive(values: Iterable[float | None]) -> list[float]:
    """Those that a log axis can show."""
    return [value for value in values if value is not None and 0 < value < math.inf]


def log_y(values: Iterable[float | None], title: str, *, latency: bool = True) -> Spec:
    """The y channel of a log axis around ``values``; ``latency``: they are µs, labelled as time."""
    shown = positive(values) or [1.0, 10.0]
    ends, labels = ticks(min(shown), max(shown))
    axis: Spec = {"title": f"{title}, log scale", "values": labels}
    if latency:
        axis["labelExpr"] = _LATENCY_LABEL
    else:
        axis["format"] = NUMBER
    scale = {"type": "log", "domain": ends, "nice": False, "clamp": True}
    return {"type": "quantitative", "axis": axis, "scale": scale}


def zero_y(title: str, *, top: float | None = None, form: str = NUMBER) -> Spec:
    """The y channel of an axis that begins at zero; ``top``: where it must reach at least."""
    scale: Spec = {"zero": True, "nice": True}
    if top is not None:
        scale["domainMin"] = 0
        scale["domainMax"] = top
    axis = {"title": title, "format": form, "tickCount": 5}
    return {"type": "quantitative", "axis": axis, "scale": scale}


def latency_zero_y(title: str) -> Spec:
    """As `zero_y`, for µs that are labelled as time."""
    axis = {"title": title, "labelExpr": _LATENCY_LABEL, "tickCount": 5}
    return {"type": "quantitative", "axis": axis, "scale": {"zero": True, "nice": True}}


def load_x(values: Sequence[float], title: str) -> Spec:
    """The x channel of levels of load: linear from zero, or log if they differ by a lot."""
    axis: Spec = {"title": title, "format": ",.6~g"}
    if 1 < len(values) <= 12:
        axis["values"] = sorted(set(values))
    low, high = min(values), max(values)
    if low > 0 and high / low > 20:
        axis["title"] = f"{title}, log scale"
        scale: Spec = {"type": "log", "domain": [low / 1.15, high * 1.15], "nice": False}
    else:
        scale = {"domain": [0, high * 1.05], "nice": False}
    return {"type": "quantitative", "axis": axis, "scale": scale}


def time_x(first: float, last: float, title: str = "seconds") -> Spec:
    """The x channel of time in seconds."""
    scale = {"domain": [first, max(last, first + 1)], "nice": False}
    axis = {"title": title, "format": ",~f", "tickCount": 12}
    return {"type": "quantitative", "axis": axis, "scale": scale}


def coloured(
    field: str,
    names: Sequence[str],
    colours: Sequence[str] | None = None,
    *,
    legend: bool = True,
    line: bool = False,
) -> Spec:
    """A colour channel with a fixed order; without ``colours``: those of the things of that name.

    ``line``: the legend shows lines. Without ``legend``, another layer says what it looks like.
    """
    drawn = list(colours) if colours is not None else [colour(name) for name in names]
    found: Spec = {
        "field": field,
        "type": "nominal",
        "sort": None,
        "scale": {"domain": list(names), "range": drawn},
    }
    # `null` would take the legend from other layers too.
    if legend and line:
        found["legend"] = {"symbolType": "stroke", "symbolOpacity": 1}
    return found


def dashed(field: str, names: Sequence[str], *, legend: bool = True) -> Spec:
    """A channel of dashes: the first name is a full line."""
    patterns = [[1, 0], [6, 4], [2, 3], [9, 3, 2, 3], [12, 4], [4, 2], [1, 4], [8, 2, 2, 2]]
    found: Spec = {
        "field": field,
        "type": "nominal",
        "sort": None,
        "scale": {
            "domain": list(names),
            "range": [patterns[i % len(patterns)] for i in range(len(names))],
        },
    }
    if legend:
        found["legend"] = {"symbolType": "stroke", "symbolOpacity": 1}
    return found


def shaped(field: str, names: Sequence[str]) -> Spec:
    """A channel of shapes of dots, in a fixed order."""
    shapes = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross"]
    return {
        "field": field,
        "type": "nominal",
        "sort": None,
        "scale": {
            "domain": list(names),
            "range": [shapes[i % len(shapes)] for i in range(len(names))],
        },
    }


def tips(*names: str) -> list[Spec]:
    """What the mouse is told: fields that hold words already; their names are their titles."""
    return [{"field": name, "type": "nominal", "title": name} for name in names]


def hover(rows: Sequence[Row], x: Spec, names: Sequence[str]) -> Spec:
    """A line that follows the mouse along ``x`` and tells ``names`` of the nearest of ``rows``."""
    return {
        "name": HOVER,
        "data": {"values": list(rows)},
        "mark": {"type": "rule", "strokeWidth": 1},
        "params": [
            {
                "name": "near",
                "select": {
                    "type": "point",
                    "on": "pointerover",
                    "nearest": True,
                    "clear": "pointerout",
                    "encodings": ["x"],
                },
            }
        ],
        "encoding": {
            "x": x,
            "opacity": {"condition": {"param": "near", "empty": False, "value": 0.7}, "value": 0},
            "tooltip": tips(*names),
        },
    }


def shaded(spans: Sequence[tuple[float, float]], x: Spec) -> list[Spec]:
    """Grey behind the spans of ``x`` in which a server was warmed up."""
    if not spans:
        return []
    rows = [{"from": first, "to": last} for first, last in spans]
    return [
        {
            "data": {"values": rows},
            "mark": {"type": "rect", "color": SHADE.light},
            "encoding": {"x": {**x, "field": "from"}, "x2": {"field": "to"}},
        }
    ]


def named_spans(names: Sequence[tuple[float, str]], x: Spec) -> list[Spec]:
    """A thin line where each span of ``x`` begins, and its name above the chart."""
    rows = [{"at": at, "name": name} for at, name in names]
    return [
        {
            "data": {"values": rows},
            "mark": {"type": "rule", "color": SOFT.light, "opacity": 0.45, "strokeWidth": 1},
            "encoding": {"x": {**x, "field": "at"}},
        },
        {
            "name": SPANS,
            "data": {"values": rows},
            "mark": {"type": "text", "align": "left", "baseline": "bottom", "dx": 3, "y": -3},
            "encoding": {"x": {**x, "field": "at"}, "text": {"field": "name"}},
        },
    ]


def names_axis() -> Spec:
    """An axis whose labels are names, for bars that lie."""
    return {
        "title": None,
        "labelColor": INK.light,
        "domain": False,
        "ticks": False,
        "grid": False,
    }


def one_at_a_time(layers: Sequence[Spec], names: Sequence[str], first: str) -> Spec:
    """Makes ``layers`` show one of ``names`` (their field ``level``), which the reader can choose.

    Returns what the frame needs for it: the choice, and a title that says what is shown.
    """
    shown = first or names[0]
    if len(names) < 2:
        return {"title": {"text": f"at {shown}", "fontSize": 12, "fontWeight": 400}}
    for layer in layers:
        layer["transform"] = [{"filter": "datum.level === shown"}]
    choice = {"input": "select", "options": list(names), "name": "Level of load"}
    return {
        "params": [{"name": "shown", "value": shown, "bind": choice}],
        "title": {"text": {"expr": "'at ' + shown"}, "fontSize": 12, "fontWeight": 400},
    }


FAINT: Final[Spec] = {
    "condition": {"test": "datum.known === 'few'", "value": 0.35},
    "value": 1,
}
"""The opacity of what rests on few requests: rows have `known` of `loadtests.bench.results`."""


def worth(known: Iterable[Known]) -> str:
    """What pale dots and arrows mean, where there are any."""
    every = set(known)
    said = []
    if "few" in every:
        said.append(f"Pale: fewer than {FEWEST_BEYOND} requests lie beyond.")
    if "at least" in every:
        said.append("Arrows: that much at least, as requests had no answer.")
    return " ".join(said)


def arrows(rows: Sequence[Row], encoding: Spec) -> list[Spec]:
    """Arrows upwards from those of ``rows`` that are only known from below."""
    bounds = [row for row in rows if row.get("known") == "at least"]
    if not bounds:
        return []
    mark = {
        "type": "point", "shape": "triangle-up", "filled": True, "opacity": 1, "size": 45,
        "yOffset": -12,
    }  # fmt: skip
    return [{"data": {"values": bounds}, "mark": mark, "encoding": encoding}]


def dots(extra: Spec | None = None) -> Spec:
    """A filled dot with a rim of the paper's colour, so that dots on lines stay apart."""
    return {
        "type": "point",
        "filled": True,
        "opacity": 1,
        "size": 62,
        "stroke": PAPER.light,
        "strokeWidth": 1.5,
        **(extra or {}),
    }
