"""BI-13: models that fail, hang or lie; callers that leave; the end of the gateway."""

from __future__ import annotations

import json
import os
import signal
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from tests.bad_inputs.attack import (
    ADD,
    SERVICE,
    Answers,
    Door,
    Reply,
    Served,
    call,
    connected,
    http_bytes,
    message,
    raw_input,
    refused,
    response,
    tensor,
)
from tests.bad_inputs.served import NAN, POISON, SHORT
from tests.support.gateway import GatewayProcess


def moody(door: Door, value: float) -> Reply:
    return door.infer([raw_input(struct.pack("<4f", value, 0, 0, 0))], model="moody")


def first(reply: Reply, door: Door) -> Any:
    """The first value of the answer."""
    if door.is_http:
        return reply.json["outputs"][0]["data"][0]
    return struct.unpack("<f", response(reply).raw_output_contents[0][:4])[0]


def together(door: Door, values: list[float]) -> list[Reply]:
    with ThreadPoolExecutor(len(values)) as pool:
        return list(pool.map(lambda value: moody(door, value), values))


def test_bi13a_a_model_that_raises(door: Door) -> None:
    """Its own words come back, without our folders."""
    refused(moody(door, POISON), 500, "FileNotFoundError")


def test_bi13b_a_poisoned_member_harms_nobody_else(door: Door) -> None:
    values: list[float] = [*range(12), POISON]
    replies = together(door, values)
    refused(replies[-1], 500)
    for value, reply in zip(values[:-1], replies[:-1], strict=True):
        assert first(reply, door) == value + 1


def test_bi13c_too_few_rows_fail_loudly(door: Door) -> None:
    refused(moody(door, SHORT), 500, "for a batch of 1 rows")
    for reply in together(door, [1.0, 2.0, SHORT]):
        if not reply.ok:
            refused(reply, 500, "rows")
    assert first(moody(door, 1.0), door) == 2


def test_bi13d_nan_in_an_answer(door: Door) -> None:
    reply = moody(door, NAN)
    assert reply.ok
    value = first(reply, door)
    assert value is None if door.is_http else value != value


def test_bi13e_a_hanging_model_does_not_hold_up_others(door: Door) -> None:
    stuck = [raw_input(struct.pack("<4f", 1.0, 0, 0, 0))]
    with ThreadPoolExecutor(4) as pool:
        hanging = [pool.submit(door.infer, stuck, model="slow") for _ in range(2)]
        time.sleep(0.1)
        began = time.monotonic()
        for _ in range(20):
            assert door.infer([tensor()]).ok
        assert time.monotonic() - began < 0.9
        assert all(each.result().ok for each in hanging)


def test_bi13f_a_deadline_behind_a_hanging_model(door: Door) -> None:
    stuck = [raw_input(struct.pack("<4f", 0.6, 0, 0, 0))]
    executed = door.served.ask()["executions"]["slow"]
    with ThreadPoolExecutor(4) as pool:
        hanging = [pool.submit(door.infer, stuck, model="slow") for _ in range(2)]
        time.sleep(0.1)
        reply = door.infer(stuck, model="slow", parameters={"timeout": 100_000})
        assert reply.status in (
            429,
            504,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )
        assert all(each.result().ok for each in hanging)
    door.served.quiet()
    assert door.served.ask()["executions"]["slow"] - executed == 2


def test_bi13g_callers_that_leave_while_waiting(door: Door) -> None:
    """Their work is not done, and those who stay get theirs."""
    slow = struct.pack("<4f", 0.3, 0, 0, 0)
    executed = door.served.ask()["executions"]["slow"]
    payload = message([raw_input(slow)], model="slow")
    stays: list[Reply] = []
    if door.is_http:
        body = json.dumps({"inputs": [tensor([0.3, 0, 0, 0])]}).encode()
        socks = [connected(door.served) for _ in range(20)]
        opened = [each.__enter__() for each in socks]
        for sock in opened:
            sock.sendall(http_bytes("/v2/models/slow/infer", body))
        time.sleep(0.1)
        stay = threading.Thread(
            target=lambda: stays.append(door.infer([raw_input(slow)], model="slow"))
        )
        stay.start()
        for each in socks:
            each.__exit__(None, None, None)
    else:
        rpc = door.served.channel.unary_unary(SERVICE + "ModelInfer")
        futures = [rpc.future(payload, timeout=20) for _ in range(20)]
        time.sleep(0.1)
        stay = threading.Thread(target=lambda: stays.append(call(door.served, payload)))
        stay.start()
        for future in futures:
            future.cancel()
    stay.join()
    assert stays[0].ok
    door.served.quiet()
    assert door.served.ask()["executions"]["slow"] - executed <= 5


