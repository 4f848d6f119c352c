"""More calls than the event loop serves: a front whose calls come by script, on a clock by hand."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterator

import pytest

from gateway.servers.shedding import BURST, CALM, TARGET, Backlog, Event

SERVICE = 100e-6
"""Seconds that a call keeps the loop busy."""
REFUSAL = 3e-6


def event(number: int, peer: str, method: int = 0) -> Event:
    return (0, number, method, b"", None, ((), peer, None))


class World:
    """One event loop that serves bursts from the backlog, as the native server does."""

    def __init__(self) -> None:
        self.now = 0.0
        self.backlog = Backlog(self._refuse)
        self.came: dict[int, tuple[float, str]] = {}
        self.waits: list[tuple[float, float]] = []
        """When calls were begun, and how long they had waited."""
        self.begun: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.refused_at: list[float] = []
        self.others_refused_at: list[float] = []

    def _refuse(self, call_id: int) -> None:
        _, peer = self.came.pop(call_id)
        self.refused[peer] += 1
        if peer != "greedy":
            self.others_refused_at.append(self.now)
        self.refused_at.append(self.now)
        self.now += REFUSAL

    def turn(self, calls: list[Event]) -> list[str]:
        """Takes what came, begins a burst; the connections that have their answers."""
        backlog = self.backlog
        now = self.now
        for first in range(0, len(calls), BURST):
            backlog.add(now, calls[first : first + BURST])
        backlog.look(now)
        answered: list[str] = []
        while backlog.waiting and len(answered) < BURST:
            for _, number, *_ in backlog.next()[1]:
                came, peer = self.came.pop(number)
                self.waits.append((self.now, self.now - came))
                self.now += SERVICE
                self.begun[peer] += 1
                answered.append(peer)
        return answered

    def open_loop(self, until: float, arrivals: Iterator[tuple[float, str]]) -> None:
        """Calls come when they come."""
        number = len(self.waits) + len(self.refused_at)
        coming = next(arrivals)
        while self.now < until:
            calls = []
            while coming[0] <= self.now:
                number += 1
                self.came[number] = coming
                calls.append(event(number, coming[1]))
                coming = next(arrivals)
            if not calls and not self.backlog.waiting:
                self.now = coming[0]
                continue
            self.turn(calls)
        self.backlog.clear()

    def worst_wait(self, since: float) -> float:
        waits = sorted(wait for at, wait in self.waits if at >= since)
        return waits[int(len(waits) * 0.99)]


def poisson(
    load: float, peers: int = 16, seed: int = 1, start: float = 0.0
) -> Iterator[tuple[float, str]]:
    """Calls at ``load`` times what the loop can do."""
    random_ = random.Random(seed)
    now = start
    while True:
        now += random_.expovariate(load / SERVICE)
        yield now, f"peer-{random_.randrange(peers)}"


@pytest.mark.parametrize("seed", range(3))
def test_below_capacity_nobody_is_refused(seed: int) -> None:
    world = World()
    world.open_loop(4.0, poisson(0.8, seed=seed))
    assert not world.refused


@pytest.mark.parametrize("load", [1.25, 1.5, 2.0, 3.0])
def test_above_capacity_waits_are_bounded_and_the_loop_is_kept_busy(load: float) -> None:
    world = World()
    world.open_loop(5.0, poisson(load))
    assert world.refused
    turn = BURST * SERVICE
    # Until it is known that this lasts, waits grow; then they are those of the target.
    assert world.worst_wait(since=2.5) < 2 * (TARGET + turn)
    served = sum(1 for at, _ in world.waits if at >= 2.5)
    assert served * SERVICE > 0.8 * 2.5
    refused = sum(1 for at in world.refused_at if at >= 2.5)
    assert refused == pytest.approx((load - 1) / SERVICE * 2.5, rel=0.5)


@pytest.mark.parametrize("clients", [64, 2000, 8000])
@pytest.mark.parametrize("peers", [1, 16, 10_000])
def test_clients_that_wait_for_their_answers_are_never_refused(clients: int, peers: int) -> None:
    world = World()
    ready: deque[str] = deque(f"peer-{number % peers}" for number in range(clients))
    number = 0
    random_ = random.Random(clients)
    while world.now < 4.0:
        # The first come within 100 ms; later ones as their answers come, some a little late.
        most = max(1, int(clients * BURST * SERVICE / 0.1)) if number < clients else len(ready)
        calls = []
        for _ in range(min(most, len(ready)) - random_.randrange(8)):
            number += 1
            world.came[number] = world.now, ready[0]
            calls.append(event(number, ready.popleft()))
        ready += world.turn(calls)
        world.now += 1e-4
    assert not world.refused


def test_clients_that_stopped_for_a_while_are_not_refused_when_they_go_on() -> None:
    world = World()
    ready = deque(["peer"] * 2000)
    number = 0
    while world.now < 5.0:
        calls = []
        stopped = 1.0 < world.now % 2.0 < 1.3
        while ready and not stopped and len(calls) < 2 * BURST:
            number += 1
            world.came[number] = world.now, ready[0]
            calls.append(event(number, ready.popleft()))
        ready += world.turn(calls)
        world.now += 1e-4
    assert not world.refused


def test_when_it_is_over_all_are_served_again() -> None:
    world = World()
    world.open_loop(3.0, poisson(3.0))
    assert world.refused
    world.refused.clear()
    calm = world.now
    world.open_loop(calm + CALM + 2.0, poisson(0.8, start=calm))
    # What is left of the overload may cost a few of the first.
    assert not [at for at in world.refused_at if at > calm + 0.5]
    assert world.backlog.overload.limit is None


def test_a_greedy_connection_is_refused_before_others() -> None:
    world = World()

    def arrivals() -> Iterator[tuple[float, str]]:
        random_ = random.Random(1)
        for at, _ in poisson(2.0):
            # Ten others ask for 2 % of the capacity each.
            other = random_.random() < 0.1
            yield at, f"peer-{random_.randrange(10)}" if other else "greedy"

    world.open_loop(5.0, arrivals())
    assert world.refused["greedy"] > 1000
    # Before it was known that there are too many, their calls had to wait as all did.
    assert not [at for at in world.others_refused_at if at > 1.0]
    assert sum(count for peer, count in world.begun.items() if peer != "greedy") > 5000


def overloaded() -> World:
    world = World()
    world.open_loop(3.0, poisson(3.0))
    assert world.backlog.overload.limit is not None
    world.came.clear()
    return world


def test_questions_other_than_inference_are_not_refused() -> None:
    world = overloaded()
    calls = [event(number, "peer", method=number % 2) for number in range(5000)]
    world.came = {number: (world.now, str(number % 2)) for number in range(5000)}
    world.backlog.add(world.now, calls)
    assert world.refused["0"] > 2000
    assert not world.refused["1"]


def test_calls_that_were_cancelled_while_they_waited_are_not_begun() -> None:
    backlog = Backlog(lambda _: pytest.fail("nobody is refused"))
    backlog.cancelled(7)  # unknown: nothing waits
    backlog.add(0.0, [event(number, "peer") for number in range(10)])
    for number in (2, 3, 99):
        backlog.cancelled(number)
    now, calls = backlog.next()
    assert now == 0.0
    assert [each[1] for each in calls] == [0, 1, 4, 5, 6, 7, 8, 9]
    backlog.add(1.0, [event(99, "peer"), event(2, "peer")])
    assert [each[1] for each in backlog.next()[1]] == [99, 2]  # other calls: nothing is kept
    assert backlog.waiting == 0


def test_the_end_of_the_server_ends_those_who_wait() -> None:
    backlog = Backlog(lambda _: None)
    backlog.add(0.0, [event(1, "a"), event(2, "b")])
    backlog.add(0.1, [event(3, "a")])
    assert [each[1] for each in backlog.clear()] == [1, 2, 3]
    assert backlog.waiting == 0
    assert backlog.clear() == []
