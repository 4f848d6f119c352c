"""Whatever happens in whatever order: the budget holds, and every call ends once."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.call import ENDED
from tests.support.lifecycle import MIB, World, aspired

NAMES = ("a", "b", "c", "d")
SIZES = {"a": 10, "b": 30, "c": 50, "d": 90, "steady": 20}
BUDGET = 120

steps = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(NAMES), st.sampled_from(["", "", "1", "2"])),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("finish")),
    st.tuples(st.just("break"), st.sampled_from(NAMES)),
    st.tuples(st.just("mend"), st.sampled_from(NAMES)),
    st.tuples(st.just("change"), st.sampled_from(NAMES), st.sampled_from(["x", "y", "broken"])),
    st.tuples(st.just("gone"), st.sampled_from(NAMES)),
    st.tuples(st.just("steady"), st.sampled_from(["good", "broken", "better"])),
    st.tuples(st.just("pass"), st.integers(1, 20)),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
@given(
    plan=st.lists(steps, min_size=3, max_size=40),
    policy=st.sampled_from(["availability", "resource"]),
)
def test_the_budget_holds_and_every_call_ends_once(plan: list[Any], policy: str) -> None:
    async def test() -> None:
        async with World(
            memory_budget_mb=BUDGET, policy=policy, retry_seconds=0.01, memory_wait=1.0
        ) as w:
            w.loader.sizes = SIZES
            w.manager.on_change.append(lambda name: check(w))
            w.apply(aspired("steady", on_demand=False))
            await w.until(lambda: w.loaded() == {"steady/1"})
            w.apply(*(aspired(name, "1", "2") for name in NAMES))
            for step in plan:
                await act(w, step)
                check(w)
                if policy == "availability":
                    assert w.router.table["steady"].targets, "a bad version replaced a good one"
            # From here on all is well, and nobody may be left behind.
            w.loader.broken.clear()
            w.apply(*(aspired(name, "1", "2") for name in NAMES))
            w.apply(aspired("steady", on_demand=False))

            def ended() -> bool:
                check(w)
                w.finish()
                return all(call.state == ENDED for call in w.calls)

            await w.until(ended, "all calls to end")
            assert w.manager.demand.waiting == 0
            assert [call.ends for call in w.calls] == [1] * len(w.calls)
            for name in NAMES:  # and everything can be had again
                await w.until(lambda name=name: answered(w, name), f"an answer of {name}")

    asyncio.run(test())


def answered(w: World, name: str) -> bool:
    """Asks again and again: failures before have their pauses."""
    if not w.calls or w.calls[-1].request.model != name or w.calls[-1].error is not None:
        w.ask(name)
    w.finish()
    return bool(w.calls[-1].served_by)


async def act(w: World, step: Any) -> None:
    match step:
        case ("ask", name, version):
            w.ask(name, version)
        case ("cancel", n):
            if n < len(w.calls):
                w.calls[n].cancel()
        case ("finish",):
            w.finish()
        case ("break", name):
            w.loader.broken.add(name)
        case ("mend", name):
            w.loader.broken.discard(name)
        case ("change", name, files):
            w.apply(aspired(name, "1", "2", files=files))
        case ("gone", name):
            w.apply(gone=(name,))
        case ("steady", files):
            w.apply(aspired("steady", on_demand=False, files=files))
        case ("pass", milliseconds):
            await asyncio.sleep(milliseconds / 1000)
    await asyncio.sleep(0)


def check(w: World) -> None:
    """What always holds."""
    memory = w.manager.memory
    assert memory.used <= BUDGET * MIB, "over the budget"
    assert all(call.ends <= 1 for call in w.calls)
    for record, size in memory.held.items():
        assert size <= SIZES[record.model] * MIB
    for route in w.router.table.values():
        for servable in route.versions.values():
            assert not servable.dispatcher.closed, "a route leads to what is closed"
