"""BI-10, gRPC: messages too large, packed, broken frames, floods."""

from __future__ import annotations

import gzip
import struct
import threading
import time

import grpc
import pytest

from tests.bad_inputs.attack import (
    LIMIT,
    MIB,
    SERVICE,
    Reply,
    Served,
    call,
    good_message,
    message,
    raw_input,
    refused,
)
from tests.bad_inputs.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Http2,
    ended,
    frame,
    grpc_frame,
    head,
)


def sized(size: int) -> bytes:
    """A right message of about so many bytes of tensor."""
    rows = size // 16
    return message([raw_input(bytes(rows * 16), [rows, 4])])


def test_bi10ca_message_above_the_limit(grpc_gateway: Served) -> None:
    grpc_gateway.ask("reset")
    before = grpc_gateway.ask()["memory"]
    refused(call(grpc_gateway, sized(LIMIT + MIB)), 413)
    refused(call(grpc_gateway, sized(4 * LIMIT)), 413)
    assert call(grpc_gateway, sized(LIMIT - MIB)).ok
    # The native server has a message whole before it can be refused.
    assert grpc_gateway.ask()["peak"] - before < 16 * LIMIT


def test_bi10cb_other_calls_above_the_limit(grpc_gateway: Served) -> None:
    refused(call(grpc_gateway, bytes(LIMIT + MIB), "ModelMetadata"), 413)


def test_bi10cc_packed_message_that_grows_beyond_the_limit(grpc_gateway: Served) -> None:
    """64 MiB of zeros in 64 KiB. grpcio unpacks to its limit, the native server all of it."""
    grpc_gateway.ask("reset")
    before = grpc_gateway.ask()["memory"]
    reply = call(grpc_gateway, sized(8 * LIMIT), compression=grpc.Compression.Gzip)
    refused(reply, 413)
    assert grpc_gateway.ask()["peak"] - before < 4 * 8 * LIMIT
    grpc_gateway.quiet()


@pytest.mark.parametrize("encoding", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_bi10cd_packed_messages(grpc_gateway: Served, encoding: grpc.Compression) -> None:
    reply = call(grpc_gateway, good_message() + bytes(0), compression=encoding)
    assert reply.ok or reply.status == grpc.StatusCode.UNIMPLEMENTED
    if encoding == grpc.Compression.Gzip:
        assert reply.ok


def ask(grpc_gateway: Served, block: bytes, data: bytes, seconds: float = 5) -> bytes:
    """One call by hand; what came back, which names a status or ends the stream."""
    with Http2(grpc_gateway) as connection:
        connection.send(frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, data))
        return connection.read(seconds)


def packed(message: bytes) -> bytes:
    """Without the time, which would be in the test's name."""
    return gzip.compress(message, mtime=0)


@pytest.mark.parametrize(
    ("encoding", "flag", "body"),
    [
        (b"gzip", 1, packed(good_message())[:-6]), (b"gzip", 1, b"\x1f\x8b"),
        (b"gzip", 1, b"nonsense"), (b"br", 1, b"x"),
        (b"gzip, gzip", 1, packed(packed(good_message()))),
        (b"identity", 1, good_message()), (b"", 1, good_message()), (b"\xff", 1, b"x"),
        (b"gzip", 7, b"x"),
    ],
)  # fmt: skip
def test_bi10ce_packed_and_broken(
    grpc_gateway: Served, encoding: bytes, flag: int, body: bytes
) -> None:
    got = ask(
        grpc_gateway, head("ModelInfer", (b"grpc-encoding", encoding)), grpc_frame(body, flag)
    )
    assert ended(got)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0", b"\0\0\0\0", b"\0\xff\xff\xff\xff", b"\0\0\0\1\0abc",
        grpc_frame(good_message()) * 2,
        grpc_frame(good_message())[:-1], b"\0\x7f\xff\xff\xff" + bytes(1000),
    ],
    ids=lambda d: repr(d[:12]),
)  # fmt: skip
def test_bi10cf_framing_of_messages(grpc_gateway: Served, data: bytes) -> None:
    """The native server ends such a call. grpcio leaves one without a whole message open, at no
    cost to others, until its connection goes."""
    native = grpc_gateway.ask()["grpc_server"] == "native"
    got = ask(grpc_gateway, head(), data, 5 if native else 0.3)
    assert ended(got) or not native


