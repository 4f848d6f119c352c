"""The charts of a soak, over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loadtests.soak.results import Sample, Soak

from . import draw, marks
from .look import CONFIG, Spec, colour, kinds
from .marks import Row
from .words import digits, duration, rate, seconds, short

MOST_SAMPLES = 600
"""Of a chart; more are drawn together."""
MOST_RULES = 60
"""Events that are drawn across the charts; more are in the strip of events only."""
MOST_KINDS = 12


def picture(found: Soak) -> str:
    """The charts below each other as one SVG file."""
    x = time_of(found)
    panels = [(title, spec) for title, spec, _ in charts(found, x)]
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
        "title": {"text": "Soak", "subtitle": f"{length(found)}, {asked(found)}"},
        "spacing": 16,
        "resolve": {
            "scale": {"color": "independent"},
            "legend": {"color": "independent"},
        },
        "vconcat": parts,
    }
    return draw.picture(whole, f"Soak: {length(found)}")


def _untitled(part: Spec) -> Spec:
    """Without the title of the axis of time, which the last chart has for all."""
    layers = []
    for layer in part["layer"]:
        encoding = dict(layer["encoding"])
        if "x" in encoding:
            encoding["x"] = {**encoding["x"], "axis": {**encoding["x"]["axis"], "title": None}}
        layers.append({**layer, "encoding": encoding})
    return {**part, "layer": layers}


def length(found: Soak) -> str:
    return seconds(end(found))


def end(found: Soak) -> float:
    ends = [sample.at_s + sample.seconds for sample in found.samples]
    return max([*ends, *(event.at_s for event in found.events)], default=0.0)


def asked(found: Soak) -> str:
    return f"{sum(sample.ok for sample in found.samples):,} requests answered"


def time_of(found: Soak) -> Spec:
    """Time in minutes, or seconds for a short soak."""
    last = max(end(found), 1.0)
    return marks.time_x(0, last / _unit(found), "seconds" if last < 180 else "minutes")


def _unit(found: Soak) -> float:
    return 1.0 if end(found) < 180 else 60.0


def charts(found: Soak, x: Spec) -> list[tuple[str, Spec, str]]:
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
