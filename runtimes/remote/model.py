"""A model on other servers: attempts, replicas, retries. The transport knows the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from random import Random
from time import perf_counter
from typing import Any, Final

from gateway.contract import for_the_model
from gateway.errors import DeadlineExceeded, InferenceFailed, SluiceError
from gateway.tensors import (
    Array,
    InferenceRequest,
    InferenceResponse,
    Parameter,
    Tensor,
    TensorSpec,
)
from runtimes.interface import ForwardingModel, Headers, Outputs
from runtimes.remote.failures import AttemptFailed, Fate, unreachable
from runtimes.remote.pool import Endpoint, Pool, RetryBudget, pause
from runtimes.remote.replicas import Replicas
from runtimes.remote.signature import Signature
from runtimes.remote.transport import Connection, Pairs, Transport, nobody

INSTANCES: Final = 4
"""Batches that may be under way at the same time where the gateway forms them."""
STREAMS: Final = 64
"""Requests to a decoupled model that may be under way at the same time."""
CLOSE_SECONDS: Final = 5.0
AMPLE_SECONDS: Final = 1.0
"""An attempt that took this long until the caller's deadline speaks against its replica."""
WARM_UP_SECONDS: Final = 60.0
"""Longest time for a request that no caller made: nobody would end it."""


class RemoteModel(ForwardingModel):
    """One version of ours that is a model on one or more other servers.

    `replicas` and everything behind them live on `loop`. What is known of the model there is
    in `signature`.
    """

    parameters_matter = True
    probed = False
    elsewhere = True

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: Transport,
        replicas: Replicas,
        signature: Signature,
        *,
        idempotent: bool,
        decoupled: bool = False,
        instances: int = 0,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__(loop)
        settings = transport.settings
        self.transport = transport
        self.replicas = replicas
        self.pool: Pool[Connection] = replicas.pool
        self.inputs: tuple[TensorSpec, ...] = signature.inputs
        self.outputs: tuple[TensorSpec, ...] = signature.outputs
        self.platform = signature.platform
        self.batch_dimension = signature.batch_dimension
        self.batches_itself = settings.batching == "server"
        self.decoupled = decoupled
        self.instances = instances or (STREAMS if decoupled else INSTANCES)
        self.max_batch_size = max_batch_size
        self.budget = RetryBudget(perf_counter, settings.retry_share)
        self.retried = 0
        """Attempts that were not the first of their request."""
        self._datatypes = {spec.name: spec.datatype for spec in signature.inputs}
        self._limit = settings.timeout_ms / 1e3
        self._retries = settings.retries
        self._idempotent = idempotent
        self._random = Random()
        self._closed = False

    # --- the ways in

    async def forward(
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> InferenceResponse:
        """As the interface says."""
        transport = self.transport
        message = transport.encode(request, self._left(deadline))
        answer = await self._attempts(message, deadline, transport.headers(headers))
        return transport.decode(answer, request)

    async def infer_async(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Outputs:
        """One batch of the gateway's own."""
        return await self.infer_until(inputs, outputs, parameters, None, nobody)

    async def infer_until(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
        deadline: float | None,
        headers: Headers,
    ) -> Outputs:
        """As the interface says."""
        transport = self.transport
        request = self._request(inputs, outputs, parameters)
        message = transport.encode(request, self._left(deadline))
        answer = await self._attempts(message, deadline, transport.headers(headers))
        response = transport.decode(answer, request)
        return {tensor.name: tensor.array for tensor in response.outputs}

    def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Outputs:
        """As the interface says, within `WARM_UP_SECONDS`."""
        end = perf_counter() + WARM_UP_SECONDS
        work = self.infer_until(inputs, outputs, parameters, end, nobody)
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        return future.result(WARM_UP_SECONDS + CLOSE_SECONDS)

    async def stream_async(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> AsyncGenerator[Outputs]:
        """As the interface says, within `WARM_UP_SECONDS`: callers have `forward_stream`."""
        request = self._request(inputs, outputs, parameters)
        answers = self.forward_stream(request, perf_counter() + WARM_UP_SECONDS, nobody)
        async with aclosing(answers):
            async for response in answers:
                yield {tensor.name: tensor.array for tensor in response.outputs}

    def _request(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> InferenceRequest:
        there = self.transport.there
        tensors = [
            Tensor(name, self._datatypes[name], array.shape, array=array)
            for name, array in inputs.items()
        ]
        return InferenceRequest(
            there.ours,
            there.our_version,
            tuple(tensors),
            outputs=tuple(outputs),
            parameters=for_the_model(parameters) or None,
        )

    async def forward_stream(
        self, request: InferenceRequest, deadline: float | None, headers: Headers
    ) -> AsyncGenerator[InferenceResponse]:
        """As the interface says. Another replica is tried until the first answer is there."""
        transport = self.transport
        if not transport.streams:
            raise InferenceFailed("models that answer many times are reached by grpc:// urls alone")
        message = transport.encode(request, self._left(deadline))
        wire = request.wire is not None
        pairs = transport.headers(headers)
        self.budget.request()
        tried: list[Endpoint[Connection]] = []
        while True:
            endpoint = self._choose(tried)
            timeout = self._timeout(deadline)
            answers = endpoint.connection.stream(message, timeout, pairs, wire=wire)
            since = perf_counter()
            epoch = self.pool.started(endpoint)
            begun = False
            try:
                # Closed at once if the caller leaves, not when the garbage is collected.
                async with aclosing(answers):
                    async for response in answers:
                        if not begun:
                            begun = True
                            self.pool.begun(endpoint, epoch)
                        yield response
            except AttemptFailed as failure:
                # What has answered may take as long as it likes.
                self._ended(endpoint, epoch, failure, perf_counter() if begun else since)
                if begun:
                    raise failure.error from None
                await self._before_retry(failure, tried, endpoint, deadline)
            except SluiceError:  # an answer that makes no sense
                self.pool.answered(endpoint, epoch)
                raise
            except BaseException:
                self.pool.dropped(endpoint, epoch)
                raise
            else:
                self.pool.answered(endpoint, epoch)
                return

    # --- attempts

    async def _attempts(self, message: Any, deadline: float | None, headers: Pairs) -> Any:
        """The first answer that is one. Raises `SluiceError`."""
        pool = self.pool
        self.budget.request()
        tried: list[Endpoint[Connection]] = []
        while True:
            endpoint = self._choose(tried)
            timeout = self._timeout(deadline)
            since = perf_counter()
            epoch = pool.started(endpoint)
            try:
                answer = await endpoint.connection.infer(message, timeout, headers)
            except AttemptFailed as failure:
                self._ended(endpoint, epoch, failure, since)
                await self._before_retry(failure, tried, endpoint, deadline)
            except BaseException:
                pool.dropped(endpoint, epoch)
                raise
            else:
                pool.answered(endpoint, epoch)
                return answer

    def _choose(self, tried: Sequence[Endpoint[Connection]]) -> Endpoint[Connection]:
        endpoint = self.pool.choose(tried)
        if endpoint is None:
            raise unreachable(self.replicas.trouble or "its name has no address").error
        return endpoint

    def _ended(
        self, endpoint: Endpoint[Connection], epoch: int, failure: AttemptFailed, since: float
    ) -> None:
        fate = failure.fate
        ample = fate is Fate.EXPIRED and perf_counter() - since >= AMPLE_SECONDS
        if failure.blames_server or ample:
            self.pool.failed(endpoint, epoch, str(failure))
            self.replicas.look_soon()
        elif fate is Fate.ANSWERED:
            self.pool.answered(endpoint, epoch)
        else:  # too much to do there, or too little time: neither good nor bad
            self.pool.dropped(endpoint, epoch)

    async def _before_retry(
        self,
        failure: AttemptFailed,
        tried: list[Endpoint[Connection]],
        endpoint: Endpoint[Connection],
        deadline: float | None,
    ) -> None:
        """Waits until the next attempt may begin. Raises the failure's error if none may."""
        may = failure.retryable_if_idempotent if self._idempotent else failure.retryable
        if not may or len(tried) >= self._retries:
            raise failure.error from None
        tried.append(endpoint)
        # Elsewhere at once; where it has failed before, only after a while.
        seconds = 0.0
        if not self.pool.has_usable(tried):
            if failure.elsewhere:
                raise failure.error from None
            seconds = pause(len(tried) - 1, self._random)
        if deadline is not None and perf_counter() + seconds >= deadline:
            raise failure.error from None
        if not self.budget.take():
            raise failure.error from None
        self.retried += 1
        if seconds:
            await asyncio.sleep(seconds)

    def _timeout(self, deadline: float | None) -> float | None:
        """Seconds that an attempt may take. Raises `DeadlineExceeded` if there are none left."""
        if deadline is None:
            return self._limit or None
        left = deadline - perf_counter()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the request was sent on")
        return min(left, self._limit) if self._limit else left

    def _left(self, deadline: float | None) -> float | None:
        if deadline is None:
            return self._limit or None
        return max(deadline - perf_counter(), 0.0)

    # --- the rest

    def status(self) -> dict[str, object]:
        """The replicas and their health."""
        return {"endpoints": self.replicas.status(), "retries": self.retried}

    def close(self) -> None:
        """Ends the health checks and the connections; for any thread."""
        if self._closed:
            return
        self._closed = True
        self.closing = on_loop(self.loop, self._close, CLOSE_SECONDS)

    async def _close(self) -> None:
        await self.replicas.close()
        await self.transport.close()


def on_loop(
    loop: asyncio.AbstractEventLoop, work: Callable[[], Any], seconds: float
) -> asyncio.Task[Any] | None:
    """Has `loop` do something, and waits for it (`seconds` at most). On the loop itself nobody
    can wait: then it is under way, and returned."""
    if loop.is_closed() or not loop.is_running():
        return None
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is loop:
        task = loop.create_task(work())
        _closing.add(task)
        task.add_done_callback(_closing.discard)
        return task
    future = asyncio.run_coroutine_threadsafe(work(), loop)
    try:
        future.result(seconds)
    except TimeoutError:
        future.cancel()
    return None


_closing: set[asyncio.Task[Any]] = set()
"""Closings under way: the loop itself keeps no hold of its tasks."""
