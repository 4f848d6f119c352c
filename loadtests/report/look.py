"""Colours, type and sizes: the same thing has the same colour in every chart and page.

Charts are drawn in the colours of a light page. `dark_rules` gives the CSS that turns each of them
into its counterpart on a dark one, so that one picture serves both, in a page and alone. Colours
differ in lightness too, and lines in their dashes: they stay apart for colour-blind readers and in
print.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

Spec = dict[str, Any]
"""A Vega-Lite chart, or a part of one."""


class Colour(NamedTuple):
    """One meaning, on a light and on a dark page."""

    light: str
    dark: str


PAPER: Final = Colour("#ffffff", "#16191f")
INK: Final = Colour("#1c2128", "#e8eaee")
SOFT: Final = Colour("#5b6472", "#a3acb9")
AXIS: Final = Colour("#9aa2ae", "#5d6674")
GRID: Final = Colour("#e6e9ed", "#2a303a")
SHADE: Final = Colour("#eef0f3", "#22272f")
"""Behind the time of a warm-up."""

THINGS: Final[dict[str, Colour]] = {
    "p50": Colour("#6cb4ee", "#8fcbfa"),
    "p90": Colour("#2b6cb0", "#5a9be0"),
    "p99": Colour("#d9570a", "#ff9248"),
    "p99.9": Colour("#7f2704", "#d4673a"),
    "mean": Colour("#4b4f9b", "#9c9ff0"),
    "answered": Colour("#0b8a6a", "#34c99e"),
    "offered": Colour("#59616d", "#aeb6c2"),
    "failed": Colour("#b0123f", "#ff6b8f"),
    "refused": Colour("#d8a200", "#f0c542"),
    "cancelled": Colour("#8b95a3", "#7b8594"),
    "waiting to leave": Colour("#a2428f", "#dd86cc"),
    "queue": Colour("#e69f00", "#f2b632"),
    "execute": Colour("#117a65", "#3db99c"),
    "the rest": Colour("#bcc3cc", "#68717f"),
    "batch": Colour("#5e4fa2", "#a598ea"),
    "memory": Colour("#6a3d9a", "#b68fe0"),
    "children": Colour("#a67fc9", "#7d5fa3"),
    "descriptors": Colour("#80731d", "#cdbd4d"),
    "threads": Colour("#1f8a9e", "#54c5da"),
    "client": Colour("#8a5a2b", "#d0a06a"),
    "event": Colour("#434b57", "#c3cad4"),
    "ours": Colour("#0072b2", "#4fb0e8"),
    "peer": Colour("#aab4c0", "#6b7685"),
    "limit": Colour("#3f4650", "#d5dae1"),
}

LEVELS: Final = (
    Colour("#440154", "#c79be0"),
    Colour("#46327e", "#a09df5"),
    Colour("#365c8d", "#6fa8f0"),
    Colour("#277f8e", "#45bcd0"),
    Colour("#1fa187", "#3fd0ae"),
    Colour("#4ac16d", "#86df7a"),
    Colour("#9fc61f", "#cdeb4e"),
    Colour("#c9a800", "#fde047"),
)
"""Levels of load, from low to high."""

KINDS: Final = (
    Colour("#0173b2", "#56b4f2"),
    Colour("#de8f05", "#f5b041"),
    Colour("#029e73", "#2fd3a5"),
    Colour("#cc78bc", "#e3a0d6"),
    Colour("#ca6140", "#f08a68"),
    Colour("#56706f", "#9fbcba"),
    Colour("#997a00", "#e0c040"),
    Colour("#7a3e9d", "#bf8ae0"),
)
"""Things that have no order: versions, series of a chart."""

FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
WIDTH: Final = 760
HEIGHT: Final = 260
LONGEST: Final = 48
"""Characters of a name in a chart."""


def colour(thing: str) -> str:
    """The colour of one of `THINGS`, as it is drawn."""
    return THINGS[thing].light


def levels(count: int) -> list[str]:
    """Colours for ``count`` levels, spread over all that there are; more than those repeat."""
    last = len(LEVELS) - 1
    if count <= 1:
        return [LEVELS[2].light]
    if count <= len(LEVELS):
        return [LEVELS[round(i * last / (count - 1))].light for i in range(count)]
    return [LEVELS[i % len(LEVELS)].light for i in range(count)]


def kinds(count: int) -> list[str]:
    """Colours for ``count`` things without an order; more than there are repeat."""
    return [KINDS[i % len(KINDS)].light for i in range(count)]


def all_colours() -> list[Colour]:
    """Every colour that a chart may use; no two are drawn alike."""
    return [PAPER, INK, SOFT, AXIS, GRID, SHADE, *THINGS.values(), *LEVELS, *KINDS]


def dark_rules(scope: str = "") -> str:
    """CSS that turns the colours of charts below ``scope`` into their dark counterparts."""
    return "".join(
        f'{scope}[{part}="{pair.light}"]{{{part}:{pair.dark}}}'
        for pair in all_colours()
        for part in ("fill", "stroke")
    )


CONFIG: Final[Spec] = {
    "aria": False,
    "background": PAPER.light,
    "font": FONT,
    "padding": {"left": 12, "right": 12, "top": 6, "bottom": 6},
    "view": {"stroke": None},
    "title": {
        "anchor": "start",
        "color": INK.light,
        "fontSize": 15,
        "fontWeight": 600,
        "frame": "group",
        "offset": 14,
        "subtitleColor": SOFT.light,
        "subtitleFontSize": 12,
        "subtitlePadding": 4,
    },
    "axis": {
        "domainColor": AXIS.light,
        "gridColor": GRID.light,
        "labelColor": SOFT.light,
        "labelFontSize": 11,
        "labelLimit": 320,
        "labelPadding": 6,
        "tickColor": AXIS.light,
        "tickSize": 4,
        "titleColor": SOFT.light,
        "titleFontSize": 12,
        "titleFontWeight": 400,
        "titlePadding": 10,
    },
    "axisX": {"grid": False, "labelOverlap": "greedy", "labelSeparation": 8},
    "axisY": {"domain": False, "labelOverlap": "greedy", "ticks": False},
    "legend": {
        "columnPadding": 18,
        "columns": 0,
        "labelColor": INK.light,
        "labelFontSize": 12,
        "labelLimit": 240,
        "layout": {"top": {"anchor": "start", "direction": "vertical", "margin": 4}},
        "offset": 12,
        "orient": "top",
        "symbolSize": 90,
        "symbolStrokeWidth": 2.5,
        "title": None,
    },
    "line": {"interpolate": "linear", "strokeCap": "round", "strokeWidth": 2},
    "rule": {"color": SOFT.light},
    "text": {"color": SOFT.light, "fontSize": 11},
    "bar": {"color": THINGS["answered"].light},
}
