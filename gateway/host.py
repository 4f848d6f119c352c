"""What models in this gateway see of it: its event loop, and the other models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future
from contextlib import aclosing, contextmanager, suppress
from time import perf_counter

from gateway.errors import NotLoaded
from gateway.pipeline import AwaitableCall, Pipeline
from gateway.tensors import InferenceRequest, InferenceResponse
from runtimes.interface import Description


class ModelCall(AwaitableCall):
    """A request that another model of the gateway makes."""

    __slots__ = ()
    protocol = "model"
    inner = True

    def __init__(self, request: InferenceRequest) -> None:
        now = perf_counter()
        timeout = request.timeout_us
        super().__init__(request, now, now + timeout / 1e6 if timeout else None)


class PipelineHost:
    """`runtimes.interface.Host` over the pipeline. `call` and `stream` are for other threads."""

    def __init__(self, pipeline: Pipeline, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._pipeline = pipeline

    def call(self, request: InferenceRequest) -> Future[InferenceResponse]:
        """See `Host.call`."""
        return asyncio.run_coroutine_threadsafe(self.infer(request), self.loop)

    async def infer(self, request: InferenceRequest) -> InferenceResponse:
        """As `call`, for whoever is on the loop already."""
        with self._counted():
            return await self._pipeline.infer(ModelCall(request))

    def describe(self, model: str, version: str = "") -> Description:
        """See `Host.describe`."""

        def ask() -> Description:
            route = self._pipeline.router.route(model)
            servable, _ = route.named(version) if version else route.default(None)
            return Description(servable.contract.inputs, servable.contract.outputs)

        try:
            return ask()
        except NotLoaded:
            with suppress(RuntimeError):  # no loop runs in this thread: it may wait
                if asyncio.get_running_loop() is self.loop:
                    raise
        asked = self._pipeline.when_loaded(ask, inner=True)
        return asyncio.run_coroutine_threadsafe(asked, self.loop).result()

    def stream(self, request: InferenceRequest) -> Iterator[InferenceResponse]:
        """See `Host.stream`."""
        answers = self.answers(request)
        try:
            while True:
                step = asyncio.run_coroutine_threadsafe(anext(answers, None), self.loop)
                response = step.result()
                if response is None:
                    return
                yield response
        finally:
            asyncio.run_coroutine_threadsafe(answers.aclose(), self.loop).result()

    async def answers(self, request: InferenceRequest) -> AsyncGenerator[InferenceResponse]:
        """As `stream`, for whoever is on the loop already."""
        with self._counted():
            async with aclosing(self._pipeline.stream(ModelCall(request))) as answers:
                async for response in answers:
                    yield response

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Draining waits for it."""
        admission = self._pipeline.admission
        admission.in_flight += 1
        admission.inner += 1
        try:
            yield
        finally:
            admission.in_flight -= 1
            admission.inner -= 1
