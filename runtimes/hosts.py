"""A host for models where no gateway runs: for tests and for ``sluice check --load``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from types import TracebackType

from gateway.errors import InferenceFailed, ModelNotReady
from gateway.tensors import InferenceRequest, InferenceResponse
from runtimes.interface import Description


class LoopHost:
    """An event loop in a thread, for models that answer later; there are no other models."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, request: InferenceRequest) -> Future[InferenceResponse]:
        """Fails: there is nobody to call."""
        future: Future[InferenceResponse] = Future()
        future.set_exception(nobody(request))
        return future

    def stream(self, request: InferenceRequest) -> Iterator[InferenceResponse]:
        """Fails: there is nobody to call."""
        raise nobody(request)

    def describe(self, model: str, version: str = "") -> Description:
        """Fails: there is nobody to ask."""
        raise ModelNotReady(f"model '{model}' is not here: no gateway runs")

    def close(self) -> None:
        """Ends the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def __enter__(self) -> LoopHost:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def nobody(request: InferenceRequest) -> InferenceFailed:
    return InferenceFailed(f"model '{request.model}' was called, but no gateway runs here")
