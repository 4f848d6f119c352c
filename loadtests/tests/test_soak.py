"""The soak: what it notices, and a short one of a real gateway."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loadtests.compare import wire
from loadtests.compare.processes import ROOT, Server, free_port
from loadtests.soak import bad_input, callers, session, verdicts, watch
from loadtests.soak.bad_input import BadInput
from loadtests.soak.callers import Callers
from loadtests.soak.connections import Answer
from loadtests.soak.growth import slope
from loadtests.soak.ledger import End, Ledger
from loadtests.soak.models import Directory
from loadtests.soak.rest import Rest
from loadtests.soak.results import Sample, Verdict
from loadtests.soak.sending import BEGAN, DIED, PLUS, Caller, Outcome
from loadtests.soak.trouble import Trouble
from loadtests.soak.watch import Watch

LEVEL = Sample(
    at_s=0, seconds=6, ok=1, memory_mib=100.0, children_mib=50.0, descriptors=40, threads=20,
    processes=4,
)  # fmt: skip
REST = Rest({10: 40, 11: 5, 12: 4}, threads=20, zombies=0, waiting=0)


def samples(**growth: float) -> list[Sample]:
    """Two hundred in twenty minutes, some of whose fields rise by so much a sample."""
    return [
        replace(
            LEVEL,
            at_s=6 * i,
            **{name: getattr(LEVEL, name) + i * by for name, by in growth.items()},
        )
        for i in range(200)
    ]


def failed(found: list[Verdict]) -> list[str]:
    """The names of those that did not hold."""
    return [each.name for each in found if not each.passed]


def good() -> Ledger:
    """One request, answered."""
    ledger = Ledger(sent=1)
    ledger.ended("a", End.OK, "", 0.01, 1)
    return ledger


def judged(found: list[Sample]) -> list[str]:
    """What does not hold of samples."""
    return failed(verdicts.all_of(good(), found, REST, REST).verdicts)


# --- growth


def test_what_stays_as_it_is_has_not_grown() -> None:
    assert judged(samples()) == []


@pytest.mark.parametrize(
    ("field", "by", "name"),
    [
        ("memory_mib", 0.05, "memory does not grow"),
        ("children_mib", 0.05, "memory of children does not grow"),
        ("descriptors", 1, "file descriptors do not grow under load"),
        ("threads", 0.5, "threads do not grow under load"),
        ("processes", 0.2, "processes do not grow under load"),
    ],
)
def test_growth_is_seen(field: str, by: float, name: str) -> None:
    assert judged(samples(**{field: by})) == [name]


def uneven(minutes: int, leak_mib_a_minute: float, level: float, seed: int) -> list[Sample]:
    """A second each: a cache that fills, and steps of an allocator as in a real gateway."""
    chance, step, made = random.Random(seed), 0.0, []
    for i in range(minutes * 60):
        step = 0.85 * step + chance.gauss(0, 1)
        memory = level + 10 * min(1.0, i / 60) + leak_mib_a_minute * i / 60 + step
        made.append(replace(LEVEL, at_s=i, memory_mib=memory))
    return made


@pytest.mark.parametrize("level", [100.0, 20_000.0])
def test_half_a_mebibyte_a_minute_is_a_leak_at_any_size_and_noise_is_none(level: float) -> None:
    for seed in range(10):
        assert judged(uneven(20, 0.5, level, seed)) == ["memory does not grow"]
        assert judged(uneven(10, 0.0, level, seed)) == []


def test_a_creep_counts_in_a_long_soak() -> None:
    long = [replace(each, at_s=each.at_s * 36) for each in samples(memory_mib=0.12)]
    assert judged(long) == ["memory does not grow"]  # 2 MiB an hour, for twelve hours


def test_a_peak_in_the_middle_is_no_growth() -> None:
    found = samples()
    found[100:130] = [replace(each, memory_mib=300.0) for each in found[100:130]]
    assert judged(found) == []


def test_what_cannot_be_judged_is_said() -> None:
    few = verdicts.all_of(good(), samples()[:10], REST, None)
    assert failed(few.verdicts) == []
    assert [each.split(":")[1].strip() for each in few.unjudged] == [
        "generous deadlines are kept", "memory does not grow", "memory of children does not grow",
        "file descriptors do not grow under load", "threads do not grow under load",
        "processes do not grow under load", "what is held at rest",
    ]  # fmt: skip
    soon = verdicts.all_of(good(), uneven(3, 5.0, 100, 1), REST, REST)
    assert any("memory does not grow" in each and "MiB an hour" in each for each in soon.unjudged)
    assert "memory does not grow" not in [each.name for each in soon.verdicts]


def test_the_slope_of_a_line_is_its_own() -> None:
    found = slope(samples(memory_mib=0.1), lambda each: each.memory_mib)
    assert found is not None
    assert (found.low, found.an_hour, found.high) == pytest.approx((60, 60, 60))


# --- at rest


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"waiting": 1.0}, "nothing left waiting in the gateway"),
        ({"waiting": None}, "nothing left waiting in the gateway"),
        ({"zombies": 1}, "no zombies"),
        ({"threads": 30}, "threads after the load as before it"),
        (
            {"descriptors": {10: 90, 11: 5, 12: 4}},
            "file descriptors after the load as before it",
        ),
        (
            {"descriptors": {10: 40, 11: 6, 13: 4}},
            "file descriptors of children that stayed after the load as before it",
        ),
        (
            {"descriptors": {10: 40, 11: 5, 12: 4, 13: 1}},
            "processes after the load as before it",
        ),
        ({"descriptors": {10: 40, 11: 5}}, "processes after the load as before it"),
    ],
)
def test_what_is_held_after_the_load_is_seen(change: dict[str, object], name: str) -> None:
    assert failed(verdicts.at_rest(REST, replace(REST, **change))) == [name]  # type: ignore[arg-type]


def test_a_child_that_was_started_again_is_as_good_as_the_first() -> None:
    assert failed(verdicts.at_rest(REST, replace(REST, descriptors={10: 40, 11: 5, 99: 9}))) == []


# --- requests


@pytest.mark.parametrize("end", [End.LOST, End.WRONG, End.FAILED])
def test_one_bad_end_among_many_is_enough(end: End) -> None:
    ledger = Ledger(sent=1001)
    for _ in range(1000):
        ledger.ended("a", End.OK, "", 0.01, 1)
    ledger.ended("a", end, "why", 0.01, 2)
    assert len(failed(verdicts.requests(ledger))) == 1
    assert "why" in ledger.problems[0]


def test_a_request_without_an_end_is_seen() -> None:
    ledger = good()
    ledger.sent += 1
    assert failed(verdicts.requests(ledger)) == ["every request that was sent has ended"]
    assert ledger.open == 1


@asynccontextmanager
async def asking() -> AsyncIterator[Callers]:
    """Callers of a gateway that is not there."""
    made = Callers("127.0.0.1:1", "127.0.0.1:1", Ledger(), 1)
    try:
        yield made
    finally:
        await made.close()


def with_callers(check: Callable[[Callers], Awaitable[None]]) -> None:
    """Runs a test with them."""

    async def run() -> None:
        async with asking() as made:
            await check(made)

    asyncio.run(run())


@pytest.mark.parametrize(
    "error",
    [IndexError("cut"), asyncio.LimitOverrunError("long", 1), asyncio.CancelledError(),
     RuntimeError("x"), asyncio.IncompleteReadError(b"", 1), TimeoutError()],
    ids=lambda each: type(each).__name__,
)  # fmt: skip
def test_a_request_that_fails_in_any_way_is_lost_and_counted(error: BaseException) -> None:
    async def ask() -> Outcome:
        raise error

    async def check(made: Callers) -> None:
        await made._one(Caller("a", 1, ask))
        assert made.ledger.counts == {("a", End.LOST): 1}
        assert made.ledger.sent == 1

    with_callers(check)


def test_a_request_whose_task_is_cancelled_is_lost_and_counted() -> None:
    async def check(made: Callers) -> None:
        begun = asyncio.Event()

        async def ask() -> Outcome:
            begun.set()
            await asyncio.Event().wait()
            return End.OK, ""

        task = asyncio.create_task(made._one(Caller("a", 1, ask)))
        await begun.wait()
        assert made.ledger.open == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert made.ledger.counts == {("a", End.LOST): 1}
        assert made.ledger.open == 0

    with_callers(check)


def test_a_kill_excuses_what_ran_then_and_no_more() -> None:
    async def check(made: Callers) -> None:
        before = time.monotonic()
        made.killed(2)
        after = time.monotonic() + 1
        name = f"{PLUS}, gRPC"
        assert not made._excused("add, gRPC", DIED, before)
        assert not made._excused(name, "another error", before)
        assert not made._excused(name, DIED, after)
        assert [made._excused(name, DIED, before) for _ in range(3)] == [True, True, False]

    with_callers(check)


def test_a_withdrawn_version_may_only_answer_who_asked_before() -> None:
    async def check(made: Callers) -> None:
        rows = made.rows()

        async def ask() -> Outcome:
            return made.check("add", rows, rows + 1, "1")

        BEGAN.set(time.monotonic())
        made.withdrawn("add", 1)
        assert (await ask())[0] is End.OK
        BEGAN.set(time.monotonic() + 1)
        assert (await ask())[0] is End.WRONG
        assert made.check("add", rows, rows + 2, "2")[0] is End.OK
        assert made.check("plus", rows, rows + 1, "1")[0] is End.OK

    with_callers(check)


@pytest.mark.parametrize("numbers", [[1002], [1001, 1003], [1001, 2002], [1001, 1001]])
def test_numbers_of_a_stream_have_to_be_right(numbers: list[int]) -> None:
    async def check(made: Callers) -> None:
        assert made.counted(numbers)[0] is End.WRONG
        assert made.counted([3001, 3002])[0] is End.OK

    with_callers(check)


class Answered:
    """A gRPC call whose answer was there before it was cancelled."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload

    def __await__(self):  # type: ignore[no-untyped-def]
        return asyncio.sleep(0, self._payload).__await__()

    def cancel(self) -> bool:
        return False

    async def trailing_metadata(self) -> list[tuple[str, str]]:
        return [(callers.VERSION, "1")]


