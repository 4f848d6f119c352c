"""The way to a Triton server: as to any other by gRPC, and besides that its model
configuration, its parameters for streams, and shared memory with a server on this machine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from time import perf_counter
from typing import Any, Final

import grpc
import grpc.aio

from gateway.codecs import client_grpc as codec
from gateway.codecs.messages import ModelInferRequest
from gateway.errors import InferenceFailed, ModelLoadError
from gateway.model_settings import RemoteSettings
from gateway.remote_document import Location
from gateway.tensors import InferenceRequest, InferenceResponse, TensorSpec
from runtimes.remote.failures import AttemptFailed, Fate, broken, late, said, unreachable
from runtimes.remote.grpc_transport import GrpcConnection, GrpcTransport, Stub, is_cancelled
from runtimes.remote.transport import Pairs, There
from runtimes.remote.triton_config import TritonConfig, TritonMessages
from runtimes.remote.triton_memory import THRESHOLD, NoRoom, Region, Regions, is_local
from runtimes.remote.triton_shared import Layout, Shared, answer_of, layout_of, message_of

log = logging.getLogger(__name__)

CONTROL_SECONDS: Final = 5.0
UNKNOWN_REGION: Final = "Unable to find shared memory region"
_DONE: Final = frozenset(
    (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
    )
)
"""Codes that Triton gives when it is done with a request; others may come from in between."""


def _stream_parameters() -> bytes:
    message = ModelInferRequest()
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    encoded: bytes = message.SerializeToString()
    return encoded


STREAM_PARAMETERS: Final = _stream_parameters()
"""Asks for a last message where a model ends without an answer; goes behind any request."""


class TritonTransport(GrpcTransport):
    """Connections to Triton servers. `outputs` and `batched` are told after the first look at
    the model: sizes of answers follow from them."""

    def __init__(self, there: There, settings: RemoteSettings, messages: TritonMessages) -> None:
        super().__init__(there, settings)
        self.messages = messages
        self.outputs: tuple[TensorSpec, ...] = ()
        self.batched = False

    def connect(self, location: Location, address: str) -> TritonConnection:
        """As the base says."""
        shared = self.settings.shared_memory and is_local(address)
        if self.settings.shared_memory and not shared:
            log.warning("%s is not on this machine: no shared memory with it", location)
        return TritonConnection(self.channels(location, address), self, shared=shared)

    def encode(self, request: InferenceRequest, timeout: float | None) -> Any:
        """As the base says; `Shared` where the tensors are many bytes."""
        if self.settings.shared_memory:
            sizes = tuple([tensor.nbytes for tensor in request.inputs])
            if sum(sizes) >= THRESHOLD and all(sizes):
                return Shared(request, sizes)
        return super().encode(request, timeout)

    def plain(self, request: InferenceRequest) -> bytes:
        """The request with its tensors' bytes in it."""
        return codec.encode_request(request, self.there.name, self.there.version)

    def decode(self, answer: Any, request: InferenceRequest) -> InferenceResponse:
        """As the base says."""
        if isinstance(answer, InferenceResponse):
            return answer
        return super().decode(answer, request)