def test_bi13h_callers_that_leave_at_any_moment(door: Door) -> None:
    """Cancelled after 0 to 20 ms: before, in and behind the queue and the model."""
    payload = message([raw_input(struct.pack("<4f", 0.005, 0, 0, 0))], model="slow")
    for turn in range(40):
        if door.is_http:
            body = json.dumps({"inputs": [tensor([0.005, 0, 0, 0])]}).encode()
            with connected(door.served) as sock:
                sock.sendall(http_bytes("/v2/models/slow/infer", body))
                time.sleep(turn / 2000)
        else:
            future = door.served.channel.unary_unary(SERVICE + "ModelInfer").future(
                payload, timeout=20
            )
            time.sleep(turn / 2000)
            future.cancel()
    door.served.quiet()


def test_bi13i_deadlines_of_no_time_at_all(grpc_gateway: Served) -> None:
    payload = message([raw_input(struct.pack("<4f", 0.05, 0, 0, 0))], model="slow")
    for seconds in (1e-9, 1e-4, 0.001, 0.01, 0.03):
        reply = call(grpc_gateway, payload, timeout=seconds)
        assert reply.status in (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,  # known beforehand: it cannot be met
        ), reply


def test_bi13j_errors_of_members_that_left(door: Door) -> None:
    """A batch with a poisoned member and one whose caller is gone."""
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(moody, door, value) for value in (1.0, POISON, 2.0)]
        if door.is_http:
            body = json.dumps({"inputs": [tensor([POISON, 0, 0, 0])]}).encode()
            with connected(door.served) as sock:
                sock.sendall(http_bytes("/v2/models/moody/infer", body))
                time.sleep(0.02)
        else:
            payload = message([raw_input(struct.pack("<4f", POISON, 0, 0, 0))], model="moody")
            future = door.served.channel.unary_unary(SERVICE + "ModelInfer").future(payload)
            time.sleep(0.02)
            future.cancel()
        replies = [each.result() for each in others]
    assert [reply.ok for reply in replies] == [True, False, True]


@pytest.mark.parametrize("server", ["native", "grpcio"])
def test_bi13k_sigterm_under_load_loses_nothing(tmp_path: Path, server: str) -> None:
    """Whatever was taken in is answered: with its result, or plainly that we are closing."""
    served = Served(tmp_path, "leaving", **{"grpc.server": server, "drain.grace": 0.2})
    body = json.dumps({"inputs": [tensor([0.01, 0, 0, 0])]}).encode()
    slow = http_bytes("/v2/models/slow/infer", body)
    quick = http_bytes(ADD, body)
    payload = message([raw_input(struct.pack("<4f", 0.01, 0, 0, 0))], model="slow")
    lost: list[str] = []
    answered = [0, 0]

    def http_load(data: bytes) -> None:
        try:
            with connected(served) as sock:
                answers = Answers(sock)
                while True:
                    sock.sendall(data)
                    reply = answers.next()
                    if reply is None:
                        lost.append("closed, without having said so in the answer before")
                        return
                    answered[0] += 1
                    if reply.status not in (200, 503):
                        lost.append(repr(reply))
                    if reply.headers.get("connection") == "close":
                        return
        except OSError as error:
            lost.append(repr(error))

    def grpc_load() -> None:
        while True:
            reply = call(served, payload, timeout=10)
            answered[1] += 1
            if not reply.ok:
                if reply.status != grpc.StatusCode.UNAVAILABLE:
                    lost.append(repr(reply))
                return

    threads = [
        threading.Thread(target=http_load, args=(data,)) for data in [slow] * 6 + [quick] * 2
    ]
    threads += [threading.Thread(target=grpc_load) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    os.kill(served.process.pid, signal.SIGTERM)
    assert served.process.wait(15) == 0
    for thread in threads:
        thread.join()
    log = served.log()
    served.stop()
    assert not lost, lost[:5]
    assert min(answered) > 50
    assert "Traceback" not in log
    assert "did not end in time" not in log


FRAGILE = """
import ctypes

class Fragile:
    signature = {"inputs": {"x": ("FP32", [-1])}, "outputs": {"y": ("FP32", [-1])}}
    probed = False

    def infer(self, inputs):
        x = inputs["x"]
        if x[0] == 666:
            ctypes.string_at(0)
        return {"y": x + 1}
"""


def test_bi13l_a_crash_ends_its_own_process_and_one_batch(tmp_path: Path) -> None:
    for name, isolation in (("fragile", "process"), ("neighbour", "none")):
        version = tmp_path / "models" / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(FRAGILE)
        (version.parent / "model.yaml").write_text(f"isolation: {isolation}\n")
    gateway = GatewayProcess(tmp_path, [tmp_path / "models"])
    try:

        def ask(model: str, value: float) -> httpx.Response:
            tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [value]}
            body = {"inputs": [tensor]}
            return httpx.post(f"{gateway.http}/v2/models/{model}/infer", json=body, timeout=60)

        for _ in range(2):
            assert ask("fragile", 1).json()["outputs"][0]["data"] == [2]
            crashed = ask("fragile", 666)
            assert crashed.status_code == 500
            assert "died while it ran this" in crashed.json()["error"]
            assert ask("neighbour", 1).json()["outputs"][0]["data"] == [2]
        assert ask("fragile", 3).json()["outputs"][0]["data"] == [4]
    finally:
        code = gateway.stop()
    assert code == 0
    assert "SIGSEGV" in gateway.log()
