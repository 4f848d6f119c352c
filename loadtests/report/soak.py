"""The report of a soak: what went in and came out over time, and whether anything grew."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

from . import draw, marks, page
from .look import CONFIG, Spec, colour, kinds
from .marks import Row
from .page import Banner, Block, Card, Cards, Facts, Figure, Section, Table, Text, Tone
from .words import digits, duration, joined, rate, seconds, short

MOST_SAMPLES = 600
"""Of a chart; more are drawn together."""
MOST_RULES = 60
"""Events that are drawn across the charts; more are in the strip of events only."""
MOST_KINDS = 12


@dataclass(frozen=True)
class Sample:
    """What was seen in one interval of a soak, ``seconds`` long and beginning at ``at_s``."""

    at_s: float
    """Seconds from the start of the soak."""
    seconds: float
    ok: int
    """Requests answered well in this interval."""
    failed: int = 0
    """Requests that should have been answered and were not: lost."""
    refused: int = 0
    """Requests refused as they should be: bad input, overload, a deadline of their own."""
    cancelled: int = 0
    """Requests that their callers gave up."""
    p50_us: float | None = None
    p99_us: float | None = None
    memory_mib: float | None = None
    """Resident, of the gateway's own process; ``None`` where it was not read."""
    children_mib: float | None = None
    """Resident, of the processes that it started, together."""
    descriptors: int | None = None
    """Open file descriptors of the gateway's own process."""
    threads: int | None = None
    processes: int | None = None
    """The gateway's and its children."""


@dataclass(frozen=True)
class Event:
    """Something that was done to the server while it served."""

    at_s: float
    kind: str
    """A word or two, the same for the same thing: ``swap``, ``runtime killed``, ``bad input``."""
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """One thing that had to hold."""

    name: str
    """``no lost request``, ``memory does not grow``."""
    passed: bool
    found: str
    """With its unit, ready to be read: ``+0.3 MiB an hour``."""
    allowed: str = ""


@dataclass(frozen=True)
class Soak:
    """A whole soak."""

    samples: list[Sample]
    events: list[Event] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    started: str = ""
    """UTC, ISO 8601."""
    command: str = ""
    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def files(found: Soak) -> dict[str, str]:
    """``soak.html``, the whole page, and ``soak.svg``, its charts for a document.

    Raises `BenchError` where vl-convert is missing.
    """
    return {"soak.html": render(found), "soak.svg": picture(found)}


def render(found: Soak) -> str:
    """The page of a soak. Raises `BenchError` where vl-convert is missing."""
    failed = [verdict for verdict in found.verdicts if not verdict.passed]
    date = found.started.replace("T", " ")[:16]
    about = [f"{date} UTC" if date else "", _length(found), _asked(found)]
    sections = [
        Section("", [*_verdict(found, failed), _verdict_table(found)]),
        Section("Over time", _figures(found)),
        Section("What was done to it", _events(found)),
        Section("How it was measured", _facts(found)),
    ]
    document = json.dumps(asdict(found), indent=1)
    return page.render("Soak", "Load test", about, sections, {"soak.json": document})


def picture(found: Soak) -> str:
    """The charts below each other as one SVG file."""
    x = _x(found)
    panels = [(title, spec) for title, spec, _ in _charts(found, x)]
    parts = []
    for i, (title, spec) in enumerate(panels):
        part = {key: value for key, value in spec.items() if key not in ("$schema", "config")}
        part["title"] = {"text": title, "fontSize": 12, "offset": 6}
        part["height"] = min(part["height"], 120)
        if i < len(panels) - 1:
            part = _untitled(part)
        parts.append(part)
    whole: Spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "config": CONFIG,
        "title": {"text": "Soak", "subtitle": f"{_length(found)}, {_asked(found)}"},
        "spacing": 16,
        "resolve": {
            "scale": {"color": "independent"},
            "legend": {"color": "independent"},
        },
        "vconcat": parts,
    }
    return draw.picture(whole, f"Soak: {_length(found)}")


def _untitled(part: Spec) -> Spec:
    """Without the title of the axis of time, which the last chart has for all."""
    layers = []
    for layer in part["layer"]:
        encoding = dict(layer["encoding"])
        if "x" in encoding:
            encoding["x"] = {**encoding["x"], "axis": {**encoding["x"]["axis"], "title": None}}
        layers.append({**layer, "encoding": encoding})
    return {**part, "layer": layers}


def _length(found: Soak) -> str:
    return seconds(_end(found))


def _end(found: Soak) -> float:
    ends = [sample.at_s + sample.seconds for sample in found.samples]
    return max([*ends, *(event.at_s for event in found.events)], default=0.0)


def _asked(found: Soak) -> str:
    return f"{sum(sample.ok for sample in found.samples):,} requests answered"


