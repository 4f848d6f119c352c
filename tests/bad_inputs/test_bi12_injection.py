"""BI-12: what is put into parameters, headers, logs and metrics."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.bad_inputs.attack import (
    ADD,
    MIB,
    Door,
    Served,
    call,
    good_message,
    http,
    infer_json,
    message,
    put_parameters,
    raw_input,
    refused,
    tensor,
)

FOUR = bytes(16)


@pytest.mark.parametrize("name", ["sequence_id", "sequence_start", "sequence_end"])
@pytest.mark.parametrize("value", [1, "abc", True])
def test_bi12a_sequences_are_refused_by_name(door: Door, name: str, value: Any) -> None:
    refused(door.infer([tensor()], parameters={name: value}), 501, f"'{name}'")


def test_bi12b_sequence_defaults_pass(door: Door) -> None:
    nothing = {"sequence_id": 0, "sequence_start": False, "sequence_end": False}
    assert door.infer([tensor()], parameters=nothing).ok


@pytest.mark.parametrize("name", ["timeout", "priority"])
@pytest.mark.parametrize(
    "value", [-1, -(2**63), 1.5, "x", "-1", "1.5", "", " 1", "9" * 30, True, "NaN", "+1"], ids=repr
)
def test_bi12c_timeout_and_priority_that_are_none(door: Door, name: str, value: Any) -> None:
    refused(door.infer([tensor()], model="ranked", parameters={name: value}), 400, f"'{name}'")


@pytest.mark.parametrize("value", [0, 2**31, 2**62, 2**63 - 1, "9" * 19])
@pytest.mark.parametrize("name", ["timeout", "priority"])
def test_bi12d_large_timeouts_and_priorities(door: Door, name: str, value: Any) -> None:
    """Whole numbers of any size mean something: wait for ever, or the last level."""
    for model in ("add", "ranked"):
        assert door.infer([tensor()], model=model, parameters={name: value}).ok


def test_bi12e_timeout_of_a_microsecond(door: Door) -> None:
    reply = door.infer([tensor([1.0, 0, 0, 0])], model="slow", parameters={"timeout": 1})
    refused(reply, 504)


@pytest.mark.parametrize(
    "value",
    ["", "abc", "-1", "0", "NaN", "inf", "-inf", "1e400", "1e12", "0x10", "1,1", "\xff", "1" * 400],
)
def test_bi12f_timeout_header_that_is_none(gateway: Served, value: str) -> None:
    body = json.dumps({"inputs": [tensor()]}).encode()
    headers = {"x-request-timeout-ms": value}
    refused(http(gateway, ADD, body, headers), 400, "x-request-timeout-ms")
    v1 = b'{"instances":[[1,2,3,4]]}'
    refused(http(gateway, "/v1/models/add:predict", v1, headers), 400, "x-request-timeout-ms")


def test_bi12g_timeout_header_twice(gateway: Served) -> None:
    body = json.dumps({"inputs": [tensor()]}).encode()
    twice = [("x-request-timeout-ms", "1000"), ("x-request-timeout-ms", "2000")]
    refused(http(gateway, ADD, body, twice), 400, "more than once")


@pytest.mark.parametrize(
    "name", ["shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"]
)
def test_bi12h_shared_memory_is_refused_by_name(door: Door, name: str) -> None:
    """BI-11 comes with shared memory itself; until then nothing of it is honoured."""
    if door.is_http:
        one = tensor(data=[0.0] * 4, parameters={name: "/etc/passwd"})
        refused(infer_json(door.served, {"inputs": [one]}), 501, name)
        body = {"inputs": [tensor()], "outputs": [{"name": "y", "parameters": {name: "x"}}]}
        refused(infer_json(door.served, body), 501, name)
        return
    for where in ("inputs", "outputs"):

        def change(made: Any, where: str = where) -> None:
            if where == "outputs":
                made.outputs.add(name="y")
            put_parameters(getattr(made, where)[0].parameters, {name: "x"})

        refused(call(door.served, message([raw_input(FOUR)], change=change)), 501, name)


def test_bi12i_a_hundred_thousand_parameters(door: Door) -> None:
    door.served.ask("reset")
    before = door.served.ask()["memory"]
    many = {f"p{n}": n for n in range(100_000)}
    refused(door.infer([tensor()], parameters=many), 400, "limits.max_")
    assert door.served.ask()["peak"] - before < 160 * MIB


def test_bi12j_a_hundred_thousand_parameters_of_a_tensor(door: Door) -> None:
    many = {f"p{n}": n for n in range(100_000)}
    if door.is_http:
        reply = infer_json(door.served, {"inputs": [tensor(data=[0.0] * 4, parameters=many)]})
    else:

        def change(made: Any) -> None:
            put_parameters(made.inputs[0].parameters, many)

        reply = call(door.served, message([raw_input(FOUR)], change=change))
    refused(reply, 400, "limits.max_parameters")


@pytest.mark.parametrize("value", [None, [], {}, [1], {"a": 1}], ids=repr)
def test_bi12k_parameters_that_are_no_values(gateway: Served, value: Any) -> None:
    body = {"inputs": [tensor()], "parameters": {"a": value}}
    refused(infer_json(gateway, body), 400, "string, number or boolean")


LINES = "x\r\n23:59:59 ERROR forged\n\u2028\x1b[31mred\x00\x7f\u202e"


def test_bi12l_line_breaks_do_not_reach_the_log(door: Door) -> None:
    """`unharmed` looks at every line of the log after each test; here are those that try."""
    refused(door.infer([tensor()], model=LINES), 404)
    refused(door.infer([tensor()], version=LINES), 404)
    refused(door.infer([tensor(name=LINES)]), 400)
    refused(door.infer([tensor()], outputs=[LINES]), 400)
    refused(door.infer([raw_input(FOUR, datatype=LINES)]), 400)
    refused(door.infer([tensor()], parameters={"timeout": LINES}), 400)
    assert door.infer([tensor()], parameters={LINES: LINES}).ok
    assert "forged" not in door.served.log()


@pytest.mark.parametrize("name", ["x-request-id", "x-sluice-key", "traceparent"])
@pytest.mark.parametrize("value", ["a" * 8000, "\xff\xfe", "a\tb", "'\"<script>"])
def test_bi12m_headers_that_come_back(gateway: Served, name: str, value: str) -> None:
    body = json.dumps({"inputs": [tensor()]}).encode()
    reply = http(gateway, ADD, body, {name: value})
    assert reply.ok
    if name == "x-request-id":
        assert reply.headers[name] == value
    assert set(reply.headers) <= {
        "content-type", "content-length", "x-request-id", "x-sluice-version", "x-sluice-route",
    }  # fmt: skip


def test_bi12n_ids_come_back_as_they_were(door: Door) -> None:
    odd = 'a"b\\c\u2028\x7f' + "d" * 10_000
    if door.is_http:
        reply = infer_json(door.served, {"id": odd, "inputs": [tensor()]})
        assert reply.json["id"] == odd
    else:
        from tests.bad_inputs.attack import response

        def change(made: Any) -> None:
            made.id = odd

        assert response(call(door.served, message([raw_input(FOUR)], change=change))).id == odd


def test_bi12o_unknown_names_leave_the_metrics_as_they_are(door: Door) -> None:
    """Ten thousand models that there are not, and as many versions and labels."""
    assert not door.infer([tensor()], model="nobody").ok  # the rows that may come, come now
    assert not door.infer([tensor()], version="nobody").ok
    before = len(http(door.served, "/metrics", method="GET").body)
    memory = door.served.ask("reset")["memory"]
    body = json.dumps({"inputs": [tensor()]}).encode()
    if door.is_http:
        from tests.bad_inputs.attack import Answers, connected, http_bytes

        with connected(door.served) as sock:
            answers = Answers(sock)
            for start in range(0, 10_000, 100):
                names = [f"/v2/models/m{n}/infer" for n in range(start, start + 50)]
                names += [f"/v2/models/add/versions/v{n}/infer" for n in range(start, start + 50)]
                sock.sendall(b"".join(http_bytes(name, body) for name in names))
                for _ in names:
                    reply = answers.next()
                    assert reply is not None and reply.status == 404
    else:
        from tests.bad_inputs.attack import SERVICE

        rpc = door.served.channel.unary_unary(SERVICE + "ModelInfer")
        for start in range(0, 2000, 100):
            sent = [
                rpc.future(good_message(f"m{n}"), timeout=30) for n in range(start, start + 100)
            ]
            assert all(future.exception() is not None for future in sent)
    after = http(door.served, "/metrics", method="GET").body
    assert abs(len(after) - before) < 500
    assert b"m1999" not in after
    assert door.served.ask()["peak"] - memory < 48 * MIB


@pytest.mark.parametrize(
    "value", ["Bearer x", "Basic x", "", "Bearer \xff", "Bearer " + "x" * 50_000]
)
def test_bi12p_admin_with_a_wrong_token(gateway: Served, value: str) -> None:
    for method, target in (("GET", "/admin/v1/status"), ("PUT", "/admin/v1/models/add/split")):
        reply = http(gateway, target, b"{}", {"authorization": value}, method=method)
        refused(reply, 403)
