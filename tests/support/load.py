"""A steady load on a gateway over HTTP and gRPC, which checks and counts every answer."""

from __future__ import annotations

import asyncio
import json
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np

from gateway.codecs.messages import METHODS

INFER = METHODS["ModelInfer"]
ROW = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)


@dataclass
class Tally:
    """What came of the requests of one load."""

    ok: Counter[str] = field(default_factory=Counter)
    """Version → answers with the right values."""
    wrong: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    """Status → requests that were refused plainly (only where the test allows it)."""
    broken: list[str] = field(default_factory=list)
    """Requests that were never answered."""
    sent: int = 0
    last: str = ""

    @property
    def answered(self) -> int:
        return sum(self.ok.values())


class Load:
    """Workers that send one request after the other until `stop`.

    `right(version, difference)` says whether a version may add this much to its input.
    Statuses in `refusals` end a worker, and are no failure.
    """

    def __init__(
        self,
        http: str,
        grpc: str,
        model: str,
        right: Callable[[str, float], bool],
        *,
        workers: int = 2,
        pause: float = 0.004,
        refusals: frozenset[str] = frozenset(),
    ) -> None:
        self.http_host, _, port = http.removeprefix("http://").rpartition(":")
        self.http_port = int(port)
        self.grpc = grpc
        self.model = model
        self.right = right
        self.workers = workers
        self.pause = pause
        self.refusals = refusals
        self.tallies = {"http": Tally(), "grpc": Tally()}
        self.stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        for _ in range(self.workers):
            self._tasks.append(asyncio.create_task(self._http(self.tallies["http"])))
            self._tasks.append(asyncio.create_task(self._grpc(self.tallies["grpc"])))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Lets every worker end its request."""
        self.stopping = True
        await asyncio.gather(*self._tasks)

    @property
    def sent(self) -> int:
        return sum(tally.sent for tally in self.tallies.values())

    def last(self) -> set[str]:
        """The versions that answered last, one a protocol."""
        return {tally.last for tally in self.tallies.values()}

    def check(self) -> None:
        """Every request was answered, with the right values."""
        for protocol, tally in self.tallies.items():
            assert not tally.broken, (protocol, len(tally.broken), tally.broken[:3])
            assert not tally.wrong, (protocol, len(tally.wrong), tally.wrong[:3])
            assert tally.sent == tally.answered + tally.refused.total(), (protocol, tally)

    def _count(self, tally: Tally, version: str, values: Any) -> None:
        added = np.asarray(values, np.float32).reshape(ROW.shape) - ROW
        differences = set(added.ravel().tolist())
        difference = differences.pop()
        if differences or not self.right(version, difference):
            tally.wrong.append(f"version {version} added {difference} {differences}")
        else:
            tally.ok[version] += 1
        tally.last = version

    async def _http(self, tally: Tally) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": ROW.ravel().tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
        request = (
            f"POST /v2/models/{self.model}/infer HTTP/1.1\r\nhost: gateway\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body
        reader: asyncio.StreamReader | None = None
        writer: asyncio.StreamWriter | None = None
        try:
            while not self.stopping:
                if reader is None or writer is None:
                    try:
                        reader, writer = await asyncio.open_connection(
                            self.http_host, self.http_port
                        )
                    except OSError:
                        if self.refusals:
                            return
                        raise
                tally.sent += 1
                try:
                    writer.write(request)
                    status, headers, answer = await read_answer(reader)
                except (OSError, asyncio.IncompleteReadError) as error:
                    tally.broken.append(repr(error))
                    return
                if status in self.refusals:
                    tally.refused[status] += 1
                    return
                if status != "200":
                    tally.wrong.append(f"{status} {answer[:200]!r}")
                else:
                    tree = json.loads(answer)
                    self._count(tally, tree["model_version"], tree["outputs"][0]["data"])
                if headers.get("connection") == "close":
                    writer.close()
                    reader = writer = None
                await asyncio.sleep(self.pause)
        finally:
            if writer is not None:
                writer.close()

    async def _grpc(self, tally: Tally) -> None:
        request = INFER.request(
            model_name=self.model,
            inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 4]}],
            raw_input_contents=[ROW.tobytes()],
        ).SerializeToString()
        async with grpc.aio.insecure_channel(self.grpc) as channel:
            infer = channel.unary_unary(INFER.path)
            while not self.stopping:
                tally.sent += 1
                try:
                    answer = INFER.response.FromString(await infer(request))
                except grpc.aio.AioRpcError as error:
                    status = error.code().name
                    if status in self.refusals:
                        tally.refused[f"{status}: {error.details()}"] += 1
                        return
                    tally.wrong.append(f"{status} {error.details()}")
                else:
                    (raw,) = answer.raw_output_contents
                    self._count(tally, answer.model_version, struct.unpack("<4f", raw))
                await asyncio.sleep(self.pause)


async def read_answer(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    """Status, headers and body of one HTTP answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in head[1:] if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return head[0].split(" ")[1], headers, body
