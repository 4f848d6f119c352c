"""The HTTP/1.1 client against servers that answer in all the ways there are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.bench.clients.base import Call
from loadtests.bench.clients.http1 import Http1Client
from loadtests.bench.plan import Protocol, Target
from loadtests.errors import BenchError
from loadtests.payloads.base import Wire
from loadtests.tests.bench_servers import BODY, GOOD, Handler, Http, http_request, serving

Said = list[tuple[str, str, bytes]]
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nx-sluice-version: 3\r\n\r\n"
CHUNKED += b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:])


def ask(
    handler: Handler, count: int, *, most: int = 1, wires: list[Wire] | None = None, cancel: int = 0
) -> Said:
    """What became of calls that were all sent at once."""
    wires = wires or [Wire("/v2/models/m/infer", b"{}")]

    async def asking(port: int) -> Said:
        said: Said = []
        over = asyncio.Event()

        def done(call: Call, outcome: str, version: str, body: bytes) -> None:
            said.append((outcome, version, body))
            if len(said) == count - cancel:
                over.set()

        target = Target("m", Protocol.JSON, http=f"http://127.0.0.1:{port}")
        client = Http1Client(target, wires, connections=1, most=most, done=done)
        await client.open()
        for number in range(count):
            call = Call(number, 0, 0)
            call.keep = True
            client.send(call)
            if number < cancel:
                call.ended = True
                client.cancel(call)
        async with asyncio.timeout(20):
            await over.wait()
        await client.close()
        return said

    with serving(handler) as port:
        return asyncio.run(asking(port))


@pytest.mark.parametrize(
    ("answer", "outcome", "version"),
    [
        (GOOD, "", "7"),
        (GOOD.replace(b"\r\n\r\n", b"\r\nX-Sluice-Version: 12\r\n\r\n", 1), "", "12"),
        (CHUNKED, "", "3"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD, "", "7"),
        (b"HTTP/1.1 200 OK\r\nx-a: until the end\r\n\r\n" + BODY, "", "7"),
        (GOOD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1), "", "7"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "", ""),
        (b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\nno", "429", ""),
        (b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n", "503", ""),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", "protocol", ""),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "protocol", ""),
        (b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "protocol", ""),
        (GOOD + b"more than was asked for", "protocol", ""),
        (b"", "connection", ""),
    ],
    ids=["plain", "header", "chunked", "continue", "to-the-end", "close", "empty", "429", "503",
         "upgrade", "not-http", "bad-length", "too-much", "reset"],
)  # fmt: skip
def test_every_kind_of_answer(answer: bytes, outcome: str, version: str) -> None:
    server = Http(lambda number: answer)
    said = ask(server, 3)
    assert [each[:2] for each in said] == [(outcome, version)] * 3
    if version:
        assert {each[2] for each in said} == {BODY}


def test_connections_are_kept_and_made_again() -> None:
    kept = Http()
    ask(kept, 20)
    assert kept.connections == 1
    reset = Http(lambda number: b"" if number % 5 == 0 else GOOD)
    said = ask(reset, 20)
    assert sorted(each[0] for each in said) == [""] * 16 + ["connection"] * 4
    assert reset.connections == 4  # the last one was not needed again


def test_a_call_that_is_taken_back_takes_its_connection_along() -> None:
    """Its answer may still come, and must not be taken for that of the next call."""
    server = Http(lambda number: GOOD)
    assert [each[0] for each in ask(server, 4, cancel=1)] == [""] * 3


def test_what_is_sent() -> None:
    large = bytes(200_000)
    wires = [
        Wire("/a", b"one", (("Content-Type", "text/x"),)),
        Wire("/b", large, (("x-sluice-key", "k"),)),
    ]
    server = Http()
    ask(server, 4, wires=wires)
    assert server.bodies == [b"one", large, b"one", large]
    assert server.heads[0].startswith(b"POST /a HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"\r\ncontent-type: text/x\r\n" in server.heads[0]
    assert b"\r\nx-sluice-key: k\r\n" in server.heads[1]


@given(st.lists(st.integers(1, 400), max_size=8), st.sampled_from([GOOD, CHUNKED]))
@settings(max_examples=15, deadline=None)
def test_an_answer_in_any_pieces(sizes: list[int], answer: bytes) -> None:
    async def pieces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            await http_request(reader)
            rest = answer
            for size in sizes:
                writer.write(rest[:size])
                await writer.drain()
                await asyncio.sleep(0)
                rest = rest[size:]
            writer.write(rest)
        await reader.read()

    assert {(each[0], each[2]) for each in ask(pieces, 3)} == {("", BODY)}


def refuse(change: Callable[[Target], Target], said: str, wire: Wire | None = None) -> None:
    target = change(Target("m", Protocol.JSON, http="http://127.0.0.1:1"))
    wires = [wire or Wire("/a", b"")]

    async def opening() -> None:
        client = Http1Client(target, wires, connections=2, most=2, done=lambda *_: None)
        await client.open()

    with pytest.raises(BenchError, match=said):
        asyncio.run(opening())


def test_addresses_that_cannot_be_used() -> None:
    def at(http: str, ca_file: str = "") -> Callable[[Target], Target]:
        return lambda target: Target("m", Protocol.JSON, http=http, ca_file=ca_file)

    refuse(at("http://127.0.0.1:1"), "nobody answers at 127.0.0.1:1")
    refuse(at("127.0.0.1:8080"), "write it as http://127.0.0.1:8080")
    refuse(at("http://[::1"), "write it as http://127.0.0.1:8080")
    refuse(at("http://a:99999"), "write it as http")
    refuse(at("https://127.0.0.1:1", "nothing.pem"), "'nothing.pem' cannot be read")
    refuse(at("http://127.0.0.1:1"), "line break", Wire("/a", b"", (("x", "a\r\nb: c"),)))
