"""Those who ask: every protocol, every answer checked.

Each caller sends requests at random moments (Poisson), whether or not earlier ones are answered,
and says of each how it ended. A model's version N adds N, so the answer, its version and the rows
that were sent have to agree: an answer that belongs to somebody else cannot pass.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence

import grpc
import numpy as np

from gateway.codecs import client_grpc
from gateway.tensors import InferenceRequest, Tensor, datatype
from loadtests.compare import wire
from loadtests.compare.wire import Floats
from loadtests.soak.connections import Answer, Pool, post, read_answer
from loadtests.soak.ledger import End, Ledger
from loadtests.soak.sending import BEGAN, PLUS, Caller, Outcome, Sending

STREAM_PATH = "/inference.GRPCInferenceService/ModelStreamInfer"
VERSION = "x-sluice-version"
LATE_S = 1.0
"""A refusal for want of time comes at most so long after the deadline."""
DEADLINES_MS = (1, 5, 15, 30, 60)
"""The model takes 20 ms; the last one leaves enough time."""


class Callers(Sending):
    """All of them, against one gateway."""

    def __init__(self, http: str, grpc_address: str, ledger: Ledger, seed: int) -> None:
        super().__init__(ledger, seed)
        self._pool = Pool(http)
        self._channels = [
            grpc.aio.insecure_channel(grpc_address, options=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(2)
        ]
        self._rows = np.random.default_rng(seed)

    def all(self) -> list[Caller]:
        """The mix of the soak."""
        return [
            Caller("add, HTTP binary", 40, lambda: self.binary("add")),
            Caller("add, HTTP JSON", 20, lambda: self.json("add")),
            Caller("add, KServe V1", 10, self.v1),
            Caller("add, /invocations", 5, self.invocations),
            Caller("add, gRPC", 80, lambda: self.unary("add")),
            Caller(f"{PLUS}, gRPC", 40, lambda: self.unary("plus")),
            Caller(f"{PLUS}, HTTP binary", 20, lambda: self.binary("plus")),
            Caller("waits, gRPC", 20, lambda: self.unary("waits")),
            Caller("waits, gRPC, cancelled", 20, self.cancelled),
            Caller("waits, HTTP, hung up", 10, self.hung_up),
            Caller("waits, HTTP, short deadline", 10, self.short_deadline),
            Caller("count, gRPC stream", 10, self.stream),
            Caller("count, stream left early", 4, self.stream_left),
        ]

    async def close(self) -> None:
        """Waits for what is under way, then closes the connections."""
        await super().close()
        await self._pool.close()
        for channel in self._channels:
            await channel.close()

    # --- one request each

    def rows(self) -> Floats:
        """One to eight rows of small integers, which floats add exactly."""
        shape = (int(self._rows.integers(1, 9)), 4)
        return self._rows.integers(-100_000, 100_000, shape).astype(np.float32)

    def check(self, model: str, rows: Floats, answer: Floats, version: str) -> Outcome:
        """Whether the answer is the sender's own rows with the version's number added."""
        if answer.shape != rows.shape or not np.array_equal(answer - rows, rows * 0 + int(version)):
            return End.WRONG, f"version {version} made {answer.tolist()} of {rows.tolist()}"
        return self.answered(model, version)

    def answered(self, model: str, version: str) -> Outcome:
        """Right, if this version may answer at all."""
        if self.gone(model, version, BEGAN.get()):
            return End.WRONG, f"answered by version {version}, which had been withdrawn before"
        self.ledger.versions[model, version] += 1
        return End.OK, ""

    async def binary(self, model: str) -> Outcome:
        """HTTP, binary tensors."""
        rows = self.rows()
        request = wire.binary_request(model, rows)
        answer = await self._pool.ask(post(request.path, request.headers, request.body))
        if answer.status != 200:
            return refused(answer)
        length = answer.headers.get(wire.JSON_LENGTH_HEADER.lower())
        found = wire.http_answer(answer.body, length)
        return self.check(model, rows, found, answer.headers[VERSION])

    async def json(self, model: str) -> Outcome:
        """HTTP, plain JSON."""
        rows = self.rows()
        request = wire.json_request(model, rows)
        answer = await self._pool.ask(post(request.path, request.headers, request.body))
        if answer.status != 200:
            return refused(answer)
        return self.check(model, rows, wire.http_answer(answer.body, None), answer.headers[VERSION])

    async def v1(self) -> Outcome:
        """KServe's ``:predict``."""
        rows = self.rows()
        body = json.dumps({"instances": rows.tolist()}).encode()
        kind = {"content-type": "application/json"}
        answer = await self._pool.ask(post("/v1/models/add:predict", kind, body))
        if answer.status != 200:
            return refused(answer)
        found = np.array(json.loads(answer.body)["predictions"], np.float32)
        return self.check("add", rows, found, answer.headers[VERSION])

    async def invocations(self) -> Outcome:
        """MLflow's scoring protocol."""
        rows = self.rows()
        body = json.dumps({"inputs": {"x": rows.tolist()}}).encode()
        kind = {"content-type": "application/json"}
        answer = await self._pool.ask(post("/models/add/invocations", kind, body))
        if answer.status != 200:
            return refused(answer)
        found = json.loads(answer.body)["predictions"]
        found = found["y"] if isinstance(found, dict) else found
        return self.check("add", rows, np.array(found, np.float32), answer.headers[VERSION])

    async def unary(self, model: str) -> Outcome:
        """gRPC."""
        rows = self.rows()
        call = self._call(model, rows)
        try:
            payload = await call
            version = await trailing(call, VERSION)
        except grpc.aio.AioRpcError as error:
            return End.FAILED, f"{error.code().name}: {error.details()}"
        return self.check(model, rows, wire.grpc_answer(payload), version)

    def _call(self, model: str, rows: Floats) -> grpc.aio.UnaryUnaryCall[bytes, bytes]:
        channel = self._random.choice(self._channels)
        return channel.unary_unary(wire.GRPC_INFER_PATH)(wire.grpc_request(model, rows))

    async def cancelled(self) -> Outcome:
        """gRPC, given up after up to 25 ms, which is before or after it is answered."""
        rows = self.rows()
        call = self._call("waits", rows)
        await asyncio.sleep(self._random.uniform(0, 0.025))
        call.cancel()
        try:
            payload = await call
            version = await trailing(call, VERSION)
        except asyncio.CancelledError:
            if not call.cancelled():
                raise
            return End.CANCELLED, ""
        except grpc.aio.AioRpcError as error:
            return End.FAILED, f"{error.code().name}: {error.details()}"
        return self.check("waits", rows, wire.grpc_answer(payload), version)

    async def hung_up(self) -> Outcome:
        """HTTP, the connection closed while the model runs, or in the middle of the request."""
        request = wire.json_request("waits", self.rows())
        sent = post(request.path, request.headers, request.body)
        connection = await self._pool.open()
        part = len(sent) if self._random.random() < 0.7 else self._random.randrange(len(sent))
        connection.writer.write(sent[:part])
        await asyncio.sleep(self._random.uniform(0, 0.02))
        if self._random.random() < 0.5:
            connection.writer.transport.abort()
        else:
            await connection.close()
        return End.CANCELLED, ""

    async def short_deadline(self) -> Outcome:
        """HTTP with a deadline that the model cannot always keep."""
        rows = self.rows()
        request = wire.json_request("waits", rows)
        deadline = self._random.choice(DEADLINES_MS)
        generous = deadline == DEADLINES_MS[-1]
        self.ledger.generous += generous
        headers = {**request.headers, "x-request-timeout-ms": str(deadline)}
        began = time.monotonic()
        answer = await self._pool.ask(post(request.path, headers, request.body))
        took = time.monotonic() - began
        if answer.status in (429, 504):
            if took > deadline / 1000 + LATE_S:
                return End.FAILED, f"HTTP {answer.status} after {took:.2f} s of {deadline} ms"
            return End.REFUSED, ""
        if answer.status != 200:
            return refused(answer)
        self.ledger.generous_kept += generous
        found = wire.http_answer(answer.body, None)
        return self.check("waits", rows, found, answer.headers[VERSION])

    async def stream(self) -> Outcome:
        """A stream with one request, read to its end."""
        upto = self._random.randint(1, 12)
        numbers: list[int] = []
        try:
            await self._read(self._stream(upto), numbers)
        except ValueError as error:
            return End.FAILED, str(error)
        except grpc.aio.AioRpcError as error:
            return End.FAILED, f"{error.code().name}: {error.details()}"
        if len(numbers) != upto:
            return End.WRONG, f"{upto} were asked for, {numbers} came"
        return self.counted(numbers)

    async def stream_left(self) -> Outcome:
        """A stream that its reader leaves after some answers, which have to be right."""
        call = self._stream(10_000)
        numbers: list[int] = []
        try:
            async with asyncio.timeout(self._random.uniform(0, 0.2)):
                await self._read(call, numbers)
        except TimeoutError:
            call.cancel()
        except ValueError as error:
            return End.FAILED, str(error)
        except grpc.aio.AioRpcError as error:
            return End.FAILED, f"{error.code().name}: {error.details()}"
        else:
            return End.WRONG, f"the stream ended after {len(numbers)} of 10,000 answers"
        end, why = self.counted(numbers) if numbers else (End.OK, "")
        return (End.CANCELLED, "") if end is End.OK else (end, why)

    async def _read(self, call: grpc.aio.StreamStreamCall[bytes, bytes], into: list[int]) -> None:
        """Raises `ValueError` for an error in the stream."""
        async for payload in call:
            response, problem, _ = client_grpc.decode_stream_response(payload, "count", "")
            if problem:
                raise ValueError(problem)
            if response is not None:
                into.append(int(response.outputs[0].array[0]))

    def counted(self, numbers: Sequence[int]) -> Outcome:
        """Whether these are 1, 2, 3 ... of one version that may answer."""
        if [number % 1000 for number in numbers] != list(range(1, len(numbers) + 1)):
            return End.WRONG, f"not in order: {list(numbers)}"
        versions = {number // 1000 for number in numbers}
        if len(versions) != 1:
            return End.WRONG, f"answers of several versions: {list(numbers)}"
        return self.answered("count", str(versions.pop()))

    def _stream(self, upto: int) -> grpc.aio.StreamStreamCall[bytes, bytes]:
        tensor = Tensor("to", datatype("INT32"), (1,), array=np.array([upto], np.int32))
        request = client_grpc.encode_request(InferenceRequest("count", "", (tensor,)), "count", "")
        return self._random.choice(self._channels).stream_stream(STREAM_PATH)(once(request))

    async def burst(self, count: int) -> None:
        """Many requests in one moment, of which some may be refused for a full queue."""

        async def one() -> Outcome:
            end, why = await self.unary("waits")
            return (End.REFUSED, "") if "RESOURCE_EXHAUSTED" in why else (end, why)

        caller = Caller("waits, gRPC, bursts", 0, one)
        await asyncio.gather(*(self._one(caller) for _ in range(count)))

    async def storm(self, count: int) -> None:
        """Many connections at once: asked once, and dropped."""

        async def one() -> Outcome:
            rows = self.rows()
            request = wire.json_request("add", rows)
            connection = await self._pool.open()
            try:
                connection.writer.write(post(request.path, request.headers, request.body))
                answer = await read_answer(connection.reader)
            finally:
                await connection.close()
            if answer.status != 200:
                return refused(answer)
            found = wire.http_answer(answer.body, None)
            return self.check("add", rows, found, answer.headers[VERSION])

        caller = Caller("add, HTTP, a storm of connections", 0, one)
        await asyncio.gather(*(self._one(caller) for _ in range(count)))


async def once(request: bytes):  # type: ignore[no-untyped-def]
    """A stream of one request."""
    yield request


async def trailing(call: grpc.aio.UnaryUnaryCall[bytes, bytes], name: str) -> str:
    """A value of the metadata behind an answer."""
    for key, value in await call.trailing_metadata():
        if key == name:
            return str(value)
    raise KeyError(f"the answer has no trailing metadata {name}")


def refused(answer: Answer) -> Outcome:
    """An error that was not asked for."""
    return End.FAILED, f"HTTP {answer.status}: {answer.body[:200].decode(errors='replace')}"
