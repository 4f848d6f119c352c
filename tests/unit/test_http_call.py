"""Calls over HTTP that end in unusual ways: their place and their bytes are given back."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from gateway.admission import Admission
from gateway.codecs import large
from gateway.codecs.oip_rest import RestCodec
from gateway.config import Config, LimitsConfig
from gateway.contract import Contract
from gateway.errors import InvalidRequest, NotLoaded
from gateway.pipeline import Pipeline
from gateway.routing import Router
from gateway.servers.http_body import LARGE
from gateway.servers.http_call import Exchange, HttpCall
from gateway.servers.invocations_call import InvocationsExchange
from gateway.servers.v1_call import V1Exchange
from gateway.tensors import (
    BYTES,
    DATATYPES,
    InferenceRequest,
    InferenceResponse,
    Tensor,
    TensorSpec,
    objects,
)

FP32 = DATATYPES["FP32"]
KINDS = [Exchange, InvocationsExchange, V1Exchange]
ROWS = 60_000


class Apart:
    """In the place of other processes; knows what they were sent."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    async def run(
        self,
        size: int,
        function: Callable[..., Any],
        *arguments: Any,
        after: Callable[[Any], object] | None = None,
        trouble: str = "",
    ) -> Any:
        frame = pickle.dumps((function, arguments))
        self.sent.append(len(frame))
        function, arguments = pickle.loads(frame)
        found = function(*arguments)
        if after is not None:
            after(found)
        return found


class Transport:
    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def writelines(self, pieces: list[bytes]) -> None:
        self.written += b"".join(pieces)


class Server:
    """All that an exchange knows of its connection."""

    def __init__(self) -> None:
        config = Config()
        self.admission = Admission(config.limits)
        self.pipeline = Pipeline(Router(), self.admission)
        self.apart = Apart()
        self.transport = Transport()
        shared = SimpleNamespace(
            apart=self.apart,
            body_bytes=0,
            closing=False,
            codec=RestCodec(config.limits),
            config=config,
            limits=config.limits,
            pipeline=self.pipeline,
            room_bytes=0,
        )
        self.shared = cast(Any, shared)
        self.protocol = cast(
            Any,
            SimpleNamespace(
                since=0.0,
                shared=shared,
                tasks=set(),
                transport=self.transport,
                answered=self.answered,
            ),
        )

    def answered(self, exchange: Exchange) -> None:
        exchange.response_complete = True

    def exchange(self, kind: type[Exchange], **headers: str) -> Exchange:
        given = {k.replace("_", "-").encode(): v.encode() for k, v in headers.items()}
        return kind(self.protocol, ("m", ""), given, keep_alive=True)

    def call(self, exchange: Exchange, body: bytes = b"") -> HttpCall:
        if isinstance(exchange, InvocationsExchange):
            exchange._media_type = "application/json"
        call = exchange._call = exchange._new_call(body)
        contract = Contract([], [TensorSpec("y", FP32, (-1,))], batched=True)
        call.chosen = SimpleNamespace(contract=contract), ""
        return call

    @property
    def answer(self) -> tuple[int, bytes]:
        head, _, body = self.transport.written.partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}\r\n".encode() in head + b"\r\n"
        return int(head.split()[1]), body

    async def rest(self) -> None:
        while tasks := list(self.protocol.tasks):
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    def nothing_is_left(self) -> bool:
        counts = (self.admission.in_flight, self.shared.body_bytes, self.shared.room_bytes)
        return counts == (0, 0, 0)


def response(*outputs: Tensor) -> InferenceResponse:
    return InferenceResponse("m", "1", outputs)


