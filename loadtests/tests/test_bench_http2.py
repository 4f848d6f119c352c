"""The gRPC clients against grpcio's server, and against frames that no good server sends."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.codecs.messages import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from loadtests.bench.clients import frames as h2
from loadtests.bench.clients import make_client
from loadtests.bench.clients.base import Call, proto_version
from loadtests.bench.plan import Protocol, Target
from loadtests.errors import BenchError
from loadtests.payloads.base import Wire
from loadtests.tests.bench_servers import Handler, serving

Said = list[tuple[str, str, bytes]]
UNARY = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
ANSWER: bytes = ModelInferResponse(model_name="m", model_version="7").SerializeToString()


def ask(
    port: int,
    wires: list[Wire],
    count: int,
    *,
    protocol: Protocol = Protocol.GRPC,
    connections: int = 1,
    cancel: int = 0,
    one_by_one: bool = False,
) -> Said:
    """What became of calls, in the order of their numbers."""

    async def asking() -> Said:
        said: dict[int, tuple[str, str, bytes]] = {}
        changed = asyncio.Event()

        def done(call: Call, outcome: str, version: str, body: bytes) -> None:
            assert call.number not in said
            said[call.number] = (outcome, version, body)
            changed.set()

        async def until(number: int) -> None:
            async with asyncio.timeout(20):
                while len(said) < number:
                    changed.clear()
                    await changed.wait()

        target = Target("m", protocol, grpc=f"127.0.0.1:{port}")
        client = make_client(target, wires, connections=connections, most=64, done=done)
        await client.open()
        for number in range(count):
            call = Call(number, 0, 0)
            call.keep = True
            client.send(call)
            if number < cancel:
                await asyncio.sleep(0.01)
                call.ended = True
                client.cancel(call)
            elif one_by_one:
                await until(number + 1 - cancel)
        await until(count - cancel)
        await client.close()
        return [said[number] for number in sorted(said)]

    return asyncio.run(asking())


@contextlib.contextmanager
def grpcio(unary: Callable[[bytes, Any], bytes], stream: Any = None) -> Iterator[int]:
    """The port of a server of grpcio that answers bytes with bytes."""
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(unary)}
    if stream is not None:
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(stream)
    service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(32), handlers=[service], options=options)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


@given(st.lists(st.one_of(st.integers(0, 300), st.integers(60_000, 3_000_000)), max_size=6))
@settings(max_examples=10, deadline=None)
def test_messages_of_any_size_come_back(sizes: list[int]) -> None:
    bodies = [bytes([number + 1]) * size for number, size in enumerate(sizes)] or [b""]
    wires = [Wire(UNARY, body, (("x-n", str(n)),)) for n, body in enumerate(bodies)]
    with grpcio(lambda data, context: data) as port:
        said = ask(port, wires, 2 * len(wires), connections=2)
    assert [each[2] for each in said] == bodies * 2
    assert {each[0] for each in said} == {""}


def test_metadata_versions_and_errors() -> None:
    seen: list[dict[str, str]] = []

    def answer(data: bytes, context: Any) -> bytes:
        seen.append(dict(context.invocation_metadata()))
        if data == b"busy":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        if data == b"trailer":
            context.set_trailing_metadata((("x-sluice-version", "12"),))
        if data == b"late":
            context.send_initial_metadata((("x-sluice-version", "11"),))
            context.abort(grpc.StatusCode.INTERNAL, "after all")
        return ANSWER

    bodies = (b"plain", b"busy", b"trailer", b"late")
    wires = [Wire(UNARY, body, (("x-sluice-key", body.decode()),)) for body in bodies]
    with grpcio(answer) as port:
        said = ask(port, wires, 12, one_by_one=True)
    assert said[:4] == said[4:8] == said[8:]
    assert said[:4] == [
        ("", "7", ANSWER),
        ("RESOURCE_EXHAUSTED", "", b"the queue is full"),
        ("", "12", ANSWER),
        ("INTERNAL", "11", b"after all"),
    ]
    assert [each["x-sluice-key"] for each in seen[:4]] == [body.decode() for body in bodies]
    assert seen[0]["user-agent"] == "sluice-bench"


def test_headers_larger_than_the_servers_table() -> None:
    keys: list[str] = []

    def answer(data: bytes, context: Any) -> bytes:
        keys.append(dict(context.invocation_metadata())["authorization"])
        return ANSWER

    wire = Wire(UNARY, b"x", (("authorization", "t" * 6000),))
    with grpcio(answer) as port:
        assert ask(port, [wire], 3) == [("", "7", ANSWER)] * 3
    assert keys == ["t" * 6000] * 3


def test_a_cancelled_call_leaves_the_others_alone() -> None:
    gate = threading.Event()

    def answer(data: bytes, context: Any) -> bytes:
        if data == b"slow":
            context.add_callback(gate.set)
            assert gate.wait(20)
        return ANSWER

    wires = [Wire(UNARY, b"slow"), *[Wire(UNARY, b"fast")] * 5]
    with grpcio(answer) as port:
        assert ask(port, wires, 6, cancel=1) == [("", "7", ANSWER)] * 5


# --- frames by hand


class Http2:
    """A server of frames: `answer` gets the connection and the number and body of a stream whose
    request is whole."""

    def __init__(
        self,
        answer: Callable[[Http2Side, int, bytes], None],
        values: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.answer = answer
        self.values = values
        self.connections = 0
        self.resets: list[int] = []
        self.pings: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await reader.readexactly(len(h2.PREFACE))
        side = Http2Side(writer, self.connections)
        writer.write(h2.settings(self.values))
        bodies: dict[int, bytes] = {}
        while True:
            high, low, kind, flags, stream = h2.unpack_head(await reader.readexactly(9))
            payload = await reader.readexactly(high << 8 | low)
            if kind == h2.HEADERS:
                side.decoder.decode(payload)
                bodies[stream] = b""
            elif kind == h2.DATA:
                bodies[stream] += payload
                if payload:
                    writer.write(h2.window_update(stream, len(payload)))
                    writer.write(h2.window_update(0, len(payload)))
                if flags & h2.END_STREAM:
                    self.answer(side, stream, bodies.pop(stream)[5:])
            elif kind == h2.RST_STREAM:
                self.resets.append(stream)
            elif kind == h2.PING and flags & h2.ACK:
                self.pings.append(payload)


class Http2Side:
    """One connection, from the server's side."""

    def __init__(self, writer: asyncio.StreamWriter, number: int) -> None:
        self.writer = writer
        self.number = number
        self.encoder, self.decoder = Encoder(), Decoder()

    def good(self, stream: int, *, version: str = "3") -> bytes:
        """A whole answer, with names in the table that change with every answer."""
        first = self.encoder.encode([(":status", "200"), ("x-at", f"{stream}")])
        last = self.encoder.encode([("grpc-status", "0"), ("x-sluice-version", version)])
        message = b"\0" + len(ANSWER).to_bytes(4, "big") + ANSWER
        return (
            h2.frame(h2.HEADERS, h2.END_HEADERS, stream, first)
            + h2.frame(h2.DATA, 0, stream, message)
            + h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, stream, last)
        )