def test_an_answer_that_came_before_it_was_cancelled_is_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def check(made: Callers) -> None:
        right = np.ones((1, 4), np.float32)
        monkeypatch.setattr(made, "rows", lambda: right)
        monkeypatch.setattr(made, "_call", lambda model, rows: Answered(b""))
        for answer, end in ((right + 1, End.OK), (right, End.WRONG)):
            monkeypatch.setattr(wire, "grpc_answer", lambda payload, found=answer: found)
            assert (await made.cancelled())[0] is end

    with_callers(check)


def test_a_late_refusal_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(made: Callers) -> None:
        async def ask(request: bytes) -> Answer:
            return Answer(504, {}, b"")

        monkeypatch.setattr(made._pool, "ask", ask)
        assert (await made.short_deadline())[0] is End.REFUSED
        monkeypatch.setattr(callers, "LATE_S", -1.0)
        assert (await made.short_deadline())[0] is End.FAILED

    with_callers(check)


@pytest.mark.parametrize(("kept", "names"), [(90, []), (10, ["generous deadlines are kept"])])
def test_generous_deadlines_have_to_be_kept(kept: int, names: list[str]) -> None:
    found = verdicts.Found()
    verdicts.deadlines(found, Ledger(generous=100, generous_kept=kept))
    assert failed(found.verdicts) == names
    assert found.verdicts


