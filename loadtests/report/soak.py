"""The report of a soak: what went in and came out over time, and whether anything grew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise

from loadtests.soak.results import Soak, Verdict

from . import page
from .page import Banner, Block, Card, Cards, Facts, Figure, Section, Table, Text, Tone
from .soak_charts import asked, charts, end, event_kinds, length, picture, time_of
from .words import digits, joined, rate, seconds, short


def files(found: Soak) -> dict[str, str]:
    """``soak.html``, the whole page, and ``soak.svg``, its charts for a document.

    Raises `BenchError` where vl-convert is missing.
    """
    return {"soak.html": render(found), "soak.svg": picture(found)}


def render(found: Soak) -> str:
    """The page of a soak. Raises `BenchError` where vl-convert is missing."""
    failed = [verdict for verdict in found.verdicts if not verdict.passed]
    date = found.started.replace("T", " ")[:16]
    about = [f"{date} UTC" if date else "", length(found), asked(found)]
    sections = [
        Section("", [*_verdict(found, failed), _verdict_table(found)]),
        Section("Over time", _figures(found)),
        Section("What was done to it", _events(found)),
        Section("How it was measured", _facts(found)),
    ]
    document = json.dumps(asdict(found), indent=1)
    return page.render("Soak", "Load test", about, sections, {"soak.json": document})


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
        Card("answered", f"{total['ok']:,}", rate(total["ok"] / max(end(found), 1e-9))),
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
    return [Figure(title, spec, caption) for title, spec, caption in charts(found, time_of(found))]


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
