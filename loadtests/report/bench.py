"""The page of ``sluice bench``."""

from __future__ import annotations

from collections.abc import Sequence

from loadtests.bench.plan import Protocol
from loadtests.bench.results import Interval, Point, Result, dump

from . import (
    bench_curves,
    bench_load,
    bench_parts,
    bench_splits,
    bench_time,
    marks,
    page,
    verdict,
)
from .levels import (
    MARKS,
    Level,
    Second,
    all_open,
    at,
    left_out,
    level_name,
    levels,
    marks_explained,
    timeline,
    told,
    told_mean,
)
from .look import Spec
from .page import Banner, Block, Card, Cards, Facts, Figure, Section, Table, Text, Tone
from .words import between, digits, duration, joined, rate, seconds, share

_WIRE = {
    Protocol.GRPC: "gRPC",
    Protocol.STREAM: "gRPC stream",
    Protocol.BINARY: "HTTP, binary tensors",
    Protocol.JSON: "HTTP, JSON",
    Protocol.V1: "HTTP, V1 :predict",
    Protocol.INVOCATIONS: "HTTP, MLflow /invocations",
}

TOLD = (50, 90, 99, 99.9, 100)
"""Percentiles of the table of all figures."""
FEW_A_TICK = 100


def render(result: Result) -> str:
    """The page of a result, with its JSON inside.

    Raises `BenchError` where vl-convert or hdrhistogram is missing, or a histogram is damaged.
    """
    target = result.target
    address = target.grpc if not target.protocol.http else target.http
    version = f", version {target.version}" if target.version else ""
    about = [
        _date(result.started),
        f"{_WIRE[target.protocol]}{version}",
        address or target.http or target.grpc,
        _loops(result),
    ]
    document = dump(result).decode()
    return page.render(
        target.model or "unnamed model",
        "Load test",
        about,
        [section for section in _sections(result) if section.blocks],
        {"result.json": document},
    )


def _date(started: str) -> str:
    return started.replace("T", " ").removesuffix("+00:00").removesuffix("Z")[:16] + " UTC"


def _loops(result: Result) -> str:
    count = len(result.points)
    kinds = sorted({"open loop" if point.load.open else "closed loop" for point in result.points})
    return f"{count} level{'' if count == 1 else 's'} of load, {joined(kinds)}" if count else ""


def _sections(result: Result) -> list[Section]:
    found = levels(result)
    ticks, together = timeline(found)
    merged = (
        f" Each point stands for {together} readings: counts added, median of p50, largest p99."
        if together > 1
        else ""
    )
    return [
        Section("", [*_banner(result), *_verdict(result)]),
        Section("Latency and throughput against load", _against_load(result)),
        Section("Every percentile", _curves(result)),
        Section(
            "Over time",
            _figures(
                (
                    "Latency (p50 and p99)",
                    bench_time.latency_over_time(found, ticks),
                    "Grey: warm-up, which counts in no figure."
                    + merged
                    + _slowest(ticks)
                    + _unanswered(ticks),
                ),
                (
                    "Requests answered each second",
                    bench_time.rate_over_time(found, ticks),
                    "Dashed: what was offered." if all_open(result) else "",
                ),
            ),
        ),
        Section("Where the time goes", _server(result, found, ticks)),
        Section("Versions", _versions(result, found, ticks)),
        Section("The load generator", _client(result, found, ticks)),
        Section("Errors", _errors(result)),
        Section("All figures", _tables(result)),
        Section("How it was measured", _facts(result)),
    ]


def _slowest(ticks: Sequence[Second]) -> str:
    """What p99 is where there are few answers."""
    if not any(0 < second.tick.ok < FEW_A_TICK for second in ticks):
        return ""
    return f" Of fewer than {FEW_A_TICK} answers, p99 is the slowest."


def _unanswered(ticks: Sequence[Second]) -> str:
    """What arrows mean, where there are any."""
    known = marks.worth(second.known(name) for second in ticks for name in ("p50", "p99"))
    return f" {known}" if known else ""


def _figures(*wanted: tuple[str, Spec | None, str]) -> list[Block]:
    return [Figure(title, spec, caption) for title, spec, caption in wanted if spec]


def _banner(result: Result) -> list[Block]:
    limits = verdict.bottlenecks(result)
    if not limits:
        return []
    every = len(limits) == len(result.points)
    where = "" if every else f" at {len(limits)} of {len(result.points)} levels"
    return [
        Banner(
            f"The load generator was the bottleneck{where}",
            [
                "There, the figures say more about the client than about the server. Use more "
                "processes or another machine, and measure again.",
                *limits[:6],
                *([f"... and {len(limits) - 6} more"] if len(limits) > 6 else []),
            ],
            "bad",
        )
    ]


