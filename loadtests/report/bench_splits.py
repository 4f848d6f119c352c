"""Charts of batches, versions and errors."""

from __future__ import annotations

from collections.abc import Sequence

from loadtests.bench.results import Point, Result

from . import look, marks
from .bench_time import span
from .levels import Level, Second, levels
from .look import Spec, colour
from .marks import Row
from .words import digits, share, short

MOST_VERSIONS = 8
"""Of a chart; the rarest beyond that are drawn as one."""
OTHERS = "others"


def batches_over_time(found: Sequence[Level], seconds: Sequence[Second]) -> Spec | None:
    """Rows of a batch, on average."""
    known = [second for second in seconds if second.tick.batch_rows is not None]
    if not known:
        return None
    x, behind = span(found)
    across = {**x, "field": "at"}
    rows: list[Row] = [
        {
            "at": second.row()["at"],
            "level": second.level.name,
            "rows": second.tick.batch_rows,
            "Level": second.level.name,
            "Rows a batch": digits(second.tick.batch_rows or 0.0),
        }
        for second in known
    ]
    layers: list[Spec] = [
        *behind,
        {
            "data": {"values": rows},
            "mark": {
                "type": "line",
                "color": colour("batch"),
                "point": {"size": 12, "color": colour("batch")} if len(rows) < 200 else False,
            },
            "encoding": {
                "x": across,
                "y": {**marks.zero_y("rows of a batch (mean)", form="~g"), "field": "rows"},
                "detail": {"field": "level"},
            },
        },
        marks.hover(rows, across, ["Level", "Rows a batch"]),
    ]
    return marks.frame(layers, height=200)