def test_bi10cg_giant_metadata(grpc_gateway: Served) -> None:
    big = [("x-large", "x" * 100_000)]
    reply = call(grpc_gateway, good_message(), metadata=big)
    assert not reply.ok
    many = [(f"x-{n}", "1" * 100) for n in range(2000)]
    assert not call(grpc_gateway, good_message(), metadata=many).ok


def under_fire(grpc_gateway: Served, attack: bytes, times: int) -> None:
    """Others are answered while it goes on, and the memory stays."""
    grpc_gateway.ask("reset")
    before = grpc_gateway.ask()["memory"]
    slowest: list[float] = []
    failed: list[Reply] = []
    over = threading.Event()

    def others() -> None:
        while not over.is_set():
            began = time.monotonic()
            reply = call(grpc_gateway, good_message(), timeout=20)
            if not reply.ok:
                failed.append(reply)
            slowest.append(time.monotonic() - began)
            time.sleep(0.01)

    watcher = threading.Thread(target=others)
    watcher.start()
    try:
        with Http2(grpc_gateway) as connection:
            connection.flood(attack, times)
    finally:
        over.set()
        watcher.join()
    assert not failed, (len(slowest), failed[:3])
    assert max(slowest) < 10
    assert grpc_gateway.ask()["peak"] - before < 128 * MIB


def streams(count: int, *frames: tuple[int, int, bytes]) -> bytes:
    """The same frames on `count` new streams."""
    return b"".join(
        b"".join(frame(kind, flags, 2 * n + 1, payload) for kind, flags, payload in frames)
        for n in range(count)
    )


def test_bi10ch_rapid_reset(grpc_gateway: Served) -> None:
    """CVE-2023-44487: calls begun and reset at once."""
    body = grpc_frame(good_message())
    attack = streams(
        5000,
        (HEADERS, END_HEADERS, head()),
        (DATA, END_STREAM, body),
        (RST_STREAM, 0, struct.pack(">I", 8)),
    )
    under_fire(grpc_gateway, attack, 1)


def test_bi10ci_rapid_reset_of_slow_calls(grpc_gateway: Served) -> None:
    body = grpc_frame(message([raw_input(struct.pack("<4f", 0.05, 0, 0, 0))], model="slow"))
    attack = streams(
        1000,
        (HEADERS, END_HEADERS, head()),
        (DATA, END_STREAM, body),
        (RST_STREAM, 0, struct.pack(">I", 8)),
    )
    before = grpc_gateway.ask()["executions"]["slow"]
    under_fire(grpc_gateway, attack, 1)
    grpc_gateway.quiet()
    assert grpc_gateway.ask()["executions"]["slow"] - before < 300


def test_bi10cj_ping_flood(grpc_gateway: Served) -> None:
    under_fire(grpc_gateway, frame(PING, 0, 0, bytes(8)) * 1000, 50)


def test_bi10ck_settings_flood(grpc_gateway: Served) -> None:
    under_fire(grpc_gateway, frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535)) * 1000, 50)


def test_bi10cl_window_update_and_empty_frames_flood(grpc_gateway: Served) -> None:
    attack = frame(HEADERS, END_HEADERS, 1, head()) + frame(DATA, 0, 1) * 50_000
    under_fire(grpc_gateway, attack, 1)
    under_fire(grpc_gateway, frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)) * 1000, 20)