GOOD = ("", "3", ANSWER)
WIRE = Wire(UNARY, b"x" * 100)


def served(server: Handler, count: int = 3, **more: Any) -> Said:
    with serving(server) as port:
        return ask(port, [WIRE], count, **more)


@given(st.lists(st.integers(1, 60), max_size=10))
@settings(max_examples=15, deadline=None)
def test_frames_in_any_pieces(sizes: list[int]) -> None:
    """Continued and padded, with a ping amid, and cut anywhere."""

    def answer(side: Http2Side, stream: int, body: bytes) -> None:
        first = side.encoder.encode([(":status", "200"), ("x-long", "y" * 50)])
        last = side.encoder.encode([("grpc-status", "0"), ("x-sluice-version", "3")])
        message = b"\0" + len(ANSWER).to_bytes(4, "big") + ANSWER
        padded = b"\x05" + bytes(5) + first[:3] + bytes(5)
        every = (
            h2.frame(h2.HEADERS, h2.PADDED | h2.PRIORITY, stream, padded)
            + h2.frame(h2.CONTINUATION, 0, stream, first[3:20])
            + h2.frame(h2.CONTINUATION, h2.END_HEADERS, stream, first[20:])
            + h2.frame(h2.PING, 0, 0, b"12345678")
            + h2.frame(0x77, 0, 0, b"kinds that nobody knows are passed over")
            + h2.frame(h2.DATA, h2.PADDED, stream, b"\x04" + message[:6] + bytes(4))
            + h2.frame(h2.DATA, 0, stream, b"")
            + h2.frame(h2.DATA, 0, stream, message[6:])
            + h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, stream, last)
        )
        for size in sizes:
            side.writer.write(every[:size])
            every = every[size:]
        side.writer.write(every)

    server = Http2(answer)
    assert served(server) == [GOOD] * 3
    assert set(server.pings) <= {b"12345678"}


@given(st.integers(1, 3000), st.sampled_from([1, 7, 100]), st.booleans())
@settings(max_examples=15, deadline=None)
def test_small_windows_few_streams_and_no_table(window: int, most: int, table: bool) -> None:
    bodies: list[bytes] = []

    def answer(side: Http2Side, stream: int, body: bytes) -> None:
        bodies.append(body)
        side.writer.write(side.good(stream))

    values = (
        (h2.INITIAL_WINDOW, window), (h2.MAX_STREAMS, most), (h2.TABLE_SIZE, 4096 if table else 0),
    )  # fmt: skip
    assert served(Http2(answer, values), 20) == [GOOD] * 20
    assert bodies == [WIRE.body] * 20


def trailers(*headers: tuple[str, str]) -> Callable[[Http2Side, int, bytes], None]:
    def answer(side: Http2Side, stream: int, body: bytes) -> None:
        block = side.encoder.encode(list(headers))
        side.writer.write(h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, stream, block))

    return answer


def reset(code: int) -> Callable[[Http2Side, int, bytes], None]:
    return lambda side, stream, body: side.writer.write(
        h2.frame(h2.RST_STREAM, 0, stream, struct.pack(">I", code))
    )


