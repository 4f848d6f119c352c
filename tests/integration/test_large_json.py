"""Large JSON bodies and answers through a real gateway: as small ones, and nobody else waits."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from gateway.codecs.oip_rest import RestCodec
from gateway.config import LimitsConfig
from gateway.errors import SluiceError
from tests.conformance.models import identity, save
from tests.support.gateway import PATIENCE, GatewayProcess, wait_until

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
PATH = "/v2/models/{}/infer"
IN_FLIGHT = re.compile(r"^sluice_in_flight_requests (\d+)", re.MULTILINE)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("large")
    for name in ("FP32", "BYTES"):
        save(folder / "models" / name, identity(name))
    with GatewayProcess(folder, [folder / "models"]) as running:
        yield running
    assert not children(running)


def children(gateway: GatewayProcess) -> list[int]:
    """The processes that read JSON for it."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == gateway.pid and b"gateway.apart" in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
            except OSError:
                pass
    return found


def post(
    gateway: GatewayProcess, path: str, body: bytes, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(gateway.http_address, timeout=PATIENCE)
    try:
        connection.request("POST", path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def numbers(rows: int) -> Any:
    return np.random.default_rng(rows).standard_normal((rows, 8)).astype(np.float32)


def oip(array: Any, kind: str = "FP32") -> bytes:
    spec = {"name": "x", "datatype": kind, "shape": list(np.shape(array)), "data": array}
    return orjson.dumps({"inputs": [spec]}, option=orjson.OPT_SERIALIZE_NUMPY)


def instances(array: Any) -> bytes:
    return orjson.dumps({"instances": array}, option=orjson.OPT_SERIALIZE_NUMPY)


V1 = "/v1/models/FP32:predict"
INVOCATIONS = "/models/FP32/invocations"
ALL = [(PATH.format("FP32"), oip), (V1, instances), (INVOCATIONS, instances)]


def in_flight(gateway: GatewayProcess) -> int:
    match = IN_FLIGHT.search(gateway.get("/metrics"))
    assert match is not None
    return int(match[1])


@contextmanager
def stopped(gateway: GatewayProcess, body: bytes) -> Iterator[list[int]]:
    """The processes that have read `body`, which cannot go on."""
    assert post(gateway, PATH.format("FP32"), body)[0] == 200
    pids = children(gateway)
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield pids
    finally:
        for pid in set(pids) & set(children(gateway)):
            os.kill(pid, signal.SIGCONT)


def test_numbers_come_back_over_every_protocol(gateway: GatewayProcess) -> None:
    array = numbers(5_000)
    status, answer = post(gateway, PATH.format("FP32"), oip(array))
    output = orjson.loads(answer)["outputs"][0]
    assert (status, output["shape"]) == (200, [5_000, 8])
    assert np.array_equal(np.array(output["data"], np.float32), array.ravel())
    status, answer = post(gateway, V1, instances(array))
    assert status == 200
    assert np.array_equal(np.array(orjson.loads(answer)["predictions"], np.float32), array)
    status, answer = post(gateway, INVOCATIONS, instances(array))
    assert status == 200
    assert np.array_equal(np.array(orjson.loads(answer)["predictions"]["y"], np.float32), array)
    rows = "\n".join(",".join(map(repr, row)) for row in array.tolist())
    text = f"{','.join('abcdefgh')}\n{rows}\n".encode()
    assert post(gateway, INVOCATIONS, text, {"content-type": "text/csv"}) == (200, answer)
    flat = orjson.dumps({"x": array, "id": "7"}, option=orjson.OPT_SERIALIZE_NUMPY)
    status, answer = post(gateway, "/v2/models/FP32/generate", flat)
    found = orjson.loads(answer)
    assert (status, found["id"]) == (200, "7")
    assert np.array_equal(np.array(found["y"], np.float32), array.ravel())


def test_strings_come_back(gateway: GatewayProcess) -> None:
    strings = [[f"{i} é", "x" * (i % 50)] for i in range(5_000)]
    status, answer = post(gateway, PATH.format("BYTES"), oip(strings, "BYTES"))
    assert status == 200
    assert orjson.loads(answer)["outputs"][0]["data"] == [each for row in strings for each in row]


@pytest.mark.parametrize(
    "body",
    [
        oip(numbers(5_000))[:-3],
        oip(numbers(5_000)).replace(b",", b",,", 1),
        oip(numbers(5_000)).replace(b"[5000,8]", b"[5000,9]"),
        oip(numbers(5_000)).replace(b"FP32", b"INT8"),
        oip([*range(40_000), True]),
        oip([*range(40_000), "a"]),
        b'{"a":1,' + oip(numbers(5_000))[1:],
        b"[" * 200_000,
    ],
    ids=["cut", "commas", "shape", "kind", "boolean", "string", "key", "deep"],
)
def test_refusals_are_those_of_the_codec(gateway: GatewayProcess, body: bytes) -> None:
    with pytest.raises(SluiceError) as refusal:
        RestCodec(LimitsConfig()).decode("FP32", "", body, None)
    status, answer = post(gateway, PATH.format("FP32"), body)
    assert (status, json.loads(answer)) == (400, {"error": str(refusal.value)})


@pytest.mark.parametrize(("path", "make"), ALL, ids=["infer", "v1", "invocations"])
def test_nobody_waits_and_a_deadline_ends_the_wait(
    gateway: GatewayProcess, path: str, make: Callable[[Any], bytes]
) -> None:
    body, small = make(numbers(5_000)), oip(numbers(1))
    with stopped(gateway, oip(numbers(5_000))), ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(post, gateway, path, body, {"x-request-timeout-ms": "700"})
        wait_until(lambda: in_flight(gateway) or waiting.done(), "the large request to be in")
        assert post(gateway, PATH.format("FP32"), small)[0] == 200
        status, answer = waiting.result()
        assert (status, b"deadline" in answer) == (504, True)


def test_a_process_that_is_killed_costs_nobody_an_answer(gateway: GatewayProcess) -> None:
    body = oip(numbers(5_000))
    with stopped(gateway, body) as pids, ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(post, gateway, PATH.format("FP32"), body)
        wait_until(lambda: in_flight(gateway), "the large request to be in")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert waiting.result()[0] == 200


@pytest.mark.parametrize(("path", "make"), ALL, ids=["infer", "v1", "invocations"])
def test_nobody_reads_on_for_a_client_that_is_gone(
    gateway: GatewayProcess, path: str, make: Callable[[Any], bytes]
) -> None:
    body = make(numbers(60_000))
    assert len(body) > 4 * 2**20
    with stopped(gateway, oip(numbers(60_000))) as pids:
        connection = http.client.HTTPConnection(gateway.http_address, timeout=PATIENCE)
        connection.request("POST", path, body)
        wait_until(lambda: in_flight(gateway), "the large request to be in")
        connection.close()
        wait_until(lambda: not in_flight(gateway), "the request to be given up")
        wait_until(lambda: set(pids) - set(children(gateway)), "its process to end")
    assert post(gateway, PATH.format("FP32"), oip(numbers(5_000)))[0] == 200


def test_draining_waits_for_a_body_that_is_being_read(gateway: GatewayProcess) -> None:
    """The last one: the gateway ends."""
    body = oip(numbers(5_000))
    with ThreadPoolExecutor(1) as thread, stopped(gateway, body) as pids:
        waiting = thread.submit(post, gateway, PATH.format("FP32"), body)
        wait_until(lambda: in_flight(gateway), "the large request to be in")
        gateway.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in gateway.log(), "the gateway to drain")
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert waiting.result()[0] == 200
