"""The gRPC hot path: unary calls on pygrpc-native, which hands them over in bursts.

HTTP/2 runs in Rust outside the GIL. One thread of ours takes bursts of calls and passes them
to the event loop; everything else is on the loop. Streams, health and reflection go to a
grpcio server behind it, over a Unix socket.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, Final

from pygrpc_native import EVENT_CALL, NativeGrpcFront

from gateway.call import Call
from gateway.codecs.messages import METHODS
from gateway.codecs.oip_grpc import GrpcCodec
from gateway.codecs.statuses import UNAVAILABLE, grpc_status
from gateway.config import LimitsConfig
from gateway.control.callers import Caller
from gateway.errors import (
    DeadlineExceeded,
    Draining,
    InferenceFailed,
    NotLoaded,
    SluiceError,
    text_of,
)
from gateway.pipeline import Pipeline
from gateway.servers.backlog import lengthen
from gateway.servers.grpc_service import INFER, GrpcService, Slow, grpc_caller
from gateway.servers.trailers import answer_trailers, error_trailers
from gateway.telemetry.logs import log
from gateway.tensors import InferenceRequest, InferenceResponse

BURST: Final = 256
"""Most calls taken at once."""
FEW: Final = 4
"""Calls in flight up to which the loop looks on while others work for it."""
ELSEWHERE: Final = 10
"""For how many times `poll_us` it does so: the answer comes to a thread that is awake, and the
next call needs no other thread to be woken. (Halves what a hop to a server near by adds.)"""


class NativeCall(Call):
    """One ModelInfer on the native server."""

    __slots__ = ("_id", "_metadata", "_payload", "_server", "_typed")

    protocol = "grpc"

    def __init__(
        self,
        server: NativeGrpcServer,
        call_id: int,
        payload: bytes,
        metadata: Sequence[tuple[str, str | bytes]],
        arrived: float,
        deadline: float | None,
    ) -> None:
        super().__init__(arrived, deadline)
        self._server = server
        self._id = call_id
        self._payload = payload
        self._metadata = metadata
        self._typed = False

    def decode(self) -> InferenceRequest:
        server = self._server
        payload = self._payload
        self._payload = b""
        server.pipeline.admission.check_size(len(payload))
        request, self._typed = server.codec.decode(payload)
        return request

    def header(self, name: str) -> str | None:
        for key, value in self._metadata:
            if key == name and isinstance(value, str):
                return value
        return None

    def _replied(self, response: InferenceResponse) -> None:
        server = self._server
        server.ended(self._id)
        # Large tensors make room for the answer, and then for the server's copy of it.
        self.request.inputs, self.request.wire = (), None
        try:
            payload = server.codec.encode(response, typed=self._typed)
            response.outputs = ()
        except Exception as error:
            log.exception("cannot encode an answer")
            self._send(InferenceFailed(f"cannot encode the answer: {type(error).__name__}"))
            return
        server.front.respond(self._id, payload, None, answer_trailers(response))

    def _failed(self, error: SluiceError) -> None:
        self._server.ended(self._id)
        self._send(error)

    def _send(self, error: SluiceError) -> None:
        front = self._server.front
        try:
            front.fail(self._id, grpc_status(error), text_of(error), error_trailers(error))
        except ValueError:
            # Whatever is wrong with the words: a caller without an answer would wait for ever.
            log.exception("cannot send an error")
            front.fail(self._id, grpc_status(error), type(error).__name__)

    def _cancelled(self) -> None:
        self._server.ended(self._id)


class NativeGrpcServer:
    """Serves the unary RPCs on `address`; `fallback` is the Unix socket of the grpcio server."""

    def __init__(
        self,
        address: str,
        pipeline: Pipeline,
        codec: GrpcCodec,
        service: GrpcService,
        limits: LimitsConfig,
        *,
        io_threads: int,
        poll_us: int,
        fallback: str,
    ) -> None:
        self.pipeline = pipeline
        self.codec = codec
        names = [INFER, *service.handlers, *service.slow]
        self._handlers = dict(enumerate(service.handlers.values(), start=1))
        self._slow = dict(enumerate(service.slow.values(), start=1 + len(self._handlers)))
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._calls: dict[int, NativeCall] = {}
        self._poll_seconds = poll_us / 1e6
        self._look_until = 0.0
        self._waited = False
        """Whether calls were with others when the loop last looked."""
        self._turn = threading.Semaphore(0)
        """Whose turn it is to look for calls: released when it is the thread's again."""
        self._loop = asyncio.get_running_loop()
        self.front = NativeGrpcFront(
            address,
            [(METHODS[name].path, False) for name in names],
            io_threads=io_threads,
            call_details=True,
            max_metadata_size=limits.max_header_bytes,
        )
        self.front.set_fallback(fallback)
        self._thread = threading.Thread(target=self._receive, name="sluice-grpc", daemon=True)

    @property
    def port(self) -> int:
        return self.front.bound_port

    def start(self) -> None:
        self.front.start()
        lengthen(self.port)
        self._thread.start()

    # --- on the receiving thread

    def _receive(self) -> None:
        receive = self.front.recv_batch_details
        while (events := receive(BURST)) is not None:
            try:
                self._loop.call_soon_threadsafe(self._take, events)
            except RuntimeError:
                return  # the loop is closed
            # Until the loop no longer looks for calls by itself.
            self._turn.acquire()

    # --- on the event loop

    def _take(self, events: list[Any]) -> None:
        """A burst from the thread; from here on the loop looks by itself for a while."""
        self._burst(events)
        self._look_until = perf_counter() + self._poll_seconds
        self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Takes what has come, without the way over the thread; gives the turn back when for a
        moment nothing did, or when a model is at work in a thread, which needs the core more."""
        events = self.front.recv_batch_details(BURST, 0)
        if events:
            self._burst(events)
            self._look_until = perf_counter() + self._poll_seconds
        elif events is None or not self._worth_a_look():
            self._turn.release()
            return
        self._loop.call_soon(self._look)

    def _worth_a_look(self) -> bool:
        """Whether calls may come soon, and nothing in this process needs the core more."""
        now = perf_counter()
        calls = self._calls
        if not calls:
            if self._waited:
                self._waited = False
                self._look_until = now + self._poll_seconds
            return now < self._look_until
        self._waited = True
        return (
            len(calls) <= FEW
            and now < self._look_until + self._poll_seconds * ELSEWHERE
            and all(call.owner is not None and call.owner.elsewhere for call in calls.values())
        )

    def _burst(self, events: list[Any]) -> None:
        now = perf_counter()
        serve = self.pipeline.serve
        calls = self._calls
        admission = self.pipeline.admission
        events.reverse()
        while events:
            # Taken out, and below let go of: nobody but its call is to keep a large message.
            kind, call_id, method, payload, _, details = events.pop()
            try:
                if kind != EVENT_CALL:
                    call = calls.get(call_id)
                    if call is not None:
                        call.cancel()
                    elif (task := self._tasks.get(call_id)) is not None:
                        task.cancel()
                elif method == 0:
                    metadata, _, left = details
                    deadline = None if left is None else now + left
                    call = NativeCall(self, call_id, payload, metadata, now, deadline)
                    del payload
                    calls[call_id] = call
                    admission.in_flight += 1
                    serve(call)
                elif method in self._handlers:
                    self._control(call_id, method, payload, details)
                else:
                    metadata, peer, left = details
                    slow, caller = self._slow[method], grpc_caller(metadata, peer)
                    self._later(call_id, partial(self._asked, slow, payload, caller), left)
            except Exception:  # the others of the burst have nothing to do with it
                log.exception("unexpected error on the native gRPC server")

    def _control(self, call_id: int, method: int, payload: bytes, details: Any) -> None:
        """Answers anything but inference: at once, or when the model in question is loaded."""
        try:
            self.pipeline.admission.check_size(len(payload))
            self.front.respond(call_id, self._handlers[method](payload))
        except NotLoaded:
            ask = partial(self._handlers[method], payload)
            self._later(call_id, partial(self.pipeline.when_loaded, ask), details[2])
        except Exception as error:
            self._refuse(call_id, error)

    async def _asked(self, slow: Slow, payload: bytes, caller: Caller) -> bytes:
        self.pipeline.admission.check_size(len(payload))
        return await slow(payload, caller)

    def _later(
        self, call_id: int, work: Callable[[], Awaitable[bytes]], left: float | None
    ) -> None:
        """Answers what takes its time, `left` seconds at most; the event loop goes on meanwhile."""
        task = self._loop.create_task(self._answer(call_id, work, left))
        self._tasks[call_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(call_id, None))

    async def _answer(
        self, call_id: int, work: Callable[[], Awaitable[bytes]], left: float | None
    ) -> None:
        try:
            async with asyncio.timeout(left) as limit:
                answer = await work()
            self.front.respond(call_id, answer)
        except Exception as error:
            late = DeadlineExceeded("the deadline passed before there was an answer")
            self._refuse(call_id, late if limit.expired() else error)

    def _refuse(self, call_id: int, error: Exception) -> None:
        if not isinstance(error, SluiceError):
            log.error("unexpected error in a control call", exc_info=error)
            error = InferenceFailed(f"internal error: {type(error).__name__}")
        self.front.fail(call_id, grpc_status(error), text_of(error), error_trailers(error))

    def ended(self, call_id: int) -> None:
        """A call is over; forgets it."""
        del self._calls[call_id]
        self.pipeline.admission.in_flight -= 1

    def end_calls(self) -> None:
        """Ends the calls that are still there with UNAVAILABLE; on the event loop."""
        for call_id, call in list(self._calls.items()):
            call.cancel()
            self.front.fail(call_id, UNAVAILABLE, str(Draining()))
        for call_id, task in list(self._tasks.items()):
            task.cancel()
            self.front.fail(call_id, UNAVAILABLE, str(Draining()))

    def close(self) -> None:
        """Stops listening; blocking, and touches nothing of the event loop's."""
        self.front.close()
        self._turn.release()
        if self._thread.is_alive():
            self._thread.join(5)