def _verdict(found: Soak, failed: Sequence[Verdict]) -> list[Block]:
    if not found.verdicts:
        banner = Banner("Nothing was judged", ["The soak holds no verdicts."], "warn")
    elif failed:
        lines = [f"{v.name}: {v.found}, allowed {v.allowed or 'nothing'}" for v in failed]
        banner = Banner(f"{len(failed)} of {len(found.verdicts)} did not hold", lines[:8], "bad")
    else:
        banner = Banner("Everything held", [joined([v.name for v in found.verdicts])], "good")
    total = {
        name: sum(getattr(sample, name) for sample in found.samples)
        for name in ("ok", "failed", "refused", "cancelled")
    }
    lost: Tone = "bad" if total["failed"] else "good"
    every = sum(total.values())
    cards = [
        Card("answered", f"{total['ok']:,}", rate(total["ok"] / max(_end(found), 1e-9))),
        Card("lost", f"{total['failed']:,}", f"of {every:,} requests", lost),
        Card("refused, as they should be", f"{total['refused']:,}", ""),
        Card("cancelled by callers", f"{total['cancelled']:,}", ""),
        Card("swaps, kills and the like", f"{len(found.events):,}", ""),
    ]
    memory = [sample.memory_mib for sample in found.samples if sample.memory_mib is not None]
    if memory:
        cards.append(
            Card(
                "memory at the end",
                f"{digits(memory[-1])} MiB",
                f"largest {digits(max(memory))} MiB",
            )
        )
    return [banner, Cards(cards)]


def _verdict_table(found: Soak) -> Block:
    tones: dict[tuple[int, int], Tone] = {
        (i, 3): "good" if verdict.passed else "bad" for i, verdict in enumerate(found.verdicts)
    }
    rows = [
        [
            verdict.name,
            verdict.found,
            verdict.allowed or "–",
            "held" if verdict.passed else "did not hold",
        ]
        for verdict in found.verdicts
    ]
    return Table(["what had to hold", "found", "allowed", ""], rows, frozenset(), tones)


def _figures(found: Soak) -> list[Block]:
    return [Figure(title, spec, caption) for title, spec, caption in _charts(found, _x(found))]


def _x(found: Soak) -> Spec:
    """Time in minutes, or seconds for a short soak."""
    end = max(_end(found), 1.0)
    return marks.time_x(0, end / _unit(found), "seconds" if end < 180 else "minutes")


def _unit(found: Soak) -> float:
    return 1.0 if _end(found) < 180 else 60.0


def _charts(found: Soak, x: Spec) -> list[tuple[str, Spec, str]]:
    samples = thinned(found.samples)
    unit = _unit(found)
    made: list[tuple[str, Spec | None, str]] = [
        ("Events", _strip(found, x, unit), ""),
        (
            "Requests (a second)",
            _lines(found, x, samples, marks.zero_y("requests/s"), [
                ("answered", lambda s: s.ok / s.seconds),
                ("refused", lambda s: s.refused / s.seconds),
                ("cancelled", lambda s: s.cancelled / s.seconds),
                ("failed", lambda s: s.failed / s.seconds),
            ]),
            "Failed: lost, or answered wrongly. Refused and cancelled are as they should be.",
        ),
        (
            "Latency (p50 and p99)",
            _lines(
                found,
                x,
                samples,
                marks.log_y([v for s in samples for v in (s.p50_us, s.p99_us)], "latency"),
                [("p50", lambda s: s.p50_us), ("p99", lambda s: s.p99_us)],
            ),
            "",
        ),
        (
            "Resident memory (MiB)",
            _lines(found, x, samples, marks.zero_y("MiB"), [
                ("memory", lambda s: s.memory_mib), ("children", lambda s: s.children_mib),
            ]),
            "Memory: the gateway's process. Children: the processes that it started, together.",
        ),
        (
            "File descriptors and threads",
            _lines(found, x, samples, marks.zero_y("count"), [
                ("descriptors", lambda s: s.descriptors), ("threads", lambda s: s.threads),
            ]),
            "",
        ),
    ]  # fmt: skip
    return [(title, spec, caption) for title, spec, caption in made if spec is not None]


