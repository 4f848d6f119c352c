"""ModelStreamInfer on grpcio: many requests under way on one stream, and their answers.

Models that answer once answer in the order of their requests; the answers of decoupled ones
go out as they come, in between. At most `WINDOW` requests are under way, each with one
message that waits to be written: who does not read gets nothing more made.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final

from gateway.codecs.messages import ModelStreamInferResponse
from gateway.codecs.oip_grpc import GrpcCodec
from gateway.errors import InvalidRequest, SluiceError, text_of
from gateway.pipeline import Answers, Late, Pipeline
from gateway.servers.grpc_call import GrpcioCall, told
from gateway.telemetry.logs import log
from gateway.tensors import InferenceResponse

WINDOW: Final = 64
"""Requests of one stream that may be under way; the stream is not read on beyond it."""
EMPTY_FINAL: Final = "triton_enable_empty_final_response"
"""Parameter: a decoupled model's request ends with a message of its own, without outputs."""


class StreamInfer:
    """One stream. Iterate over `answers`; `make` turns a payload into a call."""

    def __init__(
        self, pipeline: Pipeline, codec: GrpcCodec, make: Callable[[bytes], GrpcioCall]
    ) -> None:
        self._pipeline = pipeline
        self._codec = codec
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._out: deque[tuple[bytes, Callable[[], object]]] = deque()
        """Messages to write, and what to do once they are on their way."""
        self._in_order: deque[GrpcioCall] = deque()
        """Calls with one answer each, not yet in `_out`."""
        self._streamed: dict[GrpcioCall, asyncio.Task[None]] = {}
        """Decoupled requests, and what forwards their answers."""
        self._under_way = 0
        self._reading = True
        self._to_write: asyncio.Future[None] | None = None
        self._to_read: asyncio.Future[None] | None = None

    async def answers(self, payloads: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """Messages to write, until the client has no more requests and all are answered. Closing
        it, or cancelling who waits for it, cancels everything."""
        reader = self._loop.create_task(self._read(payloads))
        try:
            while True:
                while self._out:
                    message, written = self._out.popleft()
                    yield message
                    written()
                if not (self._reading or self._under_way):
                    return
                self._to_write = self._loop.create_future()
                await self._to_write
        finally:
            reader.cancel()
            for call, task in list(self._streamed.items()):
                task.cancel()
                call.cancel()  # a task that has not begun never will
            for call in self._in_order:
                abandon(call)

    # --- in

    async def _read(self, payloads: AsyncIterator[bytes]) -> None:
        try:
            async for payload in payloads:
                self._start(self._make(payload))
                while self._under_way >= WINDOW:
                    self._to_read = self._loop.create_future()
                    await self._to_read
        except Exception:
            log.debug("a gRPC stream broke off", exc_info=True)
        finally:
            self._reading = False
            wake(self._to_write)

    def _start(self, call: GrpcioCall) -> None:
        self._under_way += 1
        answers = self._pipeline.serve(call, many=True)
        if answers is None or isinstance(answers, Late):
            self._in_order.append(call)
            call.future.add_done_callback(self._answered)
            if answers is not None:
                answers.then(lambda found: self._loaded(call, found))
            return
        self._streamed[call] = self._loop.create_task(self._forward(call, answers))

    def _loaded(self, call: GrpcioCall, answers: Answers | None) -> None:
        """The model of a call was not loaded, and is now: only now it is known to be decoupled,
        if there are `answers`."""
        if answers is None or call not in self._in_order:
            return
        self._in_order.remove(call)
        call.future.remove_done_callback(self._answered)
        self._streamed[call] = self._loop.create_task(self._forward(call, answers))
        self._answered(call.future)  # those behind it wait for it no longer

    # --- out

    def _answered(self, future: asyncio.Future[InferenceResponse]) -> None:
        """Sends the answers whose turn it is."""
        while self._in_order and self._in_order[0].future.done():
            call = self._in_order.popleft()
            if call.future.cancelled():
                self._ended()
                continue
            try:
                response = call.future.result()
                message = self._codec.encode_for_stream(response, typed=call.typed)
            except Exception as error:
                message = error_message(call, told(error))
            self._out.append((message, self._ended))
        wake(self._to_write)

    def _ended(self) -> None:
        """One request less is under way."""
        self._under_way -= 1
        wake(self._to_read)
        wake(self._to_write)

    async def _forward(self, call: GrpcioCall, answers: Answers) -> None:
        """Sends the answers of a decoupled model as they come."""
        version = call.request.version
        try:
            last_wanted = wants_empty_final(call)
            async for response in answers:
                version = response.version
                await self._send(
                    self._codec.encode_for_stream(response, typed=call.typed, final=False)
                )
            if last_wanted:
                end = InferenceResponse(call.request.model, version, (), id=call.request.id)
                await self._send(self._codec.encode_for_stream(end, typed=False))
        except Exception as error:
            await self._send(error_message(call, told(error)))
        finally:
            await answers.aclose()
            call.release()
            self._streamed.pop(call, None)
            self._ended()

    async def _send(self, message: bytes) -> None:
        """Waits until the message is on its way."""
        written = self._loop.create_future()
        self._out.append((message, lambda: wake(written)))
        wake(self._to_write)
        await written


def wants_empty_final(call: GrpcioCall) -> bool:
    """Whether the request asks for a last message without outputs. Raises `InvalidRequest`."""
    value = (call.request.parameters or {}).get(EMPTY_FINAL, False)
    if type(value) is not bool:
        raise InvalidRequest(f"parameter '{EMPTY_FINAL}' must be a bool_param")
    return value


def error_message(call: GrpcioCall, error: SluiceError) -> bytes:
    """The serialized message that ends one request of a stream with an error."""
    message = ModelStreamInferResponse(error_message=text_of(error))
    request = getattr(call, "request", None)
    if request is not None:
        # The id tells the client which of its requests failed.
        message.infer_response.id = request.id
    message.infer_response.parameters["triton_final_response"].bool_param = True
    encoded: bytes = message.SerializeToString()
    return encoded


def wake(waiter: asyncio.Future[None] | None) -> None:
    """Lets whoever waits go on."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def abandon(call: GrpcioCall) -> None:
    """Nobody waits for this call any more."""
    call.cancel()
    if call.future.done() and not call.future.cancelled():
        call.future.exception()