def numbers(rows: int = ROWS, name: str = "y") -> Tensor:
    return Tensor(name, FP32, (rows,), array=np.arange(rows, dtype=np.float32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turns", range(4))
def test_a_client_that_leaves_as_its_large_answer_begins(kind: type[Exchange], turns: int) -> None:
    """A task that is cancelled before its first step never comes to its `finally`."""

    async def main() -> None:
        server = Server()
        exchange = server.exchange(kind)
        call = server.call(exchange)
        call.reply(response(numbers()))
        assert server.admission.in_flight == 1
        for _ in range(turns):
            await asyncio.sleep(0)
        exchange.disconnect()
        await server.rest()
        assert server.nothing_is_left()

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_an_unexpected_error_over_a_large_body_ends_its_call(
    kind: type[Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(call: HttpCall, body: bytes) -> InferenceRequest:
        raise RuntimeError("never heard of")

    async def main() -> None:
        server = Server()
        exchange = server.exchange(kind)
        exchange.received(b"x")
        if isinstance(exchange, InvocationsExchange):
            exchange._media_type = "application/json"
        call_type = type(exchange._new_call(b""))
        server.admission.in_flight = 0
        monkeypatch.setattr(call_type, "_read_apart", broken)
        exchange._serve(b"[" * large.LARGE_BODY)
        await server.rest()
        assert server.answer[0] == 500
        assert server.nothing_is_left()
        assert server.pipeline.refused.total() == 1

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["_large_answer", "_encode"])
def test_an_answer_that_cannot_be_made_is_an_error(
    kind: type[Exchange], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise MemoryError

    async def main() -> None:
        server = Server()
        call = server.call(server.exchange(kind))
        monkeypatch.setattr(type(call), where, broken)
        call.reply(response(numbers(2)))
        assert server.answer[0] == 500
        assert server.nothing_is_left()

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_behind_an_answer(kind: type[Exchange]) -> None:
    """Even if what comes after it fails, such as the next request of the connection."""

    async def main() -> None:
        server = Server()

        def answered(exchange: Exchange) -> None:
            exchange.response_complete = True
            raise RuntimeError("the next one")

        server.protocol.answered = answered
        call = server.call(server.exchange(kind))
        call.reply(response(numbers(2)))
        assert server.answer[0] == 200
        assert server.nothing_is_left()

    asyncio.run(main())


@pytest.mark.parametrize("rows", [2, ROWS])
def test_strings_may_be_anything_that_has_a_text(rows: int) -> None:
    async def main() -> None:
        server = Server()
        call = server.call(server.exchange(InvocationsExchange))
        elements = cast(Any, ["p", None] * (rows // 2))
        call.reply(response(Tensor("y", BYTES, (rows,), array=objects(elements, (rows,)))))
        await server.rest()
        status, body = server.answer
        expected = {"predictions": {"y": ["p", "None"] * (rows // 2)}}
        assert (status, json.loads(body)) == (200, expected)
        assert server.nothing_is_left()

    asyncio.run(main())


# --- what goes to another process


def named(**binary: bool) -> bytes:
    outputs = [{"name": n, "parameters": {"binary_data": b}} for n, b in binary.items()]
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    return json.dumps({"inputs": [tensor], "outputs": outputs}).encode()


@pytest.mark.parametrize(
    ("small", "big"), [(ROWS, 4 * ROWS), (2, 4 * ROWS)], ids=["large JSON", "small JSON"]
)
@pytest.mark.parametrize("fresh", [False, True])
def test_binary_outputs_stay_here(small: int, big: int, fresh: bool) -> None:
    async def main() -> None:
        server = Server()
        exchange = server.exchange(Exchange)
        call = server.call(exchange, named(y=False, z=True, text=True))
        call.decode()
        text = Tensor("text", BYTES, (2,), array=objects([b"a", b"bc"], (2,)))
        outputs = [numbers(big, "z"), numbers(small), text]
        answer = InferenceResponse("m", "1", outputs, id="7", fresh=fresh)
        expected = RestCodec(LimitsConfig()).encode(answer, call._form)
        call.reply(answer)
        await server.rest()
        assert server.answer == (200, expected[0])
        assert (
            f"inference-header-content-length: {expected[1]}".encode() in server.transport.written
        )
        assert len(server.apart.sent) == (small > 2)
        assert sum(server.apart.sent) < 4 * ROWS + 10_000

    asyncio.run(main())


def mixed(rows: int, size: int) -> tuple[bytes, bytes]:
    """JSON and tensors of a request with both kinds of inputs."""
    text = b"\x01\0\0\0a\x02\0\0\0bc"
    inputs: list[dict[str, Any]] = [
        {"name": "s", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 11}},
        {"name": "x", "shape": [rows], "datatype": "FP32", "data": list(range(rows))},
        {"name": "t", "shape": [2], "datatype": "BYTES", "data": ["é", "f"]},
        {
            "name": "z", "shape": [size // 4], "datatype": "FP32",
            "parameters": {"binary_data_size": size},
        },
    ]  # fmt: skip
    rest = text + np.arange(size // 4, dtype=np.float32).tobytes()
    return json.dumps({"inputs": inputs, "id": "7"}).encode(), rest


def told(request: InferenceRequest) -> Any:
    inputs = [(repr(t), bytes(t.data), t.array.tolist()) for t in request.inputs]
    return inputs, request.id, request.rows, request.signature, request.unchecked, request.nbytes


def test_binary_inputs_stay_here() -> None:
    head, rest = mixed(ROWS, 400_000)

    async def main() -> None:
        server = Server()
        length = {"inference_header_content_length": str(len(head))}
        exchange = server.exchange(Exchange, **length)
        call = server.call(exchange, head + rest)
        found = await call._read_apart(head + rest)
        codec = RestCodec(LimitsConfig())
        assert told(found) == told(codec.decode("m", "", head + rest, len(head))[0])
        assert server.apart.sent[0] < len(head) + 10_000

    asyncio.run(main())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"binary_data_size": 11', b'"binary_data_size": 12'),
        (b'"binary_data_size": 11', b'"binary_data_size": 1e1'),
        (b'"binary_data_size": 400', b'"binary_data_size": 404'),
        (b'"shape": [100]', b'"shape": [101]'),
        (b'"shape": [2], "datatype": "BYTES", "p', b'"shape": [3], "datatype": "BYTES", "p'),
        (b'"name": "z"', b'"name": 7'),
        (b"}", b"]"),
    ],
)
@pytest.mark.parametrize("cut", [0, 1])
def test_a_head_is_refused_as_a_whole_body_is(old: bytes, new: bytes, cut: int) -> None:
    head, rest = mixed(3, 400)
    assert old in head
    head, rest = head.replace(old, new), rest[: len(rest) - cut]
    limits = LimitsConfig()

    def apart() -> InferenceRequest:
        found = large.read_infer_head(limits, "m", "", head, len(rest))
        large.join_request(memoryview(rest), found)
        return found[0]

    def whole() -> InferenceRequest:
        request, _ = RestCodec(limits).decode("m", "", head + rest, len(head))
        large.unpack_request(request)
        return request

    with pytest.raises(InvalidRequest) as expected:
        whole()
    with pytest.raises(InvalidRequest) as found:
        apart()
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("sticky", [None, "user"])
def test_a_version_is_chosen_by_the_parameters_of_a_large_body(sticky: str | None) -> None:
    async def main() -> None:
        server = Server()
        contract = Contract([TensorSpec("x", FP32, (-1,))], [], batched=True)
        servable = SimpleNamespace(contract=contract, version="1")
        route = SimpleNamespace(sticky=SimpleNamespace(parameter=sticky), versions={"1": servable})
        server.pipeline.router = cast(Any, SimpleNamespace(table={"m": route}))
        asked: list[Any] = []

        def choose(_: object, like: InferenceRequest) -> Any:
            asked.append(like.parameters)
            return servable, ""

        server.pipeline.choose = choose  # type: ignore[method-assign]
        call = server.call(server.exchange(InvocationsExchange))
        body = json.dumps({"inputs": [1.5] * ROWS, "params": {"user": "me"}}).encode()
        found = await call._read_apart(body)
        assert asked == [{"user": "me"} if sticky else None]
        assert found.parameters == {"user": "me"}
        assert found.inputs[0].array.tolist() == [1.5] * ROWS
        assert len(server.apart.sent) == (2 if sticky else 1)

    asyncio.run(main())


# --- before a large body is read


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_body_is_refused_before_it_is_read(kind: type[Exchange]) -> None:
    async def main() -> None:
        server = Server()
        server.admission.draining = True
        exchange = server.exchange(kind)
        if isinstance(exchange, InvocationsExchange):
            exchange._media_type = "application/json"
        exchange._serve(b"[" * 1_000_000)
        await server.rest()
        assert (server.answer[0], server.apart.sent) == (503, [])
        assert server.nothing_is_left()

    asyncio.run(main())


def test_a_deadline_ends_the_wait_for_a_model_that_is_loaded() -> None:
    class Never:
        def wait(self, *_: Any) -> None: ...

        async def loaded(self, error: NotLoaded, *, inner: bool = False) -> None:
            await asyncio.get_running_loop().create_future()

    async def main() -> None:
        server = Server()
        server.pipeline.demand = Never()
        server.pipeline.choose = not_loaded  # type: ignore[method-assign]
        exchange = server.exchange(V1Exchange, x_request_timeout_ms="20")
        exchange.since = asyncio.get_running_loop().time()
        exchange._serve(b"[" * large.LARGE_BODY)
        await asyncio.wait_for(server.rest(), 30)
        status, body = server.answer
        assert (status, b"deadline" in body) == (504, True)
        assert server.nothing_is_left()

    asyncio.run(main())


def not_loaded(*_: Any) -> Any:
    raise NotLoaded("model 'm' is not loaded")


# --- memory for what was announced


def test_headers_alone_take_no_more_memory_than_bodies_may() -> None:
    server = Server()
    size = LARGE
    server.shared.limits = LimitsConfig(max_bytes_in_flight=8 * size)
    length = {"inference_header_content_length": "100"}
    exchanges = [server.exchange(Exchange, **length) for _ in range(20)]
    for exchange in exchanges:
        exchange.expect(size)
    assert [each.room is not None for each in exchanges] == [True] * 8 + [False] * 12
    exchanges[-1].received(b"x" * 100)  # the others come in pieces
    assert len(exchanges[-1]._body) == 100
    exchanges[0].disconnect()
    exchanges[9].expect(size)
    assert exchanges[9].room is not None
    for exchange in exchanges:
        exchange.disconnect()
        exchange.disconnect()
    assert server.nothing_is_left()