def thinned(samples: Sequence[Sample]) -> list[Sample]:
    """At most `MOST_SAMPLES`: neighbours together, counts added, the largest of what may grow."""
    kept = [sample for sample in samples if sample.seconds > 0]
    together = -(-len(kept) // MOST_SAMPLES)
    if together <= 1:
        return kept
    return [_merged(kept[i : i + together]) for i in range(0, len(kept), together)]


def _merged(samples: Sequence[Sample]) -> Sample:
    def largest(name: str) -> float | None:
        known = [getattr(s, name) for s in samples if getattr(s, name) is not None]
        return max(known, default=None)

    most = {
        name: largest(name)
        for name in (
            "p50_us", "p99_us", "memory_mib", "children_mib", "descriptors", "threads", "processes",
        )
    }  # fmt: skip
    counts = {
        name: sum(getattr(s, name) for s in samples)
        for name in ("ok", "failed", "refused", "cancelled")
    }
    length = sum(sample.seconds for sample in samples)
    return Sample(samples[0].at_s, length, **counts, **most)  # type: ignore[arg-type]


def _lines(
    found: Soak,
    x: Spec,
    samples: Sequence[Sample],
    y: Spec,
    wanted: Sequence[tuple[str, Callable[[Sample], float | None]]],
) -> Spec | None:
    unit = _unit(found)
    rows: list[Row] = []
    known = []
    for name, read in wanted:
        values = [read(sample) for sample in samples]
        if any(value is not None and value > 0 for value in values):
            known.append(name)
            rows += [
                {"at": round((s.at_s + s.seconds / 2) / unit, 4), "what": name, "y": value}
                for s, value in zip(samples, values, strict=True)
            ]
    if not known:
        return None
    across = {**x, "field": "at"}
    about = [_about(sample, unit) for sample in samples]
    layers: list[Spec] = [
        *_rules(found, x, unit),
        {
            "mark": {"type": "line", "strokeWidth": 1.6, "point": len(samples) == 1},
            "encoding": {
                "x": across,
                "y": {**y, "field": "y"},
                "color": marks.coloured("what", known, line=True),
            },
        },
        marks.hover(about, across, [name for name in about[0] if name != "at"]),
    ]
    return marks.frame(layers, height=190, data={"values": rows})


def _about(sample: Sample, unit: float) -> Row:
    return {
        "at": round((sample.at_s + sample.seconds / 2) / unit, 4),
        "At": seconds(sample.at_s),
        "Answered": rate(sample.ok / sample.seconds),
        "Failed": f"{sample.failed:,}",
        "Refused": f"{sample.refused:,}",
        "p50": duration(sample.p50_us),
        "p99": duration(sample.p99_us),
        "Memory": "–" if sample.memory_mib is None else f"{digits(sample.memory_mib)} MiB",
        "Descriptors": "–" if sample.descriptors is None else f"{sample.descriptors:,}",
        "Threads": "–" if sample.threads is None else f"{sample.threads:,}",
    }


def _rules(found: Soak, x: Spec, unit: float) -> list[Spec]:
    """Thin lines where something was done, unless there are too many to tell apart."""
    if not found.events or len(found.events) > MOST_RULES:
        return []
    rows = [{"at": round(event.at_s / unit, 4)} for event in found.events]
    return [
        {
            "data": {"values": rows},
            "mark": {"type": "rule", "color": colour("event"), "opacity": 0.28, "strokeWidth": 1},
            "encoding": {"x": {**x, "field": "at"}},
        }
    ]


def event_kinds(found: Soak) -> list[str]:
    """Kinds of events, the most frequent first; the rarest beyond `MOST_KINDS` share one name."""
    counts: dict[str, int] = {}
    for event in found.events:
        kind = short(event.kind, 32)
        counts[kind] = counts.get(kind, 0) + 1
    return sorted(counts, key=lambda kind: (-counts[kind], kind))


def _strip(found: Soak, x: Spec, unit: float) -> Spec | None:
    """One row of marks for each kind of event."""
    if not found.events:
        return None
    names = event_kinds(found)
    kept = names if len(names) <= MOST_KINDS else [*names[: MOST_KINDS - 1], "others"]
    rows: list[Row] = []
    for event in found.events:
        kind = short(event.kind, 32)
        rows.append(
            {
                "at": round(event.at_s / unit, 4),
                "kind": kind if kind in kept else "others",
                "At": seconds(event.at_s),
                "What": kind,
                "Detail": short(event.detail, 90) or "–",
            }
        )
    y: Spec = {
        "field": "kind",
        "type": "nominal",
        "sort": None,
        "scale": {"domain": kept},
        "axis": {**marks.names_axis(), "grid": True},
    }
    layer: Spec = {
        "mark": {"type": "tick", "thickness": 2, "size": 14},
        "encoding": {
            "x": {**x, "field": "at"},
            "y": y,
            "color": {**marks.coloured("kind", kept, kinds(len(kept))), "legend": None},
            "tooltip": marks.tips("At", "What", "Detail"),
        },
    }
    return marks.frame([layer], height=24 * len(kept) + 6, data={"values": rows})


def _events(found: Soak) -> list[Block]:
    if not found.events:
        return [Text("Nothing: only requests were sent.")]
    rows = []
    for kind in event_kinds(found):
        same = [event for event in found.events if short(event.kind, 32) == kind]
        gaps = [later.at_s - first.at_s for first, later in pairwise(same)]
        every = f"about every {seconds(sum(gaps) / len(gaps))}" if gaps else "once"
        rows.append([kind, f"{len(same):,}", every, same[-1].detail or "–"])
    return [Table(["what", "times", "how often", "the last one"], rows, frozenset({1}))]


def _facts(found: Soak) -> list[Block]:
    blocks: list[Block] = [Text(note) for note in found.notes]
    if found.command:
        blocks.append(Facts([("command", found.command)], code=True))
    blocks.append(Facts([*sorted(found.machine.items()), *sorted(found.versions.items())]))
    return blocks
