"""Pictures of the comparison with other servers: one a model, from the JSON document.

The document is what `loadtests.compare.peers.document` writes; its ``lines`` are drawn, each a
server, a model, a route and a number of requests in flight.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from loadtests.errors import BenchError

from . import draw, marks
from .look import CONFIG, INK, PAPER, Spec, colour
from .marks import Row
from .words import duration, rate, short

FORMAT: Final = "sluicegate-peers/1"
OURS: Final = "sluicegate"
LIMIT: Final = "bare"
PANEL: Final = 330

Line = Mapping[str, Any]


FAR: Final = 2.0
"""How much longer than all others the limit's bar may be."""


def plots(data: Path, folder: Path) -> list[Path]:
    """Draws the document ``data`` into ``folder``: ``MODEL.svg`` for each model, in its order.

    Raises `BenchError` where the document is something else, or vl-convert is missing.
    """
    found = []
    for model, lines in models(read(data)).items():
        path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model).strip('-.') or 'model'}.svg"
        path.write_text(picture(model, lines), encoding="utf-8")
        found.append(path)
    return found


def read(data: Path) -> list[Line]:
    """The lines of a document. Raises `BenchError` where it is something else."""
    try:
        document = json.loads(data.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{data.name} cannot be read: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BenchError(f"{data.name} is not a comparison with other servers ({FORMAT})")
    lines = document.get("lines")
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        raise BenchError(f"{data.name} has no lines to draw; compare again")
    for line in lines:
        missing = {"server", "model", "route", "concurrency"} - line.keys()
        if missing:
            raise BenchError(f"{data.name}: a line has no {min(missing)}; compare again")
    return lines


def models(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Lines by model, in the order of the document."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(str(line["model"]), []).append(line)
    return found


def picture(model: str, lines: Sequence[Line]) -> str:
    """One model as an SVG file: mean latency alone on the left, requests/s under load on the right.

    Raises `BenchError` where vl-convert is missing.
    """
    return draw.picture(spec(model, lines), f"Comparison of servers: {model}")


def spec(model: str, lines: Sequence[Line]) -> Spec:
    """The chart of `picture`. Bars begin at zero; ours first, then the others by speed."""
    alone = [line for line in lines if line["concurrency"] == 1]
    busy = [line for line in lines if line["concurrency"] != 1]
    names = _order(lines)
    load = sorted({int(line["concurrency"]) for line in busy if line["server"] != LIMIT})
    flight = f", {' or '.join(map(str, load))} requests in flight" if load else ""
    panels = [
        _panel(alone, names, "mean_us", "Mean latency, 1 request in flight (less is better)"),
        _panel(busy, names, "rate", f"Requests/s{flight} (more is better)"),
    ]
    below = ["In brackets: over sluicegate's, on the same kind of route. Thin line: up to p99."]
    if any(line["server"] == LIMIT for line in lines):
        below.append(
            "bare: the runtime alone, without a server; on the right a loop a core, rows/s."
        )
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "config": {**CONFIG, "axisY": {**CONFIG["axisY"], "labelOverlap": False}},
        "title": {"text": short(model), "subtitle": below},
        "spacing": 30,
        "hconcat": [panel for panel, has in zip(panels, (alone, busy), strict=True) if has],
    }


def _name(line: Line) -> str:
    return short(f"{line['server']} · {line['route']}", 34)


def _order(lines: Sequence[Line]) -> list[str]:
    """Names of servers and routes: ours first, the limit last, the others by requests/s."""
    best: dict[str, tuple[int, float]] = {}
    for line in lines:
        group = 0 if line["server"] == OURS else 2 if line["server"] == LIMIT else 1
        value = (group, -_number(line, "rate"))
        if line["concurrency"] == 1:
            value = (group, best.get(_name(line), value)[1])
        best[_name(line)] = value
    return sorted(best, key=lambda name: (best[name], name))


def _number(line: Line, key: str) -> float:
    value = line.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _panel(lines: Sequence[Line], names: Sequence[str], key: str, title: str) -> Spec:
    latency = key == "mean_us"
    rows: list[Row] = []
    for line in lines:
        known = isinstance(line.get(key), int | float)
        value = _number(line, key)
        said = (duration(value) if latency else rate(value)) if known else "does not count"
        ratio = line.get("ratio")
        if known and isinstance(ratio, int | float) and line["server"] != OURS:
            said += f" ({ratio:.2f}×)"
        if known and line.get("variant"):
            said += f" {line['variant']}"
        row: Row = {"name": _name(line), "side": _side(line), "value": value, "text": said}
        if latency and known and line.get("p99_us"):
            row["p99"] = _number(line, "p99_us")
        row["end"] = max(value, row.get("p99", 0.0))
        rows.append(row)
    others = max((row["end"] for row in rows if row["side"] != "limit"), default=0.0)
    for row in rows:
        if row["side"] == "limit" and row["end"] > FAR * others > 0:
            # Its bar would leave nothing of the others'.
            row.update(value=0.0, end=0.0, text=f"{row['text']}, beyond the scale")
            row.pop("p99", None)
    top = max((row["end"] for row in rows), default=1.0) or 1.0
    axis = marks.latency_zero_y("")["axis"] if latency else {"format": marks.NUMBER}
    x: Spec = {
        "type": "quantitative",
        "axis": {**axis, "title": None, "grid": True, "tickCount": 4},
        # Room for the words behind the longest bar.
        "scale": {"domain": [0, top * 1.5], "nice": False},
    }
    y: Spec = {
        "field": "name",
        "type": "nominal",
        "scale": {"domain": list(names)},
        "axis": marks.names_axis(),
    }
    tint: Spec = {
        "field": "side",
        "type": "nominal",
        "scale": {
            "domain": ["ours", "peer", "limit"],
            "range": [colour("ours"), colour("peer"), colour("limit")],
        },
        "legend": None,
    }
    return {
        "title": {"text": title, "fontSize": 12, "frame": "bounds", "offset": 8},
        "width": PANEL,
        "height": 26 * len(names),
        "data": {"values": rows},
        "layer": [
            {
                "mark": {"type": "bar", "height": {"band": 0.66}},
                "encoding": {"x": {**x, "field": "value"}, "y": y, "color": tint},
            },
            {
                "data": {"values": [row for row in rows if row.get("p99", 0.0) > row["value"]]},
                "mark": {"type": "rule", "color": INK.light, "strokeWidth": 1},
                "encoding": {"x": {**x, "field": "value"}, "x2": {"field": "p99"}, "y": y},
            },
            {
                "data": {"values": [row for row in rows if "p99" in row]},
                "mark": {"type": "tick", "thickness": 1.5, "color": INK.light, "size": 9},
                "encoding": {"x": {**x, "field": "p99"}, "y": y},
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 6, "color": INK.light},
                "encoding": {"x": {**x, "field": "end"}, "y": y, "text": {"field": "text"}},
            },
        ],
        "view": {"fill": PAPER.light, "stroke": None},
    }


def _side(line: Line) -> str:
    return {OURS: "ours", LIMIT: "limit"}.get(str(line["server"]), "peer")