class TritonConnection(GrpcConnection):
    """The way to one Triton server, and the memory shared with it."""

    def __init__(
        self, channels: list[grpc.aio.Channel], transport: TritonTransport, *, shared: bool
    ) -> None:
        super().__init__(channels, transport)
        self._transport = transport
        self._shared = shared
        self.regions = Regions(self._register, self._unregister)

    # --- requests

    async def infer(self, message: Any, timeout: float | None, headers: Pairs) -> Any:
        """As the base says; the answer to a `Shared` request comes decoded."""
        if isinstance(message, Shared):
            if self._shared:
                return await self._infer_shared(message, timeout, headers)
            return await self._infer_plain(message.request, timeout, headers)
        return await super().infer(message, timeout, headers)

    def stream(
        self, message: Any, timeout: float | None, headers: Pairs, *, wire: bool
    ) -> AsyncGenerator[InferenceResponse]:
        """As the base says."""
        if isinstance(message, Shared):
            message = self._transport.plain(message.request)
        return super().stream(message + STREAM_PARAMETERS, timeout, headers, wire=wire)

    # --- shared memory

    async def _infer_shared(self, shared: Shared, timeout: float | None, headers: Pairs) -> Any:
        """Sends a request by shared memory; once more where the server turns out to be new."""
        end = None if timeout is None else perf_counter() + timeout
        layout = layout_of(shared, self._transport.outputs, batched=self._transport.batched)
        for last in (False, True):
            try:
                async with asyncio.timeout(timeout):
                    region = await self.regions.take(layout.size)
            except grpc.aio.UsageError:
                raise unreachable("the connection was closed") from None
            except NoRoom:
                return await self._infer_plain(shared.request, left(end), headers)
            except TimeoutError:
                raise late(limited=timeout == self._limited) from None
            except (OSError, grpc.aio.AioRpcError) as error:
                return await self._without_region(error, shared, left(end), headers)
            channel, stub = self._next()
            try:
                return await self._call(stub, shared.request, region, layout, left(end), headers)
            except grpc.aio.AioRpcError as error:
                if last or UNKNOWN_REGION not in (error.details() or ""):
                    raise self._failure(channel, error, timeout) from None
                # It was started again, and has not looked at the request.
                self.regions.forget()
        raise AssertionError("the last attempt returns or raises")

    async def _without_region(
        self, error: Exception, shared: Shared, timeout: float | None, headers: Pairs
    ) -> Any:
        """There is no region to be had: sent as to any other server, if this one is there."""
        if isinstance(error, grpc.aio.AioRpcError):
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise self._failure(self._channels[0], error, timeout) from None
            text = said(error.details())
        else:
            text = (isinstance(error, OSError) and error.strerror) or str(error)
        log.warning("no shared memory for a request, which is sent without: %s", text)
        return await self._infer_plain(shared.request, timeout, headers)

    async def _infer_plain(
        self, request: InferenceRequest, timeout: float | None, headers: Pairs
    ) -> InferenceResponse:
        payload = await super().infer(self._transport.plain(request), timeout, headers)
        there = self._there
        return codec.decode_response(payload, there.ours, there.our_version, wire=False)

    async def _call(
        self,
        stub: Stub,
        request: InferenceRequest,
        region: Region,
        layout: Layout,
        timeout: float | None,
        headers: Pairs,
    ) -> InferenceResponse:
        """One attempt. The region is given back if the server has surely done with it."""
        over = False
        try:
            for tensor, (at, size) in zip(request.inputs, layout.inputs, strict=True):
                region.map[at : at + size] = tensor.data
            there, specs = self._there, self._transport.outputs
            payload = message_of(request, there, specs, region, layout)
            answer = await stub(payload, timeout=timeout, metadata=headers)
            over = True
            return answer_of(answer, there, region, layout)
        except grpc.aio.AioRpcError as error:
            over = error.code() in _DONE and UNKNOWN_REGION not in (error.details() or "")
            raise
        except asyncio.CancelledError:
            # Ours, or the channel was closed under it?
            if is_cancelled():
                raise
            raise broken("the connection was closed") from None
        finally:
            if over:
                self.regions.give_back(region)
            else:
                self.regions.drop(region)

    # --- control

    async def ready(self, timeout: float) -> str:
        """As the base says; with Triton's own words for a model that it does not have."""
        why = await super().ready(timeout)
        if why:
            try:
                await self.model(timeout)
            except AttemptFailed as failure:
                return str(failure)
        return why

    async def config(self, timeout: float) -> TritonConfig:
        """The model's configuration. Raises `AttemptFailed`."""
        messages, there = self._transport.messages, self._there
        try:
            answer = await self._ask(
                "ModelConfig", messages.config_request(there.name, there.version), timeout
            )
        except grpc.aio.AioRpcError as error:
            failed = InferenceFailed(said(error.details()))
            raise AttemptFailed(Fate.ANSWERED, failed) from None
        return messages.parse_config(answer)

    async def try_shared_memory(self) -> None:
        """Raises `ModelLoadError` if the server cannot see our shared memory."""
        try:
            self.regions.give_back(await self.regions.take(THRESHOLD))
        except grpc.aio.AioRpcError as error:
            raise ModelLoadError(
                f"shared_memory: the server does not see this machine's /dev/shm "
                f"({said(error.details())}); run both as one user and, in containers, with one "
                "IPC namespace, or set shared_memory: false"
            ) from None
        except NoRoom:  # enough is shared already: it does work
            return
        except OSError as error:
            raise ModelLoadError(
                f"shared_memory: no memory in /dev/shm: {error.strerror}; enlarge it, or set "
                "shared_memory: false"
            ) from None

    async def _register(self, region: Region) -> None:
        payload = self._transport.messages.register(region.name, region.key, region.size)
        try:
            await self._control_call("SystemSharedMemoryRegister", payload)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise

    async def _unregister(self, region: Region) -> bool:
        payload = self._transport.messages.unregister(region.name)
        try:
            await self._control_call("SystemSharedMemoryUnregister", payload)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def _control_call(self, method: str, payload: bytes) -> None:
        stub: Stub = self._channels[0].unary_unary(f"/inference.GRPCInferenceService/{method}")
        await stub(payload, timeout=CONTROL_SECONDS, metadata=self._fixed)

    async def close(self) -> None:
        """As the base says."""
        await self.regions.close()
        await super().close()


def left(end: float | None) -> float | None:
    """Seconds until `end`, at least 0; `None` for no end."""
    return None if end is None else max(end - perf_counter(), 0.0)
