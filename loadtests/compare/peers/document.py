"""The comparison as Markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtests.compare.peers.cells import LeftOut
from loadtests.compare.peers.outcome import BARE, Outcome
from loadtests.compare.peers.rounds import Plan
from loadtests.compare.peers.table import Line, lines
from loadtests.compare.report import table
from loadtests.kernel import cores

FORMAT = "sluicegate-peers/1"
HEAD = ("server", "route", "c=1 mean", "p50", "p99", "ratio", "busy", "requests/s", "ratio ")
EXPLAINED = """\
Medians of the rounds. `ratio` is the server's figure over sluicegate's in the same round (the
median, the smallest and the largest): of the mean latency with one request in flight (above 1:
slower than sluicegate), and of requests/s under load (below 1: slower). A server's own route
(`native`) is held against sluicegate's of the same kind: `binary`, or with MLflow's server
`invocations`, where both get the same body. `busy` is how many requests are in flight. `bare` is
onnxruntime without a server: one loop and one row a call at c=1; beside the busy runs a loop a
core at the best batch size (`rows a call`), rows/s of all together, held against sluicegate's best
route. Each server runs alone; it shares the machine with the client. `1x`, `2x`: Triton with one
instance of the model and with two, the better of both.

Every session has the same number of threads. Servers that have workers (replicas, instances) run
one a core; for some only with the models that take milliseconds (`cnn`, `embedding`): their notes
say which and why. Sluicegate has `instances:` one a core for `cnn` and `embedding`, and its default
(one) elsewhere.
"""
ROUTES = (
    "Routes: the fastest of each server with every model, JSON with `add` too "
    "(`--routes all` measures all).\n"
)


@dataclass(frozen=True)
class Facts:
    """What the numbers belong to."""

    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    plan: Plan


def _time(value_us: float | None) -> str:
    if value_us is None:
        return "–"
    return f"{value_us:,.0f} µs" if value_us < 10_000 else f"{value_us / 1000:,.1f} ms"


def _rate(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def _ratio(line: Line | None) -> str:
    if line is None or line.ratio is None or line.ratio_low is None or line.ratio_high is None:
        return "–"
    low, high = f"{line.ratio_low:.2f}", f"{line.ratio_high:.2f}"
    around = "" if low == high else f" ({low} to {high})"
    return f"{line.ratio:.2f}{around}"


def _row(alone: Line | None, busy: Line | None) -> tuple[str, ...]:
    either = alone or busy
    assert either is not None
    load = "–"
    if busy is not None:
        load = f"{busy.batch} rows a call" if busy.batch else f"c={busy.concurrency}"
        load += f" ({busy.variant})" if busy.variant else ""
    return (
        *(either.server, either.route),
        *(
            ("INVALID", "–", "–", "–")
            if alone is not None and not alone.valid
            else (
                _time(alone.mean_us if alone else None)
                + (f" ({alone.variant})" if alone and alone.variant else ""),
                _time(alone.p50_us if alone else None),
                _time(alone.p99_us if alone else None),
                _ratio(alone),
            )
        ),
        load,
        "INVALID" if busy is not None and not busy.valid else _rate(busy.rate if busy else None),
        _ratio(busy),
    )


def model_table(found: Sequence[Line]) -> str:
    """The lines of one model, a row for each server and route."""
    pairs: dict[tuple[str, str], list[Line | None]] = {}
    for line in found:
        pair = pairs.setdefault((line.server, line.route), [None, None])
        pair[line.concurrency != 1] = line
    return table(HEAD, [_row(alone, busy) for alone, busy in pairs.values()])


def _left_out(each: LeftOut) -> str:
    where = "/".join(filter(None, (each.model, each.route))) or "everything"
    load = f", c={each.concurrency}" if each.concurrency else ""
    return f"| {each.server} | {where}{load} | {each.reason.replace('|', chr(92) + '|')} |"


def markdown(facts: Facts, outcome: Outcome, pictures: Sequence[str] = ()) -> str:
    """The whole page. ``pictures`` are file names beside it."""
    plan, found = facts.plan, lines(outcome)
    parts = ["# Comparison with other servers", "", EXPLAINED]
    parts += [] if plan.every_route else [ROUTES]
    parts += [f"![{Path(name).stem}]({name})" for name in pictures] + [""] * bool(pictures)
    for model in dict.fromkeys(line.model for line in found):
        parts += [f"## {model}", "", model_table([one for one in found if one.model == model]), ""]
    if outcome.left_out:
        parts += ["## Not measured", "", "| server | what | why |", "|---|---|---|"]
        parts += [*map(_left_out, outcome.left_out), ""]
    notes = [*outcome.notes, *(f"{_name(line)}: {line.note}" for line in found if line.note)]
    if notes:
        parts += ["## Notes", "", *(f"- {note}" for note in notes), ""]
    if invalid := [line for line in found if not line.valid]:
        parts += ["## Runs that do not count", ""]
        parts += [f"- {_name(line)}: {line.problem}" for line in invalid]
        parts += [""]
    parts += ["## What was measured on", ""]
    parts += [f"- {name}: {value}" for name, value in facts.machine.items()]
    parts += [f"- client: python {facts.versions['python']}, {facts.versions['h2load']}"]
    if commit := facts.versions.get("commit"):
        parts += [f"- commit: {commit}"]
    for server, packages in outcome.versions.items():
        told = ", ".join(f"{name} {version}" for name, version in packages.items())
        seconds = outcome.ready_s.get(server)
        ready = f"; ready after {min(seconds):.1f} s" if seconds else ""
        parts += [f"- {server}: {told}{ready}"]
    if outcome.batches:
        sizes = ", ".join(f"{model}: {size}" for model, size in outcome.batches.items())
        parts += [f"- {BARE}, rows a call: {sizes}"]
    parts += [
        f"- workers of servers that have one a core: {cores()}",
        f"- {plan.rounds} round(s) of runs of about {plan.duration_s:g} s, {plan.threads} "
        "thread(s) a session everywhere",
        f"- command: `{facts.command}`",
        "",
    ]
    return "\n".join(parts)


def _name(line: Line) -> str:
    return f"{line.server} {line.model}/{line.route} c={line.concurrency}"


def plain(value: object) -> object:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def document(facts: Facts, outcome: Outcome) -> dict[str, object]:
    """What is written as JSON; ``lines`` is what is drawn. No folders of the machine are in it."""
    plan = facts.plan
    found = {
        "format": FORMAT,
        "command": facts.command,
        "machine": facts.machine,
        "versions": facts.versions,
        "servers": outcome.versions,
        "rounds": plan.rounds,
        "duration_s": plan.duration_s,
        "threads": plan.threads,
        "notes": outcome.notes,
        "cores": cores(),
        "batches": outcome.batches,
        "ready_s": outcome.ready_s,
        "lines": [asdict(line) for line in lines(outcome)],
        "left_out": [asdict(each) for each in outcome.left_out],
        "runs": [asdict(run) for run in outcome.runs],
    }
    cleaned = plain(found)
    assert isinstance(cleaned, dict)
    return cleaned


def write(facts: Facts, outcome: Outcome, folder: Path, stem: str) -> tuple[Path, Path]:
    """Writes ``STEM.md`` and ``STEM.json``; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    text, data = folder / f"{stem}.md", folder / f"{stem}.json"
    text.write_text(markdown(facts, outcome), encoding="utf-8")
    data.write_text(json.dumps(document(facts, outcome), indent=1), encoding="utf-8")
    return text, data