def test_bi10cm_endless_continuation(grpc_gateway: Served) -> None:
    """CVE-2024-27316 and its like: a header block that never ends."""
    start = frame(HEADERS, 0, 1, head())
    under_fire(
        grpc_gateway,
        start + frame(CONTINUATION, 0, 1, b"\0\1a" + b"\x7f\x80\x7e" + b"x" * 16000) * 2000,
        1,
    )


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(508),
        bytes(1000), b"\xff" * 1000, PREFACE + b"\xff" * 100,
        PREFACE + frame(SETTINGS, 0, 0) + frame(DATA, 0, 99, b"x"),
        PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff"),
        PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 2, head()),
        PREFACE + frame(SETTINGS, 0, 3) + frame(PING, 0, 0, b"x"),
        PREFACE + frame(SETTINGS, 0, 0) + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I",
        2**31 - 1)) * 2,
        PREFACE + frame(SETTINGS, 0, 0) + b"\xff\xff\xff" + bytes(6),
    ],
    ids=lambda d: repr(d[:12]) + str(len(d)),
)  # fmt: skip
def test_bi10cn_other_protocols_and_broken_frames(grpc_gateway: Served, data: bytes) -> None:
    with Http2(grpc_gateway, greet=False) as connection:
        connection.send(data)
        connection.read(0.3)


@pytest.mark.parametrize("stage", range(6))
def test_bi10co_closed_early_at_every_stage(grpc_gateway: Served, stage: int) -> None:
    body = grpc_frame(message([raw_input(struct.pack("<4f", 0.1, 0, 0, 0))], model="slow"))
    parts = [
        b"", frame(HEADERS, 0, 1, head()[:20]), frame(HEADERS, END_HEADERS, 1, head()),
        frame(DATA, 0, 1, body[:3]), frame(DATA, 0, 1, body[3:20]), frame(DATA, END_STREAM, 1,
        body[20:]),
    ]  # fmt: skip
    if stage != 1:
        parts[1] = b""
    for _ in range(3):
        with Http2(grpc_gateway) as connection:
            connection.send(b"".join(parts[: stage + 1]))


def test_bi10cp_answers_that_nobody_reads(grpc_gateway: Served) -> None:
    """Flow control holds the answers back; they are dropped with the connection."""
    from gateway.codecs.messages import ModelInferRequest

    request = ModelInferRequest(model_name="grow")
    request.inputs.add(name="x", datatype="INT32", shape=[1])
    request.raw_input_contents.append(struct.pack("<i", 8))
    body = grpc_frame(request.SerializeToString())
    grpc_gateway.ask("reset")
    before = grpc_gateway.ask()["memory"]
    with Http2(grpc_gateway) as connection:
        connection.send(streams(8, (HEADERS, END_HEADERS, head()), (DATA, END_STREAM, body)))
        time.sleep(0.5)
        assert call(grpc_gateway, good_message()).ok
    time.sleep(0.3)
    assert grpc_gateway.ask()["peak"] - before < 256 * MIB


def test_bi10cq_deadlines_that_are_none(grpc_gateway: Served) -> None:
    for value in (
        b"",
        b"abc",
        b"-1S",
        b"99999999H",
        b"1",
        b"1X",
        b"999999999S",
        b"\xff",
        b"0n",
        b"00000000S",
    ):
        got = ask(
            grpc_gateway, head("ModelInfer", (b"grpc-timeout", value)), grpc_frame(good_message())
        )
        assert ended(got), value


def test_bi10cr_stream_that_is_never_ended(grpc_gateway: Served) -> None:
    stream = grpc_gateway.channel.stream_stream(SERVICE + "ModelStreamInfer")
    slow = message([raw_input(struct.pack("<4f", 0.05, 0, 0, 0))], model="slow")
    running = stream(iter([slow] * 200), timeout=20)
    next(running)
    running.cancel()
    state = grpc_gateway.quiet()
    assert state["waiting"] == 0
