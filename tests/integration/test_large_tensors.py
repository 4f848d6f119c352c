"""Large tensors go in and out uncopied: whatever comes in between, each caller has its own."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from gateway.codecs.messages import METHODS, ModelInferRequest, ModelInferResponse
from gateway.servers import http_body
from tests.support.gateway import PATIENCE, GatewayProcess
from tests.support.onnx_models import write

NUMBERS = http_body.LARGE // 4 + 1024
"""In a row that is large."""
IN_FLIGHT = 24 << 20


def any_width() -> bytes:
    """``y = x + 1`` over rows of any width, each request by itself or with others."""
    f32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", f32, ["N", "M"])],
        [helper.make_tensor_value_info("y", f32, ["N", "M"])],
        [helper.make_tensor("one", f32, [1], [1.0])],
    )
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    pytest.importorskip("pygrpc_native")
    folder = tmp_path_factory.mktemp("large")
    write(folder / "models" / "wide" / "1", any_width())
    limits = {"limits.max_bytes_in_flight": IN_FLIGHT}
    running = GatewayProcess(folder, [folder / "models"], settings=limits)
    yield running
    running.stop()


def row(seed: int, numbers: int) -> Any:
    """Numbers that no other seed has."""
    return (np.arange(numbers, dtype=np.float32) % 1021 + seed * 1024)[np.newaxis]


def posted(x: Any, pad: int = 0) -> bytes:
    """The request, its JSON part `pad` bytes longer than it need be."""
    tensor = {
        "name": "x",
        "shape": list(x.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": x.nbytes},
    }
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    head = text.encode() + b" " * pad
    return (
        b"POST /v2/models/wide/infer HTTP/1.1\r\nhost: x\r\n"
        b"content-length: %d\r\ninference-header-content-length: %d\r\n\r\n"
        % (len(head) + x.nbytes, len(head))
    ) + head + x.tobytes()  # fmt: skip


def connected(gateway: GatewayProcess) -> socket.socket:
    host, port = gateway.http_address.rsplit(":", 1)
    link = socket.create_connection((host, int(port)), timeout=PATIENCE)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def answer(stream: Any) -> tuple[bytes, Any]:
    """Status line and, where it is one, the tensor of the next answer."""
    status = stream.readline()
    headers = {}
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    body = stream.read(int(headers[b"content-length"]))
    if b"inference-header-content-length" not in headers:
        return status, json.loads(body)
    at = int(headers[b"inference-header-content-length"])
    return status, np.frombuffer(body[at:], np.float32)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(
        st.sampled_from([1, NUMBERS - 2048, NUMBERS, 3 * NUMBERS + 1]), min_size=1, max_size=4
    ),
    pad=st.integers(0, 130),
    cuts=st.lists(st.floats(0, 1), max_size=5),
)
def test_bodies_in_any_pieces_and_pipelined(
    gateway: GatewayProcess, sizes: list[int], pad: int, cuts: list[float]
) -> None:
    """Where a body ends and the next request begins is found, however the bytes come."""
    rows = [row(seed, size) for seed, size in enumerate(sizes)]
    sent = b"".join(posted(x, pad) for x in rows)
    with connected(gateway) as link, link.makefile("rb") as stream:
        places = [0, *sorted(int(cut * len(sent)) for cut in cuts), len(sent)]

        def send() -> None:
            for start, stop in pairwise(places):
                link.sendall(sent[start:stop])

        sending = threading.Thread(target=send)
        sending.start()
        found = [answer(stream) for _ in rows]
        sending.join()
    for x, (status, y) in zip(rows, found, strict=True):
        assert status.startswith(b"HTTP/1.1 200"), y
        np.testing.assert_array_equal(y, x[0] + 1)


def test_a_mapped_room_and_errors_behind_it(gateway: GatewayProcess) -> None:
    """The connection is as good as new after a body that went past the parser."""
    large = row(1, http_body.MAPPED // 4 + 3)
    with connected(gateway) as link, link.makefile("rb") as stream:
        link.sendall(posted(large, 1))
        status, y = answer(stream)
        assert status.startswith(b"HTTP/1.1 200")
        np.testing.assert_array_equal(y, large[0] + 1)
        wrong = posted(row(1, NUMBERS)).replace(b'"FP32"', b'"FP99"')
        link.sendall(wrong)
        status, said = answer(stream)
        assert status.startswith(b"HTTP/1.1 400")
        assert "FP99" in said["error"]
        link.sendall(b"POST /v2/models/wide/infer HTTP/9.9\r\n\r\n")
        status, _ = answer(stream)
        assert status.startswith(b"HTTP/1.1 400")
        assert stream.read() == b""


def vanish(link: socket.socket) -> None:
    """Closes with a reset, so that nothing more is sent or taken."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()


def test_nobody_sees_anothers_memory(gateway: GatewayProcess) -> None:
    """Callers that vanish while they send or read, slow readers, and cancelled calls: what the
    others get is theirs."""
    method = METHODS["ModelInfer"]
    channel = grpc.insecure_channel(gateway.grpc, options=[("grpc.max_receive_message_length", -1)])
    infer = channel.unary_unary(
        method.path,
        request_serializer=ModelInferRequest.SerializeToString,
        response_deserializer=ModelInferResponse.FromString,
    )

    def over_grpc(seed: int) -> None:
        x = row(seed, NUMBERS + seed)
        request = ModelInferRequest(model_name="wide", raw_input_contents=[x.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=x.shape)
        gone = infer.future(request, timeout=PATIENCE)
        if seed % 3 == 0:
            gone.cancel()
        y = infer(request, timeout=PATIENCE).raw_output_contents[0]
        np.testing.assert_array_equal(np.frombuffer(y, np.float32), x[0] + 1)
        if seed % 3:
            y = gone.result().raw_output_contents[0]
            np.testing.assert_array_equal(np.frombuffer(y, np.float32), x[0] + 1)

    def over_http(seed: int) -> None:
        x = row(seed, NUMBERS + seed % 2)
        body = posted(x, seed)
        link = connected(gateway)
        link.sendall(body[: len(body) * (seed % 7 + 1) // 9])
        vanish(link)
        link = connected(gateway)
        link.sendall(body)
        link.recv(1000)
        vanish(link)
        with connected(gateway) as link, link.makefile("rb") as stream:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            # The answers wait in the gateway while the requests of others are read.
            link.sendall(body)
            over_grpc(seed)
            status, y = answer(stream)
        assert status.startswith(b"HTTP/1.1 200")
        np.testing.assert_array_equal(y, x[0] + 1)

    with contextlib.closing(channel), ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(over_http, seed) for seed in range(8)]:
            done.result(PATIENCE * 2)
    assert gateway.get("/v2/health/ready")["ready"]


def test_bytes_in_flight_are_bounded_on_the_way_past_the_parser(gateway: GatewayProcess) -> None:
    with connected(gateway) as link, link.makefile("rb") as stream:
        body = posted(row(1, IN_FLIGHT // 4 + 4096))
        with contextlib.suppress(ConnectionError):
            link.sendall(body)
        status, said = answer(stream)
        assert status.startswith(b"HTTP/1.1 429")
        assert "limits.max_bytes_in_flight" in said["error"]
    with connected(gateway) as link, link.makefile("rb") as stream:
        link.sendall(posted(row(2, IN_FLIGHT // 8)))
        assert answer(stream)[0].startswith(b"HTTP/1.1 200"), "nothing stays counted"
