"""Other servers by gRPC: bytes in and out of `grpc.aio`, without messages in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from gateway.codecs import client_grpc as codec
from gateway.codecs.client_grpc import ModelMetadata, ServerMetadata
from gateway.codecs.wire import RAW_OUTPUT_CONTENTS, raw_spans
from gateway.errors import InferenceFailed, InvalidRequest, SluiceError
from gateway.model_settings import RemoteSettings
from gateway.remote_document import Location
from gateway.tensors import InferenceRequest, InferenceResponse
from runtimes.remote.failures import AttemptFailed, Fate, broken, grpc_failure, said, unreachable
from runtimes.remote.transport import (
    CONNECT_SECONDS,
    Connection,
    Pairs,
    There,
    Transport,
    authorities,
)

SERVICE: Final = "/inference.GRPCInferenceService/"
KEEPALIVE_MS: Final = 20_000
"""How often a silent connection with calls on it is tried, and unacknowledged data given up
after half of it: else a host that lost its power would hold its calls for ever."""
NOT_FOUND: Final = grpc.StatusCode.NOT_FOUND
UNIMPLEMENTED: Final = grpc.StatusCode.UNIMPLEMENTED

# Stubs have no static types.
Stub = Any


class GrpcTransport(Transport):
    """`grpc.aio` channels; made on the event loop that will use them."""

    streams = True
    always_raw = False
    """Whether the servers answer raw contents with raw contents: not all do, but our clients
    expect it."""

    def __init__(self, there: There, settings: RemoteSettings) -> None:
        super().__init__(there, settings)
        self._credentials = credentials(settings.ca_file)

    def connect(self, location: Location, address: str) -> GrpcConnection:
        """As the base says."""
        return GrpcConnection(self.channels(location, address), self)

    def channels(self, location: Location, address: str) -> list[grpc.aio.Channel]:
        """As many as ``remote.connections`` says."""
        numeric = f"ipv6:[{address}]" if ":" in address else f"ipv4:{address}"
        return [
            self._channel(f"{numeric}:{location.port}", location)
            for _ in range(self.settings.connections)
        ]

    def _channel(self, target: str, location: Location) -> grpc.aio.Channel:
        options: list[tuple[str, Any]] = [
            ("grpc.default_authority", location.authority),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),  # else equal channels share one connection
            ("grpc.enable_retries", 0),  # there is one mechanism for that, and it has a budget
            ("grpc.enable_http_proxy", 0),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_MS // 2),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1000)),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if not location.secure:
            return grpc.aio.insecure_channel(target, options)
        options.append(("grpc.ssl_target_name_override", location.host))
        return grpc.aio.secure_channel(target, self._credentials, options)

    def encode(self, request: InferenceRequest, timeout: float | None) -> Any:
        """A serialized ``ModelInferRequest``; as it came, where that is known."""
        return codec.encode_request(request, self.there.name, self.there.version)

    def decode(self, answer: Any, request: InferenceRequest) -> InferenceResponse:
        """As the base says; undecoded where the request was, if it is in the same form."""
        there = self.there
        wire = request.wire is not None and (self.always_raw or has_raw(answer))
        return codec.decode_response(answer, there.ours, there.our_version, wire=wire)

    async def close(self) -> None:
        """Channels share nothing."""


class GrpcConnection(Connection):
    """One replica's channels, used in turn."""

    def __init__(self, channels: list[grpc.aio.Channel], transport: GrpcTransport) -> None:
        self._channels = channels
        self._there = transport.there
        self._infers = [
            (channel, channel.unary_unary(f"{SERVICE}ModelInfer")) for channel in channels
        ]
        self._next = cycle(self._infers).__next__
        self._streams = [
            (channel, channel.stream_stream(f"{SERVICE}ModelStreamInfer")) for channel in channels
        ]
        self._next_stream = cycle(self._streams).__next__
        self._control: dict[str, Stub] = {}
        self._fixed = transport.fixed
        self._limited = transport.settings.timeout_ms / 1e3

    async def infer(self, message: Any, timeout: float | None, headers: Pairs) -> Any:
        """As the base says."""
        channel, stub = self._next()
        try:
            return await stub(message, timeout=timeout, metadata=headers)
        except grpc.aio.AioRpcError as error:
            raise self._failure(channel, error, timeout) from None
        except grpc.aio.UsageError:  # closed before it began
            raise unreachable("the connection was closed") from None
        except asyncio.CancelledError:
            # Ours, or the channel was closed under it?
            if is_cancelled():
                raise
            raise broken("the connection was closed") from None

    async def stream(
        self, message: Any, timeout: float | None, headers: Pairs, *, wire: bool
    ) -> AsyncGenerator[InferenceResponse]:
        """As the base says; the stream is this request's own."""
        channel, stub = self._next_stream()
        there = self._there
        try:
            call = stub(timeout=timeout, metadata=headers)
        except grpc.aio.UsageError:  # closed before it began
            raise unreachable("the connection was closed") from None
        try:
            await call.write(message)
            await call.done_writing()
            while (payload := await call.read()) is not grpc.aio.EOF:
                response, error, final = codec.decode_stream_response(
                    payload, there.ours, there.our_version, wire=wire
                )
                if error:
                    raise AttemptFailed(Fate.ANSWERED, InferenceFailed(said(error)))
                if response is not None:
                    yield response
                if final:
                    return
            code = await call.code()
            if code is not grpc.StatusCode.OK:
                details = await call.details()
                raise self._failed(channel, code, details, await call.trailing_metadata(), timeout)
        except grpc.aio.AioRpcError as error:
            raise self._failure(channel, error, timeout) from None
        except asyncio.InvalidStateError:
            # The call ended while the request was being written.
            code, details = await call.code(), await call.details()
            trailers = await call.trailing_metadata()
            raise self._failed(channel, code, details, trailers, timeout) from None
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise broken("the connection was closed") from None
        finally:
            call.cancel()

    def _failure(
        self, channel: grpc.aio.Channel, error: grpc.aio.AioRpcError, timeout: float | None
    ) -> AttemptFailed:
        return self._failed(
            channel, error.code(), error.details(), error.trailing_metadata(), timeout
        )

    def _failed(
        self,
        channel: grpc.aio.Channel,
        code: Any,
        details: str,
        trailers: Any,
        timeout: float | None,
    ) -> AttemptFailed:
        return grpc_failure(
            code.value[0],
            details,
            connected=channel.get_state() is grpc.ChannelConnectivity.READY,
            trailers=bool(trailers),
            limited=timeout is not None and timeout == self._limited,
        )

    # --- control

    async def _ask(self, method: str, payload: bytes, timeout: float) -> Any:
        channel = self._channels[0]
        stub = self._control.get(method)
        if stub is None:
            stub = self._control[method] = channel.unary_unary(f"{SERVICE}{method}")
        try:
            return await stub(payload, timeout=timeout, metadata=self._fixed)
        except grpc.aio.UsageError:
            raise unreachable("the connection was closed") from None
        except grpc.aio.AioRpcError as error:
            if error.code() in (NOT_FOUND, UNIMPLEMENTED):
                raise
            raise self._failure(channel, error, timeout) from None
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise broken("the connection was closed") from None

    async def ready(self, timeout: float) -> str:
        """As the base says; a server that does not know the question is ready."""
        there = self._there
        model = codec.model_ready_request(there.name, there.version)
        try:
            try:
                answer = await self._ask("ServerReady", codec.server_ready_request(), timeout)
                if not codec.parse_server_ready(answer):
                    return "the server says that it is not ready"
            except grpc.aio.AioRpcError:
                pass
            answer = await self._ask("ModelReady", model, timeout)
            ready = codec.parse_model_ready(answer)
        except grpc.aio.AioRpcError as error:
            unknown = said(error.details(), "it has no such model")
            return "" if error.code() is UNIMPLEMENTED else unknown
        except SluiceError as error:  # an answer that makes no sense
            return str(error)
        except AttemptFailed as failure:
            if failure.fate in (Fate.ANSWERED, Fate.REFUSED, Fate.FULL):
                return str(failure)
            raise
        return "" if ready else "the server says that the model is not ready"

    async def model(self, timeout: float) -> ModelMetadata:
        """As the base says."""
        there = self._there
        question = codec.model_metadata_request(there.name, there.version)
        try:
            return codec.parse_model_metadata(await self._ask("ModelMetadata", question, timeout))
        except (grpc.aio.AioRpcError, SluiceError) as error:
            raise _no_metadata(error) from None

    async def server(self, timeout: float) -> ServerMetadata:
        """As the base says."""
        question = codec.server_metadata_request()
        try:
            return codec.parse_server_metadata(await self._ask("ServerMetadata", question, timeout))
        except (grpc.aio.AioRpcError, SluiceError) as error:
            raise _no_metadata(error) from None

    async def close(self) -> None:
        """As the base says."""
        for channel in self._channels:
            await channel.close(None)


def _no_metadata(error: Exception) -> AttemptFailed:
    text = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
    return AttemptFailed(Fate.ANSWERED, InferenceFailed(said(text)))


def has_raw(answer: bytes) -> bool:
    """Whether a serialized ``ModelInferResponse`` has raw contents."""
    try:
        spans, _ = raw_spans(
            answer, codec.MAX_FIELDS, number=RAW_OUTPUT_CONTENTS, what="a ModelInferResponse"
        )
    except InvalidRequest:
        return False  # whoever decodes it says what is wrong
    return bool(spans)


def credentials(ca_file: str | None) -> grpc.ChannelCredentials:
    """TLS that trusts `ca_file`, or the usual authorities. Raises `ModelLoadError`."""
    if ca_file is None:
        return grpc.ssl_channel_credentials()
    authorities(ca_file)  # grpc would only say that it cannot connect
    return grpc.ssl_channel_credentials(Path(ca_file).read_bytes())


def is_cancelled() -> bool:
    """Whether somebody has cancelled the running task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
