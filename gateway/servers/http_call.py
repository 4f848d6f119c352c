"""One inference request over HTTP, from its headers to its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from gateway.call import ENDED, Call
from gateway.codecs import compression
from gateway.codecs.large import (
    LARGE_BODY,
    join_request,
    large_answer,
    read_infer,
    read_infer_head,
    split_response,
    unpack_request,
    write_infer,
    write_infer_head,
)
from gateway.codecs.oip_rest import BINARY_ANSWER, JSON_ANSWER, AnswerForm, Parts, split_body
from gateway.codecs.statuses import http_status
from gateway.errors import (
    Draining,
    InferenceFailed,
    InvalidRequest,
    QueueFull,
    RequestTooLarge,
    SluiceError,
)
from gateway.servers.http_answer import (
    BINARY_TYPE,
    ERROR_TYPE,
    JSON_TYPE,
    error_body,
    error_headers,
    head_of,
    route_headers,
)
from gateway.servers.http_body import LARGE, Room
from gateway.servers.large_json import read_apart, write_apart
from gateway.telemetry.logs import log
from gateway.tensors import Buffer, InferenceRequest, InferenceResponse

if TYPE_CHECKING:
    from gateway.servers.http_protocol import SluiceHttpProtocol

IN_THREAD: Final = 262_144
"""Bytes from which (de)compression leaves the event loop."""


class _Nobody:
    """Stands where ASGI has an event that a task waits for."""

    def set(self) -> None: ...


class Exchange:
    """A request and its answer on one connection; takes the place of uvicorn's ASGI cycle."""

    __slots__ = (
        "_body", "_call", "_counted", "_held", "_task", "disconnected", "headers", "keep_alive",
        "message_event", "protocol", "response_complete", "room", "since", "target",
    )  # fmt: skip

    def __init__(
        self,
        protocol: SluiceHttpProtocol,
        target: tuple[str, str],
        headers: dict[bytes, bytes],
        *,
        keep_alive: bool,
    ) -> None:
        self.protocol = protocol
        self.target = target
        self.headers = headers
        self.keep_alive = keep_alive
        self.since = protocol.since
        self.response_complete = False
        self.disconnected = False
        self.message_event = _Nobody()
        self._body: bytes | bytearray = b""
        self.room: Room | None = None
        """Where the body goes, if it is large."""
        self._call: Call | None = None
        self._counted = 0
        self._held = 0

    # --- in

    def expect(self, length: int) -> None:
        """The body will have so many bytes: one with large binary tensors gets its room now."""
        head = self.headers.get(b"inference-header-content-length")
        if length < LARGE or head is None or not head.isdigit() or len(head) > 18:
            return
        shared = self.protocol.shared
        # Where memory is taken with the promise of it, headers alone must not take all of it.
        if shared.room_bytes + length > shared.limits.max_bytes_in_flight:
            return
        if self.headers.get(b"content-encoding", b"identity") == b"identity":
            # Should there be no memory for it, it comes in pieces, and is refused at some point.
            with suppress(MemoryError):
                self.room = Room(length, int(head))
                shared.room_bytes += length
                self._held = length

    def received(self, chunk: bytes) -> None:
        """A piece of the body. Raises `RequestTooLarge` or `QueueFull`."""
        if self.room is not None:
            self.room.add(chunk)
        elif not self._body:
            self._body = chunk
        else:
            if type(self._body) is bytes:
                self._body = bytearray(self._body)
            self._body += chunk
        self.count()

    def count(self) -> None:
        """Counts what has come. Raises `RequestTooLarge` or `QueueFull`."""
        shared = self.protocol.shared
        size = len(self._body) if self.room is None else self.room.held
        if size > shared.limits.max_message_bytes:
            raise RequestTooLarge(
                f"the body is larger than limits.max_message_bytes = "
                f"{shared.limits.max_message_bytes}"
            )
        shared.body_bytes += size - self._counted
        self._counted = size
        if shared.body_bytes > shared.limits.max_bytes_in_flight:
            raise QueueFull(
                "the bodies in flight are larger than limits.max_bytes_in_flight = "
                f"{shared.limits.max_bytes_in_flight}; try again later"
            )

    def start(self) -> None:
        """The body is complete and it is this request's turn."""
        encoding = self.headers.get(b"content-encoding")
        if len(self._body) >= LARGE or self.room is not None:
            self.protocol.shared.pipeline.admission.large += 1
        if self.room is not None:
            whole, self.room = self.room.whole(), None
            self._serve(whole)
        elif encoding is None or encoding == b"identity":
            self._serve(self._body)
        elif len(self._body) < IN_THREAD:
            try:
                body = self._decompress(encoding)
            except SluiceError as error:
                self.fail(error)
            else:
                self._serve(body)
        else:
            task = asyncio.get_running_loop().create_task(self._decompress_apart(encoding))
            self.protocol.tasks.add(task)
            task.add_done_callback(self.protocol.tasks.discard)

    def _decompress(self, encoding: bytes) -> bytes:
        limit = self.protocol.shared.limits.max_message_bytes
        return compression.decompress(self._body, encoding.decode("latin-1"), limit)

    async def _decompress_apart(self, encoding: bytes) -> None:
        admission = self.protocol.shared.pipeline.admission
        admission.in_flight += 1  # draining waits for it
        try:
            body = await asyncio.to_thread(self._decompress, encoding)
        except SluiceError as error:
            self.fail(error)
        except Exception as error:
            log.exception("cannot decompress a body")
            self.fail(InferenceFailed(f"internal error: {type(error).__name__}"))
        else:
            if not self.disconnected:
                self._serve(body)
        finally:
            admission.in_flight -= 1

    def _serve(self, body: Buffer) -> None:
        self._body = b""
        call = self._call = self._new_call(body)
        if len(body) >= LARGE_BODY and call.json_bytes() >= LARGE_BODY:
            self.in_task(call, call.serve_large)
        else:
            self.protocol.shared.pipeline.serve(call)

    def _new_call(self, body: Buffer) -> HttpCall:
        return HttpCall(self, body)

    def in_task(
        self, call: HttpCall, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> asyncio.Task[None]:
        """Goes on with this request's call in a task, which ends when the client is gone."""
        task = self._task = asyncio.get_running_loop().create_task(self._without_fail(call, work))
        self.protocol.tasks.add(task)
        task.add_done_callback(self.protocol.tasks.discard)
        return task

    async def _without_fail(
        self, call: HttpCall, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        try:
            await work()
        except Exception as error:
            log.exception("unexpected error over a large body or answer")
            failure = InferenceFailed(f"internal error: {type(error).__name__}")
            if call.state == ENDED:  # it has its answer, which cannot be written
                self.fail(failure)
            else:
                self.protocol.shared.pipeline.refuse(call, failure)

    def disconnect(self) -> None:
        """The client is gone: what it asked for need not run."""
        self.disconnected = True
        self._release()
        if self._call is not None:
            self._call.cancel()
        task = getattr(self, "_task", None)
        if task is not None:
            task.cancel()
        self._call = None

    def give_up(self) -> None:
        """The port closes: whoever waits for this answer is told that there will be none."""
        call = self._call
        self.keep_alive = False
        self.fail(Draining())
        self._call = call
        self.disconnect()

    def _release(self) -> None:
        shared = self.protocol.shared
        shared.body_bytes -= self._counted
        shared.room_bytes -= self._held
        self._counted = self._held = 0

    # --- out

    def send(
        self, body: bytes | Parts, head_length: int | None, response: InferenceResponse
    ) -> None:
        """Writes a successful answer."""
        extra = route_headers(response.version, response.route)
        content_type = JSON_TYPE
        if head_length is not None:
            content_type = BINARY_TYPE
            extra += b"inference-header-content-length: %d\r\n" % head_length
        accept = self.headers.get(b"accept-encoding")
        if accept is not None and len(body) >= self.protocol.shared.config.http.compress_from:
            encoding = compression.accepted(accept.decode("latin-1"))
            if encoding is not None:
                self._send_compressed(bytes(body), encoding, content_type, extra)
                return
        self._write(200, body, content_type, extra)

    def _send_compressed(
        self, body: bytes, encoding: str, content_type: bytes, extra: bytes
    ) -> None:
        extra += b"content-encoding: %s\r\nvary: accept-encoding\r\n" % encoding.encode()
        if len(body) < IN_THREAD:
            self._write(200, compression.compress(body, encoding), content_type, extra)
            return

        async def apart() -> None:
            try:
                packed = await asyncio.to_thread(compression.compress, body, encoding)
            except Exception as error:
                log.exception("cannot compress an answer")
                self.fail(InferenceFailed(f"internal error: {type(error).__name__}"))
            else:
                self._write(200, packed, content_type, extra)

        task = asyncio.get_running_loop().create_task(apart())
        self.protocol.tasks.add(task)
        task.add_done_callback(self.protocol.tasks.discard)

    def fail(self, error: SluiceError) -> None:
        """Writes an error."""
        self._write(http_status(error), error_body(error), ERROR_TYPE, error_headers(error))

    def error_body(self, error: SluiceError, status: int) -> bytes:
        """The JSON of an error about a request that is not served; never raises."""
        return error_body(error)

    def _write(self, status: int, body: bytes | Parts, content_type: bytes, extra: bytes) -> None:
        # The two know each other; without this every request would be left to the collector,
        # whose pauses all connections would feel.
        self._call = None
        self._release()
        if self.disconnected or self.response_complete:
            return
        request_id = self.headers.get(b"x-request-id")
        if request_id is not None:
            extra += b"x-request-id: %s\r\n" % request_id
        if not self.keep_alive or self.protocol.shared.closing:
            extra += b"connection: close\r\n"
        head = head_of(status, len(body), content_type, extra)
        transport = self.protocol.transport
        if type(body) is Parts:
            transport.writelines([head, *body.pieces])
        elif len(body) < IN_THREAD:
            transport.write(head + bytes(body))
        else:
            whole = bytes(body)  # before the head: there may be no memory for it
            transport.write(head)
            transport.write(whole)
        self.protocol.answered(self)


class HttpCall(Call):
    """The call of an `Exchange`."""

    __slots__ = ("_body", "_exchange", "_form", "_inside")

    protocol = "http"

    def __init__(self, exchange: Exchange, body: Buffer) -> None:
        now = perf_counter()
        super().__init__(now)
        self._exchange = exchange
        self._body = body
        self._form: AnswerForm = JSON_ANSWER
        self._inside = True
        exchange.protocol.shared.pipeline.admission.in_flight += 1

    def _leave(self) -> None:
        """It is in flight no more; may be said more than once."""
        if self._inside:
            self._inside = False
            self._exchange.protocol.shared.pipeline.admission.in_flight -= 1

    def decode(self) -> InferenceRequest:
        shared = self._exchange.protocol.shared
        headers = self._exchange.headers
        model, version = self._exchange.target
        body = self._body
        self._body = b""
        self._set_deadline()
        length = headers.get(b"inference-header-content-length")
        if length is None:
            request, self._form = shared.codec.decode(model, version, body, None)
            return request
        if not length.isdigit() or len(length) > 18:
            raise InvalidRequest(
                "Inference-Header-Content-Length must be a whole number of at least 0"
            )
        if int(length) == 0:
            # Only the version that will answer can say what the bytes are. Should it have to be
            # loaded first, they are needed again.
            self._body = body
            self.chosen = shared.pipeline.choose(self, InferenceRequest(model, version, ()))
            self._body = b""
            contract = self.chosen[0].contract
            request, self._form = shared.codec.decode_raw(model, version, body, contract)
            return request
        request, self._form = shared.codec.decode(model, version, body, int(length))
        return request

    def _set_deadline(self) -> None:
        """Where a header asks for one. Raises `InvalidRequest`."""
        timeout = self._exchange.headers.get(b"x-request-timeout-ms")
        if timeout is not None:
            # It runs from the request's first byte, not from when its turn came.
            self.deadline = self._exchange.since + timeout_ms(timeout) / 1e3

    def json_bytes(self) -> int:
        """How much of the body is JSON, in bytes; 0 where nobody knows."""
        length = self._exchange.headers.get(b"inference-header-content-length")
        if length is None:
            return len(self._body)
        return int(length) if length.isdigit() and len(length) <= 18 else 0

    async def serve_large(self) -> None:
        """Reads a large JSON body apart, and serves the request in it."""
        exchange = self._exchange
        shared = exchange.protocol.shared
        body, self._body = self._body, b""
        try:
            shared.pipeline.admission.check_room()
            self._set_deadline()
            self.request = await self._read_apart(body)
        except SluiceError as error:
            shared.pipeline.refuse(self, error)
        else:
            del body
            shared.pipeline.serve(self, waited=True)

    async def _read_apart(self, body: Buffer) -> InferenceRequest:
        """The request in a large JSON body. Raises `SluiceError`."""
        exchange = self._exchange
        shared = exchange.protocol.shared
        length = exchange.headers.get(b"inference-header-content-length")
        apart = partial(read_apart, shared, self.deadline)
        named = (shared.limits, *exchange.target)
        request: InferenceRequest
        if length is None:
            request, self._form = await apart(len(body), read_infer, *named, body, after=_unpack)
            return request
        head, rest = split_body(body, int(length))  # the tensors stay here
        join = partial(join_request, rest)
        request, self._form, _ = await apart(
            len(head), read_infer_head, *named, head, len(rest), after=join
        )
        return request

    def header(self, name: str) -> str | None:
        value = self._exchange.headers.get(name.encode("latin-1", "replace"))
        return None if value is None else value.decode("latin-1")

    def _replied(self, response: InferenceResponse) -> None:
        exchange = self._exchange
        size = self._large_answer(response)
        if size:
            task = exchange.in_task(self, partial(self._reply_large, response, size))
            # Not at the end of the task: it may be cancelled before it begins.
            task.add_done_callback(lambda _: self._leave())
            return
        self._leave()
        try:
            body, head_length = self._encode(response)
        except SluiceError as error:
            exchange.fail(error)
            return
        except Exception as error:
            log.exception("cannot encode an answer")
            exchange.fail(InferenceFailed(f"cannot encode the answer: {type(error).__name__}"))
            return
        exchange.send(body, head_length, response)

    async def _reply_large(self, response: InferenceResponse, size: int) -> None:
        exchange = self._exchange
        try:
            body, head_length = await self._encode_large(response, size)
        except SluiceError as error:
            exchange.fail(error)
        else:
            exchange.send(body, head_length, response)

    def _large_answer(self, response: InferenceResponse) -> int:
        """About how many bytes a large answer has; 0 for one that is written on the spot."""
        form = self._form
        if form is BINARY_ANSWER:
            return 0
        if form is JSON_ANSWER:
            return large_answer(response.outputs)
        return large_answer([each for each in response.outputs if not form.is_binary(each.name)])

    def _encode(self, response: InferenceResponse) -> tuple[bytes | Parts, int | None]:
        """The answer's body, and the length of the JSON before tensors. Raises `SluiceError`."""
        return self._exchange.protocol.shared.codec.encode_parts(response, self._form)

    async def _encode_large(
        self, response: InferenceResponse, size: int
    ) -> tuple[bytes | Parts, int | None]:
        """The same for one that `_large_answer` calls large, where nobody waits for it."""
        shared = self._exchange.protocol.shared
        form = self._form
        if form is JSON_ANSWER:
            return await write_apart(shared, size, write_infer, response, form, shared.limits)
        left, binary = await asyncio.to_thread(split_response, response, form)
        sizes = list(map(len, binary))
        head = await write_apart(shared, size, write_infer_head, left, form, sizes, shared.limits)
        if not binary:
            return head, None
        return Parts([head, *binary], len(head) + sum(sizes)), len(head)

    def _failed(self, error: SluiceError) -> None:
        self._leave()
        self._exchange.fail(error)

    def _cancelled(self) -> None:
        self._leave()


def _unpack(found: tuple[InferenceRequest, AnswerForm]) -> None:
    unpack_request(found[0])


def timeout_ms(text: bytes) -> float:
    """The header ``x-request-timeout-ms`` in milliseconds. Raises `InvalidRequest`."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e12:
        raise InvalidRequest("header x-request-timeout-ms must be a number of milliseconds above 0")
    return value
