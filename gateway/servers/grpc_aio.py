"""The gRPC service on grpcio: all of it, or what the native server leaves to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from gateway.codecs.messages import POOL, SERVICE
from gateway.codecs.oip_grpc import GrpcCodec
from gateway.codecs.statuses import grpc_status
from gateway.config import LimitsConfig
from gateway.errors import DeadlineExceeded, SluiceError, text_of
from gateway.lifecycle.manager import Manager
from gateway.pipeline import Pipeline
from gateway.servers.grpc_call import GrpcioCall, told
from gateway.servers.grpc_service import INFER, STREAM, GrpcService, Slow, grpc_caller
from gateway.servers.grpc_stream import StreamInfer
from gateway.servers.trailers import answer_trailers, error_trailers
from gateway.telemetry.logs import log

# It would write a traceback about metadata that is not UTF-8; our own errors `told` logs.
logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class GrpcioServer:
    """Serves on an address (`HOST:PORT` or `unix:PATH`)."""

    def __init__(
        self,
        address: str,
        pipeline: Pipeline,
        codec: GrpcCodec,
        service: GrpcService,
        manager: Manager,
        limits: LimitsConfig,
        send_timeout: float,
    ) -> None:
        self._send_timeout = send_timeout
        self._pipeline = pipeline
        self._codec = codec
        self._manager = manager
        self._service = service
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limits.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", limits.max_header_bytes),
                ("grpc.absolute_max_metadata_size", limits.max_header_bytes),
                # Beyond 1000 calls not yet taken the library would cancel some at random.
                ("grpc.server.max_pending_requests", limits.max_in_flight),
                ("grpc.server.max_pending_requests_hard_limit", 2 * limits.max_in_flight),
                # Two gateways on one port would share it silently otherwise.
                ("grpc.so_reuseport", 0),
            ]
        )
        handlers: dict[str, grpc.RpcMethodHandler] = {
            INFER: grpc.unary_unary_rpc_method_handler(self._infer),
            STREAM: grpc.stream_stream_rpc_method_handler(self._stream),
        }
        for name, handler in service.handlers.items():
            handlers[name] = grpc.unary_unary_rpc_method_handler(self._control(handler))
        for name, slow in service.slow.items():
            handlers[name] = grpc.unary_unary_rpc_method_handler(self._slow(slow))
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._names: set[str] = set()
        self._changed: set[str] = set()
        self._told_ready = False
        self._health_task: asyncio.Task[None] | None = None
        enable_reflection(self._server)
        self.port = self._server.add_insecure_port(address)

    async def start(self) -> None:
        await self.refresh_health(ready=self._service.ready())
        await self._server.start()
        self._manager.on_change.append(self._model_changed)

    def _model_changed(self, name: str) -> None:
        self._changed.add(name)
        if self._health_task is None:
            self._health_task = asyncio.get_running_loop().create_task(self._refresh())

    async def _refresh(self) -> None:
        self._health_task = None
        changed, self._changed = self._changed, set()
        ready = self._service.ready()
        if ready != self._told_ready:
            await self.refresh_health(ready=ready)
        else:
            # Only these: with a thousand models, all of them each time is a million.
            await self._set_models(changed)

    async def refresh_health(self, *, ready: bool) -> None:
        """Sets the status of the server, the service and every model."""
        self._told_ready = ready
        status = health_pb2.HealthCheckResponse
        for name in ("", SERVICE):
            await self._health.set(name, status.SERVING if ready else status.NOT_SERVING)
        await self._set_models(self._names | self._manager.models.keys())

    async def _set_models(self, names: Iterable[str]) -> None:
        status = health_pb2.HealthCheckResponse
        for name in names:
            model = self._manager.models.get(name)
            if model is None:
                self._names.discard(name)
                await self._health.set(name, status.SERVICE_UNKNOWN)
            else:
                self._names.add(name)
                up = self._told_ready and model.available
                await self._health.set(name, status.SERVING if up else status.NOT_SERVING)

    async def _infer(self, payload: bytes, context: Any) -> bytes:
        call = GrpcioCall(
            self._pipeline, self._codec, payload, metadata_of(context), context.time_remaining()
        )
        try:
            response = await self._pipeline.infer(call)
            encoded = self._codec.encode(response, typed=call.typed)
        except Exception as error:
            await abort(context, told(error))
            raise AssertionError("abort raises") from None
        context.set_trailing_metadata(answer_trailers(response))
        return encoded

    def _control(self, handler: Callable[[bytes], bytes]) -> Callable[[bytes, Any], Any]:
        async def handle(payload: bytes, context: Any) -> bytes:
            try:
                return await self._pipeline.when_loaded(lambda: handler(payload))
            except Exception as error:
                await abort(context, told(error))
                raise AssertionError("abort raises") from None

        return handle

    def _slow(self, handler: Slow) -> Callable[[bytes, Any], Any]:
        async def handle(payload: bytes, context: Any) -> bytes:
            caller = grpc_caller(context.invocation_metadata() or (), context.peer())
            try:
                return await handler(payload, caller)
            except Exception as error:
                await abort(context, told(error))
                raise AssertionError("abort raises") from None

        return handle

    async def _stream(self, payloads: AsyncIterator[bytes], context: Any) -> None:
        headers = metadata_of(context)

        def call(payload: bytes) -> GrpcioCall:
            left = context.time_remaining()
            return GrpcioCall(self._pipeline, self._codec, payload, headers, left)

        stream = StreamInfer(self._pipeline, self._codec, call)
        try:
            # Closing it stops the models, which a client that does not read would hold for ever.
            async with aclosing(stream.answers(payloads)) as answers:
                async for message in answers:
                    async with asyncio.timeout(self._send_timeout):
                        await context.write(message)
        except TimeoutError:
            text = f"a message of the stream was not read for {self._send_timeout:g} s"
            log.info("a gRPC stream is ended: %s", text)
            await abort(context, DeadlineExceeded(f"{text}, grpc.send_timeout"))

    async def close(self, grace: float = 1.0) -> None:
        await self._server.stop(grace)


async def abort(context: Any, error: SluiceError) -> None:
    """Ends an RPC with the status of an error."""
    trailers = error_trailers(error)
    if trailers:
        # For gRPC's own retries. The native server keeps such names to itself.
        trailers += (("grpc-retry-pushback-ms", f"{trailers[0][1]}000"),)
    await context.abort(_CODES[grpc_status(error)], text_of(error), trailers or ())


def metadata_of(context: Any) -> dict[str, str]:
    """The call's metadata with text values, the first of each key."""
    headers: dict[str, str] = {}
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            headers.setdefault(key, value)
    return headers


def enable_reflection(server: Any) -> None:
    """Server reflection over our own descriptor pool, which has to know everything it lists."""
    from google.protobuf import descriptor_pb2

    for module in (health_pb2, reflection_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        POOL.Add(file)
    names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, POOL)