def raw(data: bytes) -> Callable[[Http2Side, int, bytes], None]:
    return lambda side, stream, body: side.writer.write(data)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (trailers((":status", "200"), ("grpc-status", "8")), "RESOURCE_EXHAUSTED"),
        (trailers((":status", "200"), ("grpc-status", "99")), "UNKNOWN"),
        (trailers((":status", "200"), ("grpc-status", "0")), "protocol"),
        (trailers((":status", "502")), "502"),
        (trailers((":status", "200")), "UNKNOWN"),
        (reset(8), "CANCELLED"),
        (reset(2), "INTERNAL"),
        (reset(7), "UNAVAILABLE"),
        (raw(h2.frame(h2.PUSH_PROMISE, 0, 1, b"")), "protocol"),
        (raw(h2.frame(h2.CONTINUATION, 0, 1, b"")), "protocol"),
        (raw(h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\xff\xff")), "protocol"),
        (raw(h2.frame(h2.DATA, h2.PADDED, 1, b"\xff")), "protocol"),
        (raw(b"\xff\xff\xff\0\0\0\0\0\1"), "protocol"),
        (lambda side, stream, body: side.writer.transport.abort(), "connection"),
    ],
)
def test_answers_that_are_none(
    answer: Callable[[Http2Side, int, bytes], None], outcome: str
) -> None:
    assert [each[0] for each in served(Http2(answer), one_by_one=True)] == [outcome] * 3


def test_a_server_that_goes_away() -> None:
    """What it has not looked at is sent again, elsewhere; what it has is answered."""

    def answer(side: Http2Side, stream: int, body: bytes) -> None:
        if side.number == 1 and stream == 5:
            goaway = struct.pack(">II", 3, 0)
            side.writer.write(h2.frame(h2.GOAWAY, 0, 0, goaway) + side.good(1) + side.good(3))
        elif side.number > 1:
            side.writer.write(side.good(stream, version="4"))

    server = Http2(answer)
    said = served(server, 6)
    assert [each[1] for each in said] == ["3", "3", "4", "4", "4", "4"]
    assert {each[0] for each in said} == {""}
    assert server.connections == 2


def test_a_refused_stream_is_tried_once_more() -> None:
    def answer(side: Http2Side, stream: int, body: bytes) -> None:
        if stream == 1:
            reset(h2.REFUSED_STREAM)(side, stream, body)
        else:
            side.writer.write(side.good(stream))

    assert served(Http2(answer)) == [GOOD] * 3


def test_a_cancelled_stream_is_reset_and_its_late_answer_passed_over() -> None:
    held: list[tuple[Http2Side, int]] = []

    def answer(side: Http2Side, stream: int, body: bytes) -> None:
        held.append((side, stream))
        if len(held) == 3:
            side.writer.write(b"".join(side.good(each) for _, each in held))

    server = Http2(answer)
    assert served(server, cancel=1) == [GOOD] * 2
    assert server.resets == [1]


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", h2.frame(6, 0, 0)])
def test_what_is_no_http2_server(greeting: bytes) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)

    with pytest.raises(BenchError, match="nobody answers at 127"):
        served(other)


@given(st.binary(max_size=40))
def test_the_version_in_an_answer(junk: bytes) -> None:
    proto_version(junk)
    assert proto_version(ANSWER + junk) == "7"
    assert proto_version(ModelInferResponse(id="x" * 200).SerializeToString()) == ""


# --- streams


def test_requests_on_streams() -> None:
    """Each is answered by its final response; an error ends its request, not its stream."""

    def answers(requests: Any, context: Any) -> Any:
        for data in requests:
            request = ModelInferRequest.FromString(data)
            assert request.parameters["triton_enable_empty_final_response"].bool_param
            response = ModelStreamInferResponse()
            if request.id == "bad":
                yield ModelStreamInferResponse(error_message="not so").SerializeToString()
                continue
            if request.id == "end":
                context.abort(grpc.StatusCode.UNAVAILABLE, "drained")
            response.infer_response.model_version = "5"
            response.infer_response.outputs.add(name="y")
            if request.id == "many":
                response.infer_response.parameters["triton_final_response"].bool_param = False
                yield response.SerializeToString()
                yield response.SerializeToString()
                response.infer_response.ClearField("outputs")
                response.infer_response.parameters["triton_final_response"].bool_param = True
            yield response.SerializeToString()

    names = ("one", "many", "bad", "end", "one")
    wires = [Wire(STREAM, ModelInferRequest(id=name).SerializeToString()) for name in names]
    with grpcio(lambda data, context: data, answers) as port:
        alone = ask(port, wires, 10, protocol=Protocol.STREAM, one_by_one=True)
        together = ask(port, wires, 10, protocol=Protocol.STREAM, connections=2)
    expected = [("", "5"), ("", "5"), ("error", ""), ("UNAVAILABLE", ""), ("", "5")] * 2
    assert [each[:2] for each in alone] == expected
    assert [each[:2] for each in together] == expected
    assert alone[3][2] == b"drained" and alone[2][2] == b"not so"
