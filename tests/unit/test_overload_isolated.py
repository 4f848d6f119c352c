"""What a child process has to be told so that it can judge overload by itself."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from gateway.batching.curve import CostCurve
from gateway.batching.policy import BatchPolicy
from gateway.call import Call
from gateway.errors import ModelLoadError, QueueFull, Saturated
from gateway.isolation import messages as m
from gateway.isolation.bounds import Bounds
from gateway.isolation.child import unbounded
from gateway.lifecycle.loading import load_here
from gateway.model_settings import BatchingSettings, ModelSettings, QueueSettings
from runtimes.interface import Artifact, Model, Runtime
from tests.properties.simulation import AddOne, Simulation
from tests.unit.test_isolation_serving import Bench


class Waiting(Call):
    """One row that waits."""


def waiting(size: int = 4) -> Call:
    call = Waiting(0.0)
    call.request = Simulation().call().request
    call.size = size
    return call


def test_refusals_at_the_bounds_are_told_once() -> None:
    calls = [waiting(), waiting()]
    policy = BatchPolicy(BatchingSettings(queue=QueueSettings(max_rows=2, max_bytes=100)))
    bounds = Bounds("m/1", policy, CostCurve(), lambda: calls)
    for call in calls:
        bounds.add(call)
    for call in (waiting(), waiting(200)):
        with pytest.raises(QueueFull):
            bounds.check(call, 0.0)
    assert bounds.take_away() == 2
    assert bounds.take_away() == 0


@pytest.mark.parametrize("inner", [False, True])
def test_the_child_knows_inner_calls_and_refusals(
    inner: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = m.Sent

    def telling(*fields: object) -> m.Sent:
        return plain(*fields)._replace(inner=inner, away=5)  # type: ignore[arg-type]

    async def main() -> None:
        bench = Bench()
        try:
            batcher = Simulation().batcher
            came: list[Call] = []
            batcher.submit = came.append  # type: ignore[method-assign]
            bench.serving.dispatcher = batcher
            monkeypatch.setattr(m, "Sent", telling)
            bench.request(0)
            assert [call.inner for call in came] == [inner]
            assert batcher.overload._away == 5
        finally:
            bench.close()

    asyncio.run(main())


def test_the_child_keeps_the_setting() -> None:
    queue = QueueSettings(overload_wait_us=0)
    settings = unbounded(ModelSettings(batching=BatchingSettings(queue=queue)))
    assert settings.batching.queue.overload_wait_us == 0


def test_the_refusal_comes_over_as_it_is() -> None:
    error = m.error_of(m.tell_error(Saturated("too much", retry_after=2.5)))
    assert isinstance(error, Saturated)
    assert error.retry_after == 2.5


def test_a_model_of_many_answers_has_no_such_setting() -> None:
    class Talker(AddOne):
        decoupled = True

    class Talkers:
        name = "talkers"

        def load(self, artifact: Artifact) -> Model:
            return Talker()

    queue = QueueSettings(overload_wait_us=0)
    settings = ModelSettings(batching=BatchingSettings(queue=queue))
    artifact = Artifact("m", "1", None, settings, None)  # type: ignore[arg-type]
    with pytest.raises(ModelLoadError, match=r"overload_wait_us is for models that answer each"):
        load_here(artifact, cast(Runtime, Talkers()), 64, lambda runtime: None)
