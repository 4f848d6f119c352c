"""Users over gRPC: unary calls, and bidirectional streams.

gRPC's C core waits for its sockets where gevent cannot see it. `init_gevent` makes it hand its
waiting to gevent's threads, so that a call blocks the greenlet that made it and no other.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.queue
import grpc
import grpc.experimental.gevent
from google.protobuf.message import DecodeError
from locust.env import Environment
from locust.exception import StopTest

from gateway.codecs.messages import ModelInferResponse, ModelStreamInferResponse
from loadtests.bench.plan import Protocol
from loadtests.payloads.base import Wire
from loadtests.users.base import InferenceUser
from loadtests.users.http import VERSION

# Once a process, and before the first channel.
grpc.experimental.gevent.init_gevent()

FINAL = "triton_final_response"
_NUMBERS = re.compile(r"\d+(?:\.\d+)?")


class GrpcFailure(Exception):
    """A call that did not end well: its status, and the server's words without their numbers."""


class _Channel(InferenceUser):
    """A connection of its own for each user."""

    abstract = True

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        target = self.plan.target
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        if target.ca_file:
            try:
                authorities = Path(target.ca_file).read_bytes()
            except OSError as error:
                refused = f"--ca-file {target.ca_file}: {error.strerror or error}"
                self.session.refuse(refused)
                raise StopTest(refused) from None
            credentials = grpc.ssl_channel_credentials(authorities)
            self.channel = grpc.secure_channel(target.grpc, credentials, options)
        else:
            self.channel = grpc.insecure_channel(target.grpc, options)

    def on_stop(self) -> None:
        self.channel.close()


class GrpcUser(_Channel):
    """``ModelInfer``, raw tensors."""

    abstract = True
    protocol = Protocol.GRPC

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._calls: dict[str, Any] = {}

    def send(self, wire: Wire) -> None:
        call = self._calls.get(wire.path)
        if call is None:
            call = self._calls[wire.path] = self.channel.unary_unary(wire.path)
        began = time.perf_counter()
        error: Exception | None = None
        answer, version = b"", ""
        try:
            answer, done = call.with_call(wire.body, metadata=wire.headers, timeout=self.timeout)
            version = _version(done.trailing_metadata(), answer)
        except grpc.RpcError as failed:
            error = _failure(failed)
        took = (time.perf_counter() - began) * 1000
        self.told(version, took, len(answer), error, answer)


class GrpcStreamUser(_Channel):
    """``ModelStreamInfer``: one stream for each user, one request at a time on it.

    A request lasts until its final answer; models may give any number before that. A stream that
    breaks fails the request on it, and the next one opens another.
    """

    abstract = True
    protocol = Protocol.STREAM

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._stream: _Stream | None = None

    def send(self, wire: Wire) -> None:
        began = time.perf_counter()
        error: Exception | None = None
        version, length = "", 0
        stream = self._stream
        if stream is None or stream.headers != wire.headers:
            # Metadata belong to a stream, so other headers need another one.
            self._end()
            stream = self._stream = _Stream(self.channel, wire.path, wire.headers)
        try:
            with gevent.Timeout(
                self.timeout, TimeoutError(f"no final answer in {self.timeout:g} s")
            ):
                version, length = stream.ask(wire.body)
        except GrpcFailure as failed:
            # The server told it in the stream, which goes on.
            error = failed
        except (grpc.RpcError, TimeoutError, StopIteration, DecodeError) as broken:
            self._end()
            error = _failure(broken)
        self.told(version, (time.perf_counter() - began) * 1000, length, error)

    def on_stop(self) -> None:
        self._end()
        super().on_stop()

    def _end(self) -> None:
        if self._stream is not None:
            self._stream.end()
            self._stream = None


class _Stream:
    """One open stream."""

    def __init__(self, channel: Any, path: str, headers: tuple[tuple[str, str], ...]) -> None:
        self.headers = headers
        self._out: gevent.queue.Queue[bytes | None] = gevent.queue.Queue()
        self._call = channel.stream_stream(path)(self._requests(), metadata=headers)

    def ask(self, body: bytes) -> tuple[str, int]:
        """Sends a request; the version that answered and the bytes of all its answers. Raises
        `GrpcFailure` for an error in the stream, `grpc.RpcError` or `StopIteration` for its end.
        """
        self._out.put(body)
        version, length = "", 0
        while True:
            payload = next(self._call)
            length += len(payload)
            message = ModelStreamInferResponse.FromString(payload)
            if message.error_message:
                raise GrpcFailure(_NUMBERS.sub("#", message.error_message)[:160])
            answer = message.infer_response
            version = answer.model_version or version
            # A server that does not say it answers once.
            if FINAL not in answer.parameters or answer.parameters[FINAL].bool_param:
                return version, length

    def end(self) -> None:
        """Takes back what is under way."""
        self._out.put(None)
        self._call.cancel()

    def _requests(self) -> Iterator[bytes]:
        while True:
            body = self._out.get()
            if body is None:
                return
            yield body


def _version(trailing: Any, answer: bytes) -> str:
    for name, value in trailing or ():
        if name == VERSION:
            return str(value)
    try:
        return str(ModelInferResponse.FromString(answer).model_version)
    except DecodeError:
        return ""


def _failure(error: BaseException) -> GrpcFailure:
    if isinstance(error, grpc.RpcError):
        words = _NUMBERS.sub("#", " ".join((error.details() or "no text").split()))[:160]
        return GrpcFailure(f"{error.code().name}: {words}")
    if isinstance(error, StopIteration):
        return GrpcFailure("the server ended the stream")
    return GrpcFailure(str(error) or type(error).__name__)
