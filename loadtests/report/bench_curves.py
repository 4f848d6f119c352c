"""Percentile curves of a benchmark: every latency from the smallest to the largest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from loadtests.bench.results import Point, Result

from . import curves, marks
from .levels import MARKS, levels, spread_out
from .look import Spec
from .marks import Row
from .words import duration

_NINES_LABEL: Final = (
    "datum.value == 0 ? '0 %' : "
    "format(100 - 100 * pow(10, -datum.value), '.' + max(0, datum.value - 2) + 'f') + ' %'"
)


def percentile_curves(named: Sequence[tuple[str, str, Point]]) -> Spec | None:
    """(name, colour, point) → latency from the smallest to the largest, over "nines".

    A full line counts from when a request was due, a dashed one from when it left (open loop only).
    Faint: fewer than ten requests lie beyond, or they were not answered.
    """
    rows: list[Row] = []
    kinds = ["from when it was due", "from when it left"]
    for name, _, point in named:
        if point.load.open:
            sources = list(zip(kinds, (point.latency, point.service), strict=True))
        else:
            sources = [(kinds[1], point.latency)]
        for kind, latency in sources:
            points = curves.curve(latency.histogram)
            for number, (nines, us, sure) in enumerate(points, 1):
                percent = 100.0 if number == len(points) else 100 * (1 - 10**-nines)
                least = latency is point.latency and point.at_least(percent)
                rows.append(
                    {
                        "nines": nines,
                        "us": max(us, 1.0),
                        "level": name,
                        "kind": kind,
                        "few": least or not sure,
                        "Percentile": _percentile(nines),
                        "Latency": MARKS["at least" if least else "well"] + duration(us),
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
