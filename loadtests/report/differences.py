"""The page of ``sluice bench --compare``: two results beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loadtests.bench.differences import BETTER, UNKNOWN, WORSE, Change, Differences, Level
from loadtests.bench.results import Point, Result, dump
from loadtests.bench.text import verdict

from . import bench_curves, marks, page
from .levels import MARKS, at, level_name, marks_explained, of_one_kind, offered, told
from .look import KINDS, Spec
from .marks import Row
from .page import Banner, Block, Card, Cards, Facts, Figure, Section, Table, Text, Tone
from .words import between, digits, duration, joined, rate, share

SIDES = ("A", "B")
TINTS = (KINDS[0].light, KINDS[1].light)


def render(a: Result, b: Result, found: Differences) -> str:
    """The page of what `loadtests.bench.differences.compare` found of ``a`` and ``b``.

    Raises `BenchError` where vl-convert or hdrhistogram is missing, or a histogram is damaged.
    """
    name = a.target.model
    title = name if name == b.target.model else f"{name} and {b.target.model}"
    about = [f"{side}: {_about(result)}" for side, result in zip(SIDES, (a, b), strict=True)]
    sections = [
        Section("", _verdict(found)),
        Section("Figure by figure", [*_table(found), *_marks(a, b)]),
        Section("Against load", _against_load(a, b)),
        Section("Every percentile", _curves(a, b, found)),
        Section("How they were measured", _facts(a, b)),
    ]
    return page.render(
        title or "unnamed model",
        "Comparison of two load tests",
        about,
        [section for section in sections if section.blocks],
        {"a.json": dump(a).decode(), "b.json": dump(b).decode()},
    )


def _about(result: Result) -> str:
    server = result.versions.get("server", "")
    return " · ".join(
        part for part in (result.started.replace("T", " ")[:16] + " UTC", server) if part
    )


def _changes(found: Differences) -> list[tuple[str, Change]]:
    every = [(level.name, change) for level in found.levels for change in level.changes]
    return [("search", found.best), *every] if found.best else every


def _verdict(found: Differences) -> list[Block]:
    every = _changes(found)
    worse = [(name, change) for name, change in every if change.fails]
    better = [(name, c) for name, c in every if c.verdict == BETTER and c.beyond]
    unknown = [change for _, change in every if change.verdict == UNKNOWN]
    same = len(every) - len(worse) - len(better) - len(unknown)
    limit = share(found.tolerance)
    if all(change.sure for _, change in worse or better or every):
        limit += " and more than chance explains"
    if worse:
        named = [f"{change.metric} ({name}) {_change_in_words(change)}" for name, change in worse]
        more = [f"and {len(named) - 5} more"] if len(named) > 5 else []
        banner = Banner("B is worse than A", [f"By more than {limit}:", *named[:5], *more], "bad")
    elif better:
        banner = Banner(
            "B is better than A",
            [f"By more than {limit}, in {len(better)} of {len(every)} figures; worse in none."],
            "good",
        )
    else:
        where = f" in {len(every) - len(unknown)} of {len(every)} figures" if unknown else ""
        banner = Banner("No difference", [f"None by more than {limit}{where}."], "good")
    cards = [
        Card("worse", str(len(worse)), f"of {len(every)} figures", "bad" if worse else "plain"),
        Card("the same", str(same), "within chance or tolerance"),
        Card("better", str(len(better)), "", "good" if better else "plain"),
    ]
    if unknown:
        cards.append(Card("not known", str(len(unknown)), "requests had no answer", "warn"))
    return [banner, Cards(cards), *[Text(note, "warn") for note in found.notes]]


def _change_in_words(change: Change) -> str:
    a, b = _sides(change)
    return f"from {a} to {b}" + (f", {change.ratio:.2f} times" if change.ratio else "")


def _sides(change: Change) -> tuple[str, str]:
    """A's figure and B's."""
    said = _say(change)
    return MARKS[change.a_known] + said(change.a), MARKS[change.b_known] + said(change.b)


def _say(change: Change) -> Callable[[float], str]:
    if change.metric in ("p50", "p99"):
        return duration
    if change.metric == "errors":
        return share
    return rate if change.metric == "rate" else digits


def _table(found: Differences) -> list[Block]:
    rows: list[list[str]] = []
    tones: dict[tuple[int, int], Tone] = {}
    for name, change in _changes(found):
        tone: Tone = {BETTER: "good", WORSE: "bad"}.get(change.verdict, "plain")  # type: ignore[assignment]
        if not change.beyond:
            tone = "plain"
        tones[(len(rows), 5)] = tone
        ratio = "–" if change.ratio is None else f"{change.ratio:.2f}"
        a, b = _sides(change)
        rows.append([name, change.metric, a, b, ratio, verdict(change)])
    blocks: list[Block] = [
        Table(["load", "figure", "A", "B", "B / A", ""], rows, frozenset({2, 3, 4}), tones)
    ]
    blocks += [
        Text(f"{level.name}: {note}", "warn") for level in found.levels for note in level.notes
    ]
    return blocks


def _marks(a: Result, b: Result) -> list[Block]:
    said = marks_explained([*a.points, *b.points], (50, 99))
    return [Text(said)] if said else []


def _against_load(a: Result, b: Result) -> list[Block]:
    points = [*a.points, *b.points]
    loads = {offered(point) for point in points if point.latency.count}
    opened = all(point.load.open for point in points)
    if len(loads) < 2 or not (of_one_kind(a) and of_one_kind(b)):
        return []
    if len({point.load.open for point in points}) > 1:
        return []
    title = "offered load (requests/s)" if opened else "requests in flight"
    return [
        Figure(
            "p99 against load",
            _lines(a, b, title, p99=True),
            f"Vertical lines: 95 % confidence. {marks.worth(p.known(99) for p in points)}".strip(),
        ),
        Figure("Requests answered against load", _lines(a, b, title, p99=False)),
    ]


def _lines(a: Result, b: Result, title: str, *, p99: bool) -> Spec:
    rows: list[Row] = []
    for side, result in zip(SIDES, (a, b), strict=True):
        for point in sorted(result.points, key=offered):
            if p99 and not point.latency.count:
                continue
            value = max(at(point.latency, 99) or 0.0, 1.0) if p99 else point.rate
            worth = point.known(99) if p99 else "well"
            known = point.latency.p99 if p99 else point.rate_ci
            if worth != "well":
                known = None
            row: Row = {
                "load": offered(point),
                "side": side,
                "value": value,
                "known": worth,
                "Load": level_name(point),
                "Value": told(point, 99) if p99 else rate(value),
                "95 %": between(known, "duration" if p99 else "rate"),
            }
            if known:
                row |= {"low": max(known.low, 1.0 if p99 else 0.0), "high": known.high}
            rows.append(row)
    x = {**marks.load_x([row["load"] for row in rows], title), "field": "load"}
    if p99:
        reach = [row[key] for row in rows for key in ("value", "low", "high") if key in row]
        y = marks.log_y(reach, "p99")
    else:
        y = marks.zero_y("answered (requests/s)")
    tint = marks.coloured("side", SIDES, TINTS)
    encoding: Spec = {"x": x, "y": {**y, "field": "value"}, "color": tint}
    shape: Spec = {
        "field": "side",
        "type": "nominal",
        "sort": None,
        "scale": {"domain": list(SIDES), "range": ["circle", "square"]},
    }
    layers: list[Spec] = [
        {"mark": {"type": "line"}, "encoding": encoding},
        {
            "data": {"values": [row for row in rows if "low" in row]},
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.7},
            "encoding": {**encoding, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
        },
        {
            "mark": marks.dots(),
            "encoding": {
                **encoding,
                "shape": shape,
                "opacity": marks.FAINT,
                "tooltip": marks.tips("side", "Load", "Value", "95 %"),
            },
        },
        *marks.arrows(rows, encoding),
    ]
    return marks.frame(layers, data={"values": rows})


def _curves(a: Result, b: Result, found: Differences) -> list[Block]:
    blocks: list[Block] = []
    for level in _chosen(found.levels):
        points = [_named(result, level.name) for result in (a, b)]
        named = [
            (side, tint, point)
            for side, tint, point in zip(SIDES, TINTS, points, strict=True)
            if point is not None and point.latency.count
        ]
        spec = bench_curves.percentile_curves(named) if named else None
        if spec:
            blocks.append(Figure(f"Latency by percentile at {level.name}", spec))
    without = [
        side
        for side, result in zip(SIDES, (a, b), strict=True)
        if any(point.latency.count and not point.latency.histogram for point in result.points)
    ]
    if without:
        blocks.append(
            Text(f"{joined(without)}: measured without hdrhistogram, so there are no histograms.")
        )
    return blocks


def _chosen(every: Sequence[Level]) -> list[Level]:
    """Up to four levels: those that differ first."""
    ordered = sorted(every, key=lambda level: not level.fails)
    kept = [level.name for level in ordered[:4]]
    return [level for level in every if level.name in kept]


def _named(result: Result, name: str) -> Point | None:
    return next((point for point in result.points if point.load.name == name), None)


def _facts(a: Result, b: Result) -> list[Block]:
    blocks: list[Block] = []
    for side, result in zip(SIDES, (a, b), strict=True):
        blocks.append(Facts([(f"{side}: command", result.command)], code=True))
    names = sorted({*a.machine, *b.machine, *a.versions, *b.versions})
    first, second = ({**result.machine, **result.versions} for result in (a, b))
    rows = [["requests", a.payload, b.payload]]
    rows += [[name, first.get(name, "–"), second.get(name, "–")] for name in names]
    tones: dict[tuple[int, int], Tone] = {
        (i, 2): "warn" for i, row in enumerate(rows) if row[1] != row[2]
    }
    blocks.append(Table(["", "A", "B"], rows, frozenset(), tones))
    different = [row[0] for row in rows if row[1] != row[2]]
    if different:
        blocks.append(Text(f"Not the same in both: {joined(different)}."))
    return blocks
