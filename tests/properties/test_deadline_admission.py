"""Deadline admission: refused is only what the work really ahead makes impossible."""

from __future__ import annotations

import pytest

from gateway.errors import DeadlineUnmeetable
from gateway.model_settings import BatchingSettings, QueueSettings
from tests.properties.simulation import MS, Simulation


def busy(settings: BatchingSettings, waiting: int = 12) -> Simulation:
    """One batch of 10 ms runs, others wait for it, and the cost is known."""
    simulation = Simulation(settings, max_rows=4)
    for rows in (1, 2, 4):
        simulation.batcher.curve.observe(rows, 10 * MS)
    simulation.arrive()
    simulation.at(1 * MS, lambda: [simulation.arrive() for _ in range(waiting)])
    return simulation


def test_work_that_an_urgent_call_overtakes_is_not_counted() -> None:
    """Twelve wait without a deadline: 30 ms of work, but nobody goes before the urgent one."""
    simulation = busy(BatchingSettings())
    simulation.at(2 * MS, lambda: simulation.arrive(deadline=25 * MS))
    simulation.run()
    assert simulation.calls[-1].error is None


def test_work_that_goes_before_is_counted() -> None:
    simulation = busy(BatchingSettings(), waiting=0)
    simulation.at(1 * MS, lambda: [simulation.arrive(deadline=100 * MS) for _ in range(12)])
    simulation.at(2 * MS, lambda: simulation.arrive(deadline=99.5 * MS))
    simulation.run()
    assert simulation.calls[-1].error is None

    late = busy(BatchingSettings(), waiting=0)
    late.at(1 * MS, lambda: [late.arrive(deadline=28 * MS) for _ in range(6)])
    late.at(2 * MS, lambda: late.arrive(deadline=27.5 * MS))
    late.run()
    assert isinstance(late.calls[-1].error, DeadlineUnmeetable)


def test_what_has_run_already_of_the_batch_in_the_runtime_is_not_counted() -> None:
    simulation = busy(BatchingSettings(), waiting=0)
    simulation.at(9 * MS, lambda: simulation.arrive(deadline=12 * MS))
    simulation.run()
    assert simulation.calls[-1].error is None


@pytest.mark.parametrize("action", ["delay", "reject"])
def test_a_queue_limit_that_only_delays_refuses_nobody(action: str) -> None:
    settings = BatchingSettings(queue=QueueSettings(timeout_us=15_000, timeout_action=action))
    simulation = busy(settings)
    simulation.run()
    refused = [c for c in simulation.calls if isinstance(c.error, DeadlineUnmeetable)]
    assert bool(refused) == (action == "reject")
    if action == "delay":
        assert all(call.error is None for call in simulation.calls)