def _verdict(result: Result) -> list[Block]:
    point = verdict.headline(result)
    told: list[Block] = [Text(" ".join(verdict.sentences(result)), "lead")]
    if point is None:
        return told
    return [*told, Cards(_cards(result, point))]


def _cards(result: Result, point: Point) -> list[Card]:
    latency = point.latency
    where = f"at {level_name(point)}"
    sure = between(point.rate_ci, "rate")
    cards = []
    if result.search:
        best = result.search.best
        unit = rate(best) if all_open(result) else f"{best:g} in flight" if best else ""
        tone: Tone = "bad" if best is None else "good"
        if not result.search.finished:
            unit, tone = "not known", "warn"
        elif not best:
            unit = "none"
        cards.append(Card(f"highest load with {result.search.objective}", unit, "", tone))
    failed: Tone = "bad" if point.failed else "good"
    cards += [
        Card("answered", rate(point.rate), f"95 %: {sure.replace(' to ', '–')}" if sure else where),
        Card("p50", told(point, 50), _sure(point, 50, latency.p50) or where),
        Card("p99", told(point, 99), _sure(point, 99, latency.p99) or where),
        Card("p99.9", told(point, 99.9), _beyond(point)),
        Card(
            "failed",
            share(point.error_rate),
            f"{point.failed:,} of {point.sent:,} requests",
            failed,
        ),
    ]
    return cards


def _sure(point: Point, percentile: float, interval: Interval | None) -> str:
    known = point.known(percentile)
    if known == "at least":
        return "requests had no answer by then"
    if known == "few":
        return f"of {point.latency.count:,} requests: too few to be sure"
    return f"95 %: {between(interval).replace(' to ', '–')}" if interval else ""


def _beyond(point: Point) -> str:
    if not point.latency.count:
        return ""
    largest = f"largest {told(point, 100)}"
    return f"too few requests; {largest}" if left_out(point, 99.9) else largest


def _against_load(result: Result) -> list[Block]:
    opened = all_open(result)
    return _figures(
        (
            f"Latency against load ({', '.join(bench_load.lines(result.points))})",
            bench_load.latency_against_load(result),
            " ".join(
                (
                    "Counted from when each request was due, so that a late one is not flattered."
                    if opened else "Counted from when each request could have been sent.",
                    "Vertical lines: 95 % confidence.",
                    bench_load.pale(result),
                )
            ),
        ),
        (
            "Requests answered against load",
            bench_load.throughput_against_load(result),
            "Dashed: all that was offered. Below it, the server falls behind." if opened else "",
        ),
    )  # fmt: skip


def _curves(result: Result) -> list[Block]:
    spec, left_out = bench_curves.curves_of(result)
    caption = "Faint: fewer than ten requests lie beyond."
    lost = any(point.unanswered for point in result.points)
    if lost:
        caption = (
            "Faint: fewer than ten requests lie beyond, or they had no answer and count with their "
            "timeout."
        )
    if any(point.load.open for point in result.points):
        fewer = ", without the requests that had no answer" if lost else ""
        caption = (
            "Full line: from when a request was due. Dashed: from when it left, as a client that "
            f"waits for answers would see it{fewer}. {caption}"
        )
    if left_out:
        caption += f" {left_out} level{'' if left_out == 1 else 's'} in between left out."
    return _figures(("Latency by percentile", spec, caption))


def _server(result: Result, found: Sequence[Level], ticks: Sequence[Second]) -> list[Block]:
    if not any(point.server for point in result.points):
        return [Text("The server publishes no statistics that could stand beside the client's.")]
    first = verdict.headline(result)
    lost = [level.name for level in found if level.point.unanswered]
    without = f" Not of {joined(lost)}: requests had no answer there." if lost else ""
    return _figures(
        (
            "Mean latency in its parts",
            bench_parts.parts_of_latency(result),
            "Queue and execute are the server's own figures. The rest: the network, protocols, the "
            "client. Waiting to leave: due, but not yet sent. On the right: the whole." + without,
        ),
        (
            "Queue and execute time, under the client's p50",
            bench_parts.server_over_time(ticks, first),
            "Areas: means of the server, stacked. Line: half of the requests were answered sooner. "
            "Without the warm-up.",
        ),
        ("Rows of a batch over time", bench_splits.batches_over_time(found, ticks), ""),
        (
            "Sizes of batches",
            bench_splits.batch_sizes(result, first),
            "How many of the executed batches had so many rows.",
        ),
    )


