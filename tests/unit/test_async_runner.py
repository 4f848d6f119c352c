"""Batches of models that answer later: one task each, and `done` whatever the model does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gateway.batching.runner import AsyncRunner, Batch, execute
from gateway.call import Call
from gateway.errors import InferenceFailed, WrongRows
from gateway.tensors import DATATYPES, InferenceRequest, Tensor, TensorSpec
from runtimes.interface import AsyncModel, Model

SPEC = TensorSpec("x", DATATYPES["INT64"], (-1,))


class Later(AsyncModel):
    """Answers ``x + 1`` when it is let."""

    inputs = outputs = (SPEC,)
    parameters_matter = True

    def __init__(self, act: Callable[[], Any] | None = None) -> None:
        super().__init__(asyncio.get_running_loop())
        self.gate = asyncio.Event()
        self.begun = 0
        self.seen: list[Any] = []
        self._act = act

    async def infer_async(self, inputs: Any, outputs: Any, parameters: Any) -> Any:
        self.begun += 1
        self.seen.append(parameters)
        await self.gate.wait()
        if self._act is not None:
            return self._act()
        return {"x": inputs["x"] + 1}


def batch(*values: int, parameters: Any = None) -> Batch:
    calls = []
    for value in values:
        call = Call(0.0)
        tensor = Tensor("x", SPEC.datatype, (1,), array=np.array([value]))
        call.request = InferenceRequest("m", "", (tensor,), parameters=parameters)
        calls.append(call)
    return Batch(calls, len(calls), "idle", 0.0)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_batches_run_side_by_side_and_come_back_on_the_loop() -> None:
    async def test() -> None:
        model = Later()
        runner = AsyncRunner(model, batched=True)
        done: list[Batch] = []
        runner.run(batch(1, 2), done.append, here=False)
        runner.run(batch(3), done.append, here=True)
        await settle()
        assert model.begun == 2 and not done
        model.gate.set()
        await settle()
        assert [each.outputs["x"].tolist() for each in done] == [[2, 3], [4]]
        assert done[0].started <= done[0].assembled <= done[0].finished
        runner.close()

    asyncio.run(test())


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (ValueError("bad"), ValueError, "bad"),
        (asyncio.CancelledError(), InferenceFailed, "the model raised CancelledError"),
        (SystemExit(1), InferenceFailed, "the model raised SystemExit"),
    ],
)
def test_done_is_called_whatever_the_model_raises(
    raised: BaseException, kind: type[Exception], text: str
) -> None:
    def act() -> Any:
        raise raised

    async def test() -> None:
        model = Later(act)
        model.gate.set()
        done: list[Batch] = []
        runner = AsyncRunner(model, batched=True)
        runner.run(batch(1), done.append, here=False)
        await settle()
        assert len(done) == 1 and type(done[0].error) is kind and str(done[0].error) == text

    asyncio.run(test())


def test_rows_are_checked() -> None:
    async def test() -> None:
        model = Later(lambda: {"x": np.array([1])})
        model.gate.set()
        done: list[Batch] = []
        AsyncRunner(model, batched=True).run(batch(1, 2), done.append, here=False)
        await settle()
        assert isinstance(done[0].error, WrongRows)

    asyncio.run(test())


def test_reserved_parameters_are_not_the_models() -> None:
    async def test() -> None:
        model = Later()
        model.gate.set()
        done: list[Batch] = []
        parameters = {"a": 1, "priority": 2, "triton_enable_empty_final_response": True}
        AsyncRunner(model, batched=True).run(
            batch(1, parameters=parameters), done.append, here=False
        )
        await settle()
        assert model.seen == [{"a": 1}]

    asyncio.run(test())


def test_a_model_that_exits_fails_its_batch_not_the_gateway() -> None:
    class Exits(Model):
        inputs = outputs = (SPEC,)

        def infer(self, inputs: Any, outputs: Any, parameters: Any) -> Any:
            raise SystemExit(1)

    each = batch(1)
    execute(Exits(), each, batched=True)
    assert isinstance(each.error, InferenceFailed)


def test_the_answers_of_a_model_on_the_loop_for_other_threads() -> None:
    class Two(Later):
        decoupled = True

        async def stream_async(self, inputs: Any, outputs: Any, parameters: Any) -> Any:
            try:
                for value in range(2):
                    yield {"x": np.array([value])}
            finally:
                closed.append(True)

    closed: list[bool] = []

    async def test() -> None:
        model = Two()
        found = await asyncio.to_thread(lambda: [each["x"][0] for each in model.stream({}, (), {})])
        assert found == [0, 1] and closed == [True]
        answers = model.stream({}, (), {})
        await asyncio.to_thread(next, answers)
        await asyncio.to_thread(answers.close)  # type: ignore[attr-defined]
        assert closed == [True, True]

    asyncio.run(test())
