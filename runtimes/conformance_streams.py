"""Checks of models with many answers, and of those that answer later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypeVar

from runtimes.conformance_base import ROWS, Suite, require
from runtimes.interface import AsyncModel, Model, Outputs

T = TypeVar("T")


class StreamChecks(Suite):
    """Of `decoupled` models and an `AsyncModel`; others pass."""

    def test_streams_stop_when_they_are_closed(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            if not model.decoupled:
                return
            inputs = self.inputs(model, ROWS)
            whole = self.answers(model, inputs)
            # A stream that keeps its place after it was closed would use them all up.
            for _ in range(model.instances + 2):
                self._open_and_close(model)
            again = self.in_thread(lambda: self.answers(model, inputs), "stream() after others")
            if self.comparable(model):
                self.same_answers("after closed streams", again, whole)

    def test_awaits_all_instances_at_once(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            if not isinstance(model, AsyncModel) or model.decoupled:
                return
            count = 1 if model.stateful else model.instances
            asked = [self.inputs(model, ROWS, seed) for seed in range(count)]
            alone = [self.answers(model, inputs) for inputs in asked]

            async def together() -> list[Outputs]:
                return await asyncio.gather(*(model.infer_async(i, (), {}) for i in asked))

            got = self.on_loop(model, together())
            if self.comparable(model):
                for one, expected in zip(got, alone, strict=True):
                    self.same_answers("beside other calls", [one], expected)

    def test_can_be_cancelled(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            if not isinstance(model, AsyncModel) or model.decoupled:
                return
            inputs = self.inputs(model, ROWS)
            count = 1 if model.stateful else model.instances

            async def begin_and_cancel() -> int:
                tasks = [asyncio.ensure_future(_run(model, inputs)) for _ in range(count)]
                for _ in range(3):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                _, hung = await asyncio.wait(tasks, timeout=self.patience / 2)
                return len(hung)

            for _ in range(2):
                hung = self.on_loop(model, begin_and_cancel())
                require(hung == 0, "infer_async() does not end when it is cancelled")
            self.on_loop(model, _run(model, inputs))

    # -- helpers -------------------------------------------------------------------------

    def _open_and_close(self, model: Model) -> None:
        inputs = self.inputs(model, ROWS)
        if isinstance(model, AsyncModel):
            self.on_loop(model, _close_after_one(model.stream_async(inputs, (), {})))
            return

        def work() -> None:
            stream = model.stream(inputs, (), {})
            if next(stream, None) is None:
                return
            close = getattr(stream, "close", None)
            require(callable(close), "what stream() gives needs close(), as a generator has")
            close()  # type: ignore[misc]
            require(_is_over(stream), "a closed stream goes on")

        self.in_thread(work, "closing a stream")


def _is_over(stream: Iterator[Outputs]) -> bool:
    return next(stream, None) is None


async def _close_after_one(stream: AsyncIterator[Outputs]) -> None:
    if await anext(stream, None) is None:
        return
    close = getattr(stream, "aclose", None)
    require(callable(close), "what stream_async() gives needs aclose(), as a generator has")
    await close()  # type: ignore[misc]
    require(await anext(stream, None) is None, "a closed stream goes on")


async def _run(model: AsyncModel, inputs: dict[str, Any]) -> Outputs:
    return await model.infer_async(inputs, (), {})