@pytest.mark.parametrize(
    ("says", "end"),
    [(b"", End.REFUSED), (b"HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n", End.REFUSED),
     (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", End.FAILED), (None, End.FAILED)],
    ids=["closes", "400", "200", "hangs"],
)  # fmt: skip
def test_bytes_that_are_no_request_have_to_be_refused(
    says: bytes | None, end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bad_input, "ANSWER_S", 0.2 if says is None else 30.0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        if says is None:
            await reader.read()
        else:
            writer.write(says)
        writer.close()

    async def run() -> Outcome:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        made = BadInput(f"{host}:{port}", "127.0.0.1:1", 1)
        try:
            return await made.raw("bytes", b"no request")
        finally:
            await made.close()
            server.close()

    assert asyncio.run(run())[0] is end


# --- the soak itself


def plan(minutes: float) -> session.Plan:
    """Of a soak."""
    return session.Plan(minutes * 60, 1, 1, 1, 1)


def test_samples_are_taken_often_enough_and_lines_need_none() -> None:
    assert [plan(m).interval_s for m in (1, 20, 100, 1000)] == [1.0, 2.0, 5.0, 5.0]
    assert "7 requests" in session.line(Watch(1, Ledger()), seven(), 10.0)


def seven() -> Ledger:
    """Seven answers."""
    ledger = Ledger(sent=7)
    for _ in range(7):
        ledger.ended("a", End.OK, "", 0.01, 1)
    return ledger


def test_many_samples_are_joined_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MOST_SAMPLES", 8)
    monkeypatch.setattr(watch, "tree", lambda pid: [pid])
    ledger = Ledger()
    seen = Watch(1, ledger)
    for _ in range(50):
        ledger.ended("a", End.OK, "", 0.01, 1)
        seen.take()
        assert len(seen.samples) < 8
    assert sum(each.ok for each in seen.samples) == 50
    starts = [each.at_s for each in seen.samples]
    ends = [each.at_s + each.seconds for each in seen.samples]
    assert starts[1:] == pytest.approx(ends[:-1])


def test_trouble_that_fails_is_a_verdict_and_trouble_that_waits_ends_at_once(
    tmp_path: Path,
) -> None:
    async def check(made: Callers) -> None:
        trouble = Trouble("http://127.0.0.1:1", Directory(tmp_path / "models"), made, 1)
        failed_once = asyncio.Event()

        async def breaks() -> None:
            failed_once.set()
            raise OSError("no gateway")

        tasks = [
            asyncio.create_task(trouble._again(0.001, breaks)),
            asyncio.create_task(trouble._again(1e6, breaks)),
        ]
        await failed_once.wait()
        trouble.end()
        await asyncio.wait_for(asyncio.gather(*tasks), 30)
        trouble.close()
        assert "breaks: no gateway" in trouble.problems[0]
        found = verdicts.events("", trouble.problems, [])
        assert failed(found) == ["swaps and all other changes succeed"]

    with_callers(check)


def test_a_gateway_that_dies_and_a_task_that_fails_are_verdicts(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    process.wait()
    address = f"127.0.0.1:{free_port()}"
    server = Server("gateway", address, address, address, process, tmp_path / "log")

    async def check(made: Callers) -> None:
        bad = BadInput(address, address, 1)
        trouble = Trouble(f"http://{address}", Directory(tmp_path / "models"), made, 1)
        own: list[str] = []
        seen = Watch(process.pid, made.ledger)
        await session.under_load(server, plan(10), made, bad, trouble, seen, own)
        await bad.close()
        trouble.close()
        assert own == []

        async def breaks() -> None:
            raise ValueError("late")

        task = asyncio.create_task(breaks(), name="samples")
        await asyncio.wait([task])
        await session.over([task], own)

        assert failed(verdicts.events("it ended with 3", [], own)) == [
            "the gateway stays up",
            "the soak itself works",
        ]
        assert own == ["samples: ValueError: late"]

    with_callers(check)


def test_a_short_soak_of_a_real_gateway(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtests.soak", "--minutes", "0.08", "--rest", "1"]
    said = subprocess.run(
        [*command, "--pace", "12", "--load", "0.3", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert said.returncode == 0, said.stderr + said.stdout
    written = json.loads((tmp_path / "soak.json").read_text())
    assert failed([Verdict(**each) for each in written["verdicts"]]) == []
    held = [each["name"] for each in written["verdicts"]]
    assert "processes after the load as before it" in held
    assert "the gateway stays up" in held
    assert any("not judged: memory does not grow" in note for note in written["notes"])
    assert written["events"]
    assert (tmp_path / "soak.html").stat().st_size > 10_000
