"""What the record says of any moment is what was served then."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.history.base import CRASH, RUNS, STOP, Change
from gateway.history.throttle import BURST, SECONDS, Throttle
from tests.support.history import World

MODELS = ("a", "b")
VERSIONS = ("1", "2", "3")
models, versions = st.sampled_from(MODELS), st.sampled_from(VERSIONS)
weights = st.dictionaries(versions, st.sampled_from([0.0, 1.0, 10.0, 90.0]), max_size=3)
changes = st.one_of(
    st.tuples(st.just("ready"), models, versions, st.sampled_from(["x", "y"])),
    st.tuples(st.just("failed"), models, versions),
    st.tuples(st.just("gone"), models, versions),
    st.tuples(st.just("split"), models, weights.filter(lambda w: not w or sum(w.values()) > 0)),
    st.tuples(st.just("promote"), models, versions),
    st.tuples(st.just("refused"), models, versions),
    st.tuples(st.just("restart"), st.booleans()),
)
steps = st.lists(st.tuples(changes, st.sampled_from([0.25, 30.0, 4000.0])), max_size=15)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def act(world: World, recorder: Any, change: tuple[Any, ...]) -> None:
    """One change, by the world or by somebody."""
    kind, model, *rest = change
    if kind == "split":
        world.split(model, weights=rest[0])
    elif kind == "promote":
        with recorder.because(model, "promote", "ada", "better"):
            world.split(model, weights={rest[0]: 100.0})
    elif kind == "refused":
        with suppress(KeyError), recorder.because(model, "split", "bob", "worse"):
            world.split(model, weights={rest[0]: 1.0})
            raise KeyError
    else:
        getattr(world, kind)(model, *rest)


@given(steps)
@settings(max_examples=30)
def test_any_moment_is_told_as_it_was(steps: list[tuple[tuple[Any, ...], float]]) -> None:
    async def main(state: Path) -> None:
        world, clock = World(), Clock()
        recorder = world.recorder(state, clock, gateway="g")
        await recorder.start("g")
        # Between two moments of the list nothing changed: what was served, and whether that is
        # sure (a gateway that crashed was last heard of at its last entry).
        truth: list[tuple[float, dict[str, dict[str, float]] | None]] = []
        crashes: list[tuple[float, float]] = []

        def note() -> None:
            truth.append((clock.now, {m: world.shares(m) for m in MODELS}))

        note()
        heard = clock.now
        for change, pause in steps:
            clock.now += pause
            if change[0] == "restart":
                if change[1]:
                    await recorder.close()
                    truth.append((clock.now, None))
                else:
                    writer = recorder._writer
                    assert writer is not None
                    world.on_change.clear()
                    recorder._writer = None
                    await asyncio.to_thread(writer.close)
                    crashes.append((heard, clock.now + 1))
                clock.now += 1
                recorder = world.recorder(state, clock, gateway="g")
                await recorder.start("g")
            else:
                before = recorder._seq
                act(world, recorder, change)
                heard = clock.now if recorder._seq != before else heard
            note()
            if change[0] == "restart":
                heard = clock.now
        everything = await recorder.changes("", limit=1000)
        check_chain(everything)
        for i, (at, served) in enumerate(truth):
            until = truth[i + 1][0] if i + 1 < len(truth) else clock.now + 1
            for moment in {at, (at + until) / 2, until - 0.001}:
                past = await recorder.past("", moment)
                told = {m.model: dict(m.change.after.shares) for m in past.moments}
                assert told == {m: s for m, s in (served or {}).items() if s}, moment
                unsure = any(a < moment < b for a, b in crashes)
                assert all((m.state == "unknown") == unsure for m in past.moments)
                assert past.moments or past.note
        assert (await recorder.past("", truth[0][0] - 1)).moments == []
        await recorder.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))


def check_chain(newest_first: Any) -> None:
    """Every entry begins where the one before ended, and what people did is whole."""
    last: dict[tuple[str, str], Change] = {}
    for change in reversed(newest_first):
        if change.action in RUNS:
            assert change.action in (STOP, CRASH) or change.run not in {run for run, _ in last}
            continue
        before = last.get((change.run, change.model))
        if before is not None:
            assert change.before == before.after
        last[(change.run, change.model)] = change
        if change.who == "ada":
            assert (change.action, change.message) == ("promote", "better")
        elif change.who == "bob":  # what changed before it was refused is his
            assert (change.action, change.message) == ("split", "worse")
        else:
            assert change.action == "served"
            assert change.message


@given(st.lists(st.sampled_from([0.0, 0.1, 5.0, SECONDS, 1000.0]), max_size=200))
def test_entries_that_nobody_asked_for_are_bounded(pauses: list[float]) -> None:
    now = 0.0
    throttle = Throttle(now)
    allowed = 0
    for pause in pauses:
        now += pause
        if throttle.allow(now):
            allowed += 1
        else:
            assert throttle.wait() > 0
            assert Throttle.allow(throttle, now + throttle.wait() + 1e-6)
            now += throttle.wait() + 1e-6
            allowed += 1
    assert allowed <= BURST + now / SECONDS + 1