def batch_sizes(result: Result, first: Point | None) -> Spec | None:
    """How often batches of each size were executed, one level at a time, ``first`` at first."""
    rows: list[Row] = []
    names: list[str] = []
    chosen = ""
    largest = 1
    for level in levels(result):
        sizes = _sizes(level.point)
        total = sum(sizes.values())
        if not total:
            continue
        names.append(level.name)
        if level.point is first or not chosen:
            chosen = level.name
        largest = max(largest, *sizes)
        rows += [
            {
                "level": level.name,
                "rows": size,
                "share": batches / total,
                "Rows": f"{size:,}",
                "Batches": f"{batches:,} ({share(batches / total)})",
            }
            for size, batches in sorted(sizes.items())
        ]
    if not rows:
        return None
    width = 1 if largest <= 150 else -(-largest // 100)
    for row in rows:
        row["from"], row["to"] = row["rows"] - 0.42 * width, row["rows"] + 0.42 * width
    x: Spec = {
        "field": "from",
        "type": "quantitative",
        "axis": {"title": "rows of a batch", "format": ",~f", "tickMinStep": 1},
        "scale": {"domain": [0, largest + width], "nice": False},
    }
    bar: Spec = {
        "mark": {"type": "rect", "color": colour("batch")},
        "encoding": {
            "x": x,
            "x2": {"field": "to"},
            "y": {
                **marks.zero_y("share of the batches", form=".0%"),
                "field": "share",
            },
            "y2": {"datum": 0},
            "tooltip": marks.tips("level", "Rows", "Batches"),
        },
    }
    more = marks.one_at_a_time([bar], names, chosen)
    return marks.frame([bar], height=200, data={"values": rows}, **more)


def _sizes(point: Point) -> dict[int, int]:
    """Rows → batches, of those keys that are numbers."""
    if not point.server:
        return {}
    return {
        int(size): batches
        for size, batches in point.server.batch_sizes.items()
        if size.isascii() and size.isdigit() and len(size) < 10 and batches > 0
    }


def version_names(result: Result) -> list[str]:
    """Versions that answered or should have, numbers in order; the rarest are left out."""
    answers: dict[str, int] = dict.fromkeys(result.expected_split, 0)
    for point in result.points:
        for version, count in point.versions.items():
            answers[version] = answers.get(version, 0) + count
    kept = sorted(answers, key=lambda version: (-answers[version], version))
    if len(kept) > MOST_VERSIONS:
        kept = kept[: MOST_VERSIONS - 1]
    return sorted(kept, key=lambda name: (not name.isdecimal(), len(name), name))


def versions_over_time(
    result: Result, found: Sequence[Level], seconds: Sequence[Second]
) -> Spec | None:
    """Share of each version in the answers; dashed: where the declared split has its borders."""
    known = [second for second in seconds if sum(second.tick.versions.values())]
    kept = version_names(result)
    if not known or (len(kept) < 2 and len(result.expected_split) < 2):
        return None
    x, behind = span(found)
    y: Spec = {
        "type": "quantitative",
        "axis": {"title": "share of the answers", "format": ".0%", "tickCount": 5},
        "scale": {"domain": [0, 1], "nice": False},
    }
    labels = {version: short(f"version {version}") for version in kept}
    names = list(labels.values())
    rows: list[Row] = []
    for second in known:
        counts = second.tick.versions
        total = sum(counts.values())
        shares = [counts.get(version, 0) / total for version in kept]
        pairs = list(zip(labels.values(), shares, strict=True))
        if any(version not in labels for version in counts):
            pairs.append((OTHERS, max(0.0, 1 - sum(shares))))
            if OTHERS not in names:
                names.append(OTHERS)
        below = 0.0
        for name, part in pairs:
            rows.append(
                {
                    "from": second.at,
                    "to": second.at + second.tick.seconds,
                    "low": below,
                    "high": below + part,
                    "version": name,
                    "Level": second.level.name,
                    "Share": share(part),
                    "Answers": f"{round(part * total):,} of {total:,}",
                }
            )
            below += part
    borders: list[Row] = []
    border = 0.0
    for version in kept:
        border += result.expected_split.get(version, 0.0)
        if 0 < border < 1:
            borders.append({"at": border})
    tints = look.kinds(len(names))
    layers: list[Spec] = [
        {
            "data": {"values": rows},
            "mark": {"type": "rect", "strokeWidth": 0.6},
            "encoding": {
                "x": {**x, "field": "from"},
                "x2": {"field": "to"},
                "y": {**y, "field": "low"},
                "y2": {"field": "high"},
                "color": marks.coloured("version", names, tints),
                # Without a rim, the paper shines through between neighbours.
                "stroke": marks.coloured("version", names, tints),
                "tooltip": marks.tips("version", "Level", "Share", "Answers"),
            },
        },
        *[layer for layer in behind if layer["mark"]["type"] != "rect"],
        {
            "data": {"values": borders},
            "mark": {
                "type": "rule",
                "color": look.INK.light,
                "strokeDash": [6, 4],
                "strokeWidth": 1.5,
            },
            "encoding": {"y": {**y, "field": "at"}},
        },
    ]
    return marks.frame(layers, height=200)


def errors_by_kind(result: Result) -> Spec | None:
    """Failed requests of the whole run, by what went wrong."""
    counts: dict[str, int] = {}
    for point in result.points:
        for kind, count in point.errors.items():
            name = short(kind) or "unnamed"
            counts[name] = counts.get(name, 0) + count
    counts = {kind: count for kind, count in counts.items() if count > 0}
    if not counts:
        return None
    order = sorted(counts, key=lambda kind: (-counts[kind], kind))
    if len(order) > 20:
        rest = sum(counts[kind] for kind in order[19:])
        order = [*order[:19], f"{len(order) - 19} other kinds"]
        counts[order[-1]] = rest
    rows: list[Row] = [
        {"kind": kind, "count": counts[kind], "text": f"{counts[kind]:,}"} for kind in order
    ]
    y: Spec = {
        "field": "kind",
        "type": "nominal",
        "sort": None,
        "axis": marks.names_axis(),
    }
    x: Spec = {
        "field": "count",
        "type": "quantitative",
        "axis": {
            "title": "requests",
            "format": marks.NUMBER,
            "grid": True,
            "tickMinStep": 1,
            "tickCount": 6,
        },
        "scale": {"zero": True},
    }
    return marks.frame(
        [
            {
                "mark": {"type": "bar", "color": colour("failed"), "height": {"band": 0.62}},
                "encoding": {"x": x, "y": y},
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 5, "color": look.INK.light},
                "encoding": {"x": x, "y": y, "text": {"field": "text"}},
            },
        ],
        height=30 * len(rows) + 10,
        data={"values": rows},
    )
