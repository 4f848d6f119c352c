"""The access log: sampled, one line a request, never in the way."""

from __future__ import annotations

import io
import json

from gateway.call import Call
from gateway.telemetry.access import QUEUE, AccessLog, line
from gateway.tensors import DATATYPES, InferenceRequest, Tensor


class _Call(Call):
    protocol = "http"


def call(model: str = "m", request_id: str = "") -> _Call:
    made = _Call(0.0)
    tensor = Tensor("x", DATATYPES["FP32"], (1,), b"\0\0\0\0")
    made.request = InferenceRequest(model, "", (tensor,), id=request_id)
    return made


def test_every_request_gets_one_json_line() -> None:
    stream = io.StringIO()
    access = AccessLog()
    access.start(1.0, stream)
    access.record(call(), "2", "ok", 0.0015)
    access.record(call("a\nb", "id\r\n{}"), "", "unknown_model", 0.0)
    access.stop()
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["model"], first["version"], first["code"], first["ms"]) == ("m", "2", "ok", 1.5)
    assert second["model"] == "a\nb"
    assert second["id"] == "id\r\n{}"


def test_a_share_of_requests() -> None:
    stream = io.StringIO()
    access = AccessLog()
    access.start(0.25, stream)
    for _ in range(4000):
        access.record(call(), "1", "ok", 0.0)
    access.stop()
    assert 700 < len(stream.getvalue().splitlines()) < 1300


def test_calls_that_are_part_of_another_have_no_line() -> None:
    stream = io.StringIO()
    access = AccessLog()
    access.start(1.0, stream)
    access.record(Call(0.0), "1", "ok", 0.0)
    access.stop()
    assert stream.getvalue() == ""


def test_a_writer_that_cannot_keep_up_costs_lines_not_memory() -> None:
    access = AccessLog()
    access.share = 1.0  # nobody writes
    for _ in range(QUEUE + 50):
        access.record(call(), "1", "ok", 0.0)
    assert access.dropped == 50


def test_a_call_that_could_not_be_decoded_has_a_line() -> None:
    stream = io.StringIO()
    access = AccessLog()
    access.start(1.0, stream)
    access.record(_Call(0.0), "", "invalid_request", 0.0)
    access.stop()
    assert json.loads(stream.getvalue())["code"] == "invalid_request"


def test_long_names_are_cut() -> None:
    entry = (0.0, "http", "m" * 10_000, "1", "i" * 10_000, "ok", 0.0, 1)
    assert len(line(entry)) < 1000
