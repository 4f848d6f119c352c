"""Large JSON bodies and answers, read and written where nobody else waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any, TypeVar

from gateway.call import Call
from gateway.codecs.large import large_answer, pack_response, unpack_request
from gateway.errors import DeadlineExceeded, SluiceError
from gateway.pipeline import AwaitableCall
from gateway.servable import Servable
from gateway.servers.http_state import HttpState
from gateway.tensors import BYTES, InferenceRequest, InferenceResponse

T = TypeVar("T")


async def read_apart(
    shared: HttpState,
    deadline: float | None,
    size: int,
    function: Callable[..., T],
    *arguments: Any,
    after: Callable[[T], object] | None = None,
) -> T:
    """What `function` makes of `size` bytes, in a process of its own.

    `deadline` is of the batcher's clock. Raises `SluiceError`, `DeadlineExceeded` for one.
    """
    async with _until(deadline):
        return await shared.apart.run(size, function, *arguments, after=after)


@asynccontextmanager
async def _until(deadline: float | None) -> AsyncGenerator[None]:
    """Raises `DeadlineExceeded` when the time is over."""
    try:
        async with asyncio.timeout(None if deadline is None else deadline - perf_counter()):
            yield
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the request was queued") from None


async def read_for_model(
    shared: HttpState,
    call: Call,
    like: InferenceRequest,
    size: int,
    function: Callable[..., InferenceRequest],
    *arguments: Any,
) -> InferenceRequest:
    """The request that `function` makes of the arguments and of the model's contract.

    The version is chosen for `like`, and again if it was unloaded meanwhile. Raises `SluiceError`.
    """
    pipeline = shared.pipeline
    while True:
        async with _until(call.deadline):
            chosen = await pipeline.when_loaded(lambda: pipeline.choose(call, like))
        call.chosen = chosen
        servable: Servable = chosen[0]
        request = await read_apart(
            shared,
            call.deadline,
            size,
            function,
            *arguments,
            servable.contract,
            after=unpack_request,
        )
        if still_there(shared, like.model, servable):
            return request


def still_there(shared: HttpState, model: str, servable: Servable) -> bool:
    """Whether a version was not unloaded since it was chosen: nobody kept it meanwhile."""
    route = shared.pipeline.router.table.get(model)
    return route is not None and route.versions.get(servable.version) is servable


async def ready(shared: HttpState, call: AwaitableCall, reading: Callable[[], Any]) -> bool:
    """Whether the call has its request now; else it has ended with an error."""
    try:
        shared.pipeline.admission.check_room()
        call.request = await reading()
    except SluiceError as error:
        shared.pipeline.refuse(call, error)
        return False
    return True


async def written(
    shared: HttpState,
    response: InferenceResponse,
    write: Callable[[InferenceResponse], bytes],
) -> bytes:
    """What `write`, which is importable, makes of an answer. Raises `SluiceError`."""
    size = large_answer(response.outputs)
    if not size:
        return write(response)
    return await write_apart(shared, size, write, response)


async def write_apart(
    shared: HttpState,
    size: int,
    function: Callable[..., T],
    response: InferenceResponse,
    *more: Any,
) -> T:
    """What `function` makes of an answer, in a process of its own. Raises `SluiceError`."""
    if any(tensor.datatype is BYTES for tensor in response.outputs):
        response = await asyncio.to_thread(pack_response, response)
    return await shared.apart.run(
        size, function, response, *more, trouble="cannot encode the answer"
    )