def _versions(result: Result, found: Sequence[Level], ticks: Sequence[Second]) -> list[Block]:
    rows = verdict.split_table(result)
    if not rows:
        return []
    if len(rows) == 1 and not result.expected_split:
        return [Text(f"Every answer came from version {rows[0][0]}.")]
    blocks = _figures(
        (
            "Share of each version in the answers",
            bench_splits.versions_over_time(result, found, ticks),
            "Dashed: the split that the server declares." if result.expected_split else "",
        )
    )
    tones: dict[tuple[int, int], Tone] = {
        (i, 4): "good" if row[4] == "as declared" else "warn"
        for i, row in enumerate(rows)
        if row[4]
    }
    blocks.append(
        Table(
            ["version", "answers", "share", "declared", ""],
            [
                [
                    version,
                    f"{count:,}",
                    share(actual),
                    "–" if wanted is None else share(wanted),
                    said,
                ]
                for version, count, actual, wanted, said in rows
            ],
            frozenset({1, 2, 3}),
            tones,
        )
    )
    return blocks


def _client(result: Result, found: Sequence[Level], ticks: Sequence[Second]) -> list[Block]:
    if not result.points:
        return []
    tones: dict[tuple[int, int], Tone] = {}
    rows = []
    for i, level in enumerate(found):
        client = level.point.client
        rows.append(
            [
                level.name,
                f"{digits(client.cpu)} of {client.cores}",
                share(client.busiest),
                duration(client.lag_p99_us),
                duration(client.late_p99_us) if level.point.load.open else "–",
                client.bottleneck or "none",
            ]
        )
        tones[(i, 5)] = "bad" if client.bottleneck else "good"
    told = (
        Text("It was not the bottleneck at any level.", "good")
        if not verdict.bottlenecks(result)
        else Text("It was the bottleneck: see the last column.", "bad")
    )
    return [
        told,
        *_figures(
            ("Cores used by the load generator", bench_time.client_over_time(found, ticks), "")
        ),
        Table(
            ["load", "cores", "busiest thread", "timers late, p99", "requests late, p99", "limit"],
            rows,
            frozenset({1, 2, 3, 4}),
            tones,
        ),
    ]


def _errors(result: Result) -> list[Block]:
    if not result.points:
        return []
    spec = bench_splits.errors_by_kind(result)
    if spec is None:
        return [Text("No request failed.", "good")]
    rows = [
        [level.name, kind, f"{count:,}", share(count / max(level.point.sent, 1))]
        for level in levels(result)
        for kind, count in sorted(level.point.errors.items(), key=lambda item: (-item[1], item[0]))
        if count
    ]
    answered = [
        f"{level.name}: {duration(at(level.point.error_latency, 50))}"
        for level in levels(result)
        if level.point.error_latency and level.point.error_latency.count
    ]
    blocks: list[Block] = [Figure("Failed requests by kind", spec)]
    blocks.append(
        Table(
            ["load", "what went wrong", "requests", "of those sent"], rows[:200], frozenset({2, 3})
        )
    )
    if len(rows) > 200:
        blocks.append(Text(f"{len(rows) - 200} more rows are in the JSON."))
    if answered:
        blocks.append(Text(f"Half of the error answers came within: {joined(answered)}."))
    return blocks


def _tables(result: Result) -> list[Block]:
    best = verdict.headline(result)
    columns = [
        "load", "answered", "95 %", "failed", "mean", "p50", "p90", "p99", "p99.9", "largest",
        "p99 from leaving", "queue", "execute", "rows a batch", "warm-up", "measured",
    ]  # fmt: skip
    rows, strong = [], set()
    tones: dict[tuple[int, int], Tone] = {}
    for i, level in enumerate(levels(result)):
        point, server = level.point, level.point.server
        if point is best:
            strong.add(i)
        if point.failed:
            tones[(i, 3)] = "bad"
        if not point.steady:
            tones[(i, 14)] = "warn"
        rows.append(
            [
                level.name,
                rate(point.rate),
                between(point.rate_ci, "rate"),
                share(point.error_rate),
                told_mean(point),
                *(told(point, each) for each in TOLD),
                MARKS["few" if point.service.few(99) else "well"] + duration(at(point.service, 99)),
                duration(server.queue_us) if server else "–",
                duration(server.execute_us) if server else "–",
                digits(server.batch_rows) if server else "–",
                seconds(point.warmup_s) + ("" if point.steady else ", not settled"),
                seconds(point.seconds),
            ]
        )
    if not rows:
        return []
    table = Table(columns, rows, frozenset(range(1, len(columns))), tones, frozenset(strong))
    marks = marks_explained(result.points, TOLD)
    return [table, Text(marks)] if marks else [table]


def _facts(result: Result) -> list[Block]:
    pairs = [("requests", result.payload), *sorted(result.machine.items())]
    blocks: list[Block] = [Text(note) for note in result.notes]
    blocks.append(Facts([("command", result.command)], code=True))
    blocks.append(Facts(pairs + sorted(result.versions.items())))
    return blocks
