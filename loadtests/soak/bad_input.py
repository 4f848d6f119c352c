"""Requests that are no good: each has to be refused plainly, and to harm nobody."""

from __future__ import annotations

import asyncio
import json
import random

import grpc
import numpy as np

from loadtests.compare import wire
from loadtests.soak.callers import refused
from loadtests.soak.connections import Pool, post, read_answer
from loadtests.soak.ledger import End
from loadtests.soak.sending import Outcome

ANSWER_S = 5.0
"""Bytes that are no request are refused by then."""
JSON = {"content-type": "application/json"}
ROW = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}


def _body(**changes: object) -> bytes:
    return json.dumps({"inputs": [{**ROW, **changes}]}).encode()


BODIES: dict[str, bytes] = {
    "no JSON": b'{"inputs": [',
    "nothing": b"",
    "a deep nest": b"[" * 100_000,
    "wrong datatype": _body(datatype="INT64"),
    "unknown datatype": _body(datatype="FP31"),
    "wrong name": _body(name="z"),
    "negative shape": _body(shape=[-1, 4]),
    "huge shape": _body(shape=[2**62, 4]),
    "wrong rank": _body(shape=[4]),
    "too few values": _body(data=[1, 2]),
    "words for numbers": _body(data=["a", "b", "c", "d"]),
    "bad UTF-8": b'{"inputs": "\xff\xfe"}',
    "no inputs": b'{"inputs": []}',
}
GRPC: dict[str, bytes] = {
    "garbage": b"\xff" * 64,
    "unknown model": wire.grpc_request("no-such-model", np.zeros((1, 4), np.float32)),
    "wrong shape": wire.grpc_request("add", np.zeros((1, 5), np.float32)),
    "cut short": wire.grpc_request("add", np.zeros((2, 4), np.float32))[:-9],
}
RAW: dict[str, bytes] = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "two lengths": b"POST /v2/models/add/infer HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n"
    b"content-length: 5\r\n\r\nabcd",
    "header length beyond the body": post(
        "/v2/models/add/infer", {"inference-header-content-length": "900"}, b"{}"
    ),
    "an endless header": b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 200_000,
}


class BadInput:
    """Picks one at random."""

    def __init__(self, http: str, grpc_address: str, seed: int) -> None:
        self._pool = Pool(http)
        self._channel = grpc.aio.insecure_channel(
            grpc_address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self._random = random.Random(seed)

    async def ask(self) -> Outcome:
        """Sends one, and sees that it is refused for what it is."""
        kind = self._random.random()
        if kind < 0.5:
            return await self.http(*self._random.choice(list(BODIES.items())))
        if kind < 0.8:
            return await self.grpc(*self._random.choice(list(GRPC.items())))
        return await self.raw(*self._random.choice(list(RAW.items())))

    async def http(self, name: str, body: bytes) -> Outcome:
        """A body that is no good: 4xx, and the connection goes on."""
        answer = await self._pool.ask(post("/v2/models/add/infer", JSON, body))
        if 400 <= answer.status < 500:
            return End.REFUSED, ""
        return End.FAILED, f"{name}: {refused(answer)[1]}"

    async def grpc(self, name: str, body: bytes) -> Outcome:
        """A message that is no good."""
        try:
            await self._channel.unary_unary(wire.GRPC_INFER_PATH)(body)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):
                return End.REFUSED, ""
            return End.FAILED, f"{name}: {error.code().name}: {error.details()}"
        return End.WRONG, f"{name} was answered"

    async def raw(self, name: str, sent: bytes) -> Outcome:
        """Bytes that are no request: 4xx, or the connection is closed."""
        connection = await self._pool.open()
        try:
            async with asyncio.timeout(ANSWER_S):
                connection.writer.write(sent)
                answer = await read_answer(connection.reader)
        except TimeoutError:  # an OSError, like those below
            return End.FAILED, f"{name}: neither refused nor hung up on in {ANSWER_S:g} s"
        except (ConnectionError, asyncio.IncompleteReadError):
            return End.REFUSED, ""
        finally:
            await connection.close()
        if 400 <= answer.status < 500:
            return End.REFUSED, ""
        return End.FAILED, f"{name}: {refused(answer)[1]}"

    async def close(self) -> None:
        """Closes the connections."""
        await self._pool.close()
        await self._channel.close()
