"""``ModelStreamInfer`` through grpcio: bidirectional streams with one request under way on each."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from gateway.codecs.client_grpc import FINAL
from gateway.codecs.messages import ModelInferRequest, ModelStreamInferResponse
from loadtests.bench.clients.base import (
    CONNECT_S,
    CONNECTION,
    PROTOCOL,
    Call,
    Done,
    grpc_address,
    headers_of,
    nobody,
)
from loadtests.bench.plan import Target
from loadtests.payloads.base import Wire

EMPTY_FINAL: Final = "triton_enable_empty_final_response"
"""Asks the server to mark the last response of each request, also where a model gives none."""
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # channels share no connection
)

_now = time.monotonic_ns


class StreamClient:
    """A pool of up to `most` streams over `connections`. Calls wait while all are taken."""

    def __init__(
        self, target: Target, payloads: Sequence[Wire], *, connections: int, most: int, done: Done
    ) -> None:
        self.done = done
        self.requests = [_request(each.body) for each in payloads]
        self.metadata = [headers_of(each, target) for each in payloads]
        self.path = payloads[0].path
        self.address = grpc_address(target)
        # The address has been read, so this file can be.
        roots = Path(target.ca_file).read_bytes() if target.ca_file else None
        self._credentials = grpc.ssl_channel_credentials(roots)
        self._most = max(most, 1)
        self._count = max(connections, 1)
        self._channels: list[Any] = []
        self._idle: deque[_Stream] = deque()
        self._live: set[_Stream] = set()
        self._waiting: deque[Call] = deque()
        self._turn = 0

    async def open(self) -> None:
        """Makes the connections; streams begin with their first requests. Raises `BenchError`."""
        address = self.address
        for _ in range(self._count):
            if address.tls is None:
                channel = grpc.aio.insecure_channel(address.authority, options=_OPTIONS)
            else:
                channel = grpc.aio.secure_channel(
                    address.authority, self._credentials, options=_OPTIONS
                )
            self._channels.append(channel)
        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.gather(*(each.channel_ready() for each in self._channels))
        except TimeoutError as error:
            raise nobody(address, error) from None

    def send(self, call: Call) -> None:
        """On a stream that is free, else a new one, else the next that will be."""
        metadata = self.metadata[call.number % len(self.metadata)]
        for _ in range(len(self._idle)):
            stream = self._idle.popleft()
            if stream.metadata == metadata:
                stream.send(call)
                return
            self._idle.append(stream)  # metadata belong to a stream, not to a request
        if len(self._live) >= self._most:
            if not self._idle:
                self._waiting.append(call)
                return
            self._idle.popleft().drop()
        channel = self._channels[self._turn % len(self._channels)]
        self._turn += 1
        stream = _Stream(self, channel.stream_stream(self.path)(metadata=metadata), metadata)
        self._live.add(stream)
        stream.send(call)

    def cancel(self, call: Call) -> None:
        """Its stream ends."""
        if isinstance(call.via, _Stream):
            call.via.drop()

    async def close(self) -> None:
        """Ends all streams and connections."""
        tasks = [stream.task for stream in self._live]
        for stream in list(self._live):
            stream.drop()
        if tasks:
            await asyncio.wait(tasks)
        for channel in self._channels:
            await channel.close()

    def free(self, stream: _Stream) -> None:
        """The stream can take the next call."""
        self._idle.append(stream)
        self._next()

    def lost(self, stream: _Stream) -> None:
        """The stream is no more."""
        self._live.discard(stream)
        if stream in self._idle:
            self._idle.remove(stream)
        self._next()

    def _next(self) -> None:
        while self._waiting:
            call = self._waiting.popleft()
            if not call.ended:
                self.send(call)
                return


def _request(body: bytes) -> bytes:
    """The request with the wish for a marked last response behind it: fields of a message that
    come twice are merged."""
    message = ModelInferRequest()
    message.parameters[EMPTY_FINAL].bool_param = True
    more: bytes = message.SerializeToString()
    return body + more


class _Stream:
    def __init__(
        self, client: StreamClient, rpc: Any, metadata: tuple[tuple[str, str], ...]
    ) -> None:
        self.client = client
        self.metadata = metadata
        self._rpc = rpc
        self._calls: asyncio.Queue[Call] = asyncio.Queue()
        self._call: Call | None = None
        self.task = asyncio.get_running_loop().create_task(self._run())

    def send(self, call: Call) -> None:
        call.via = self
        self._call = call
        self._calls.put_nowait(call)

    def drop(self) -> None:
        """Without a word to whoever waits for an answer."""
        self._call = None
        self._rpc.cancel()
        self.task.cancel()
        self.client.lost(self)

    async def _run(self) -> None:
        outcome, text = CONNECTION, ""
        try:
            while True:
                call = await self._calls.get()
                requests = self.client.requests
                call.left = _now()
                await self._rpc.write(requests[call.number % len(requests)])
                if not await self._answer(call):
                    outcome, text = await self._status()
                    break
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._call is None or (task is not None and task.cancelling()):
                return
            # grpcio says so too where it has ended the stream itself.
            outcome, text = "CANCELLED", "the stream was cancelled"
        except grpc.RpcError as error:
            outcome, text = _classified(error)
        except (asyncio.InvalidStateError, grpc.aio.UsageError):
            outcome, text = await self._status()
        finally:
            self._rpc.cancel()
        call_now, self._call = self._call, None
        self.client.lost(self)
        if call_now is not None:
            self.client.done(call_now, outcome, "", text.encode())

    async def _answer(self, call: Call) -> bool:
        """Reads up to the last response of the call; whether the stream goes on."""
        version, kept = "", b""
        while True:
            data = await self._rpc.read()
            if data is grpc.aio.EOF:
                return False
            outcome, text, last = "", b"", False
            try:
                message = ModelStreamInferResponse.FromString(data)
            except ValueError:  # protobuf's DecodeError is one
                outcome, last = PROTOCOL, True
            else:
                response = message.infer_response
                version = response.model_version or version
                if message.error_message:
                    outcome, text, last = "error", message.error_message.encode(), True
                elif FINAL in response.parameters:
                    last = response.parameters[FINAL].bool_param
                else:  # a server that marks none: one answer each
                    last = True
                if call.keep and response.outputs:
                    kept = response.SerializeToString()
            if last:
                self._call = None
                self.client.free(self)
                self.client.done(call, outcome, version, text or kept)
                return True

    async def _status(self) -> tuple[str, str]:
        """Why the stream ended."""
        code = await self._rpc.code()
        name = CONNECTION if code is grpc.StatusCode.OK else code.name
        return name, await self._rpc.details() or "the stream ended"


def _classified(error: grpc.RpcError) -> tuple[str, str]:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and any(
        word in details.lower() for word in ("connect", "socket", "reset", "goaway")
    ):
        return CONNECTION, details
    return code.name, details
