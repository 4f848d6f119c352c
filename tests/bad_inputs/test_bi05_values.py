"""BI-05: element data that is none."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from gateway.tensors import DATATYPES
from tests.bad_inputs.attack import (
    MIB,
    Door,
    Served,
    http,
    infer_json,
    raw_input,
    refused,
    response,
    tensor,
)


def element(data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<I", len(data) if length is None else length) + data


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\1", b"\1\0\0", element(b"ab"), element(b"ab") + b"\2\0\0\0a", element(b"a",
        9) + b"b",
        element(b"a") + element(b"", 2**32 - 1), element(b"a", 2**31) + element(b"b"),
    ],
    ids=repr,
)  # fmt: skip
def test_bi05a_bytes_truncated(door: Door, data: bytes) -> None:
    refused(door.infer([raw_input(data or b"\0", [1, 2], "BYTES")], model="echo_bytes"), 400)


@pytest.mark.parametrize("extra", [b"\0", b"abc", element(b""), element(b"c") * 1000])
def test_bi05b_bytes_too_long_or_too_many(door: Door, extra: bytes) -> None:
    data = element(b"a") + element(b"b") + extra
    refused(door.infer([raw_input(data, [1, 2], "BYTES")], model="echo_bytes"), 400)


def test_bi05c_bytes_shape_larger_than_any_data(door: Door) -> None:
    door.served.ask("reset")
    before = door.served.ask()["memory"]
    one = raw_input(element(b"a"), [2**31 - 1, 2], "BYTES")
    refused(door.infer([one], model="echo_bytes"), 400, "cannot hold")
    assert door.served.ask()["peak"] - before < 32 * MIB


def test_bi05d_a_million_empty_elements_stay_bounded(door: Door) -> None:
    door.served.ask("reset")
    before = door.served.ask()["memory"]
    one = raw_input(bytes(4 * 1_000_001), [500_000, 2], "BYTES")
    refused(door.infer([one], model="echo_bytes"), 400)
    assert door.served.ask()["peak"] - before < 96 * MIB


@pytest.mark.parametrize(
    "word",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "nan",
        "inf",
        "1e999",
        "-1e999",
        "0x1",
        "+1",
        "01",
        ".5",
        "1.",
        "1_0",
    ],
)
def test_bi05e_json_has_no_such_number(gateway: Served, word: str) -> None:
    body = f'{{"inputs":[{{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,2,3,{word}]}}]}}'
    refused(infer_json(gateway, body.encode()), 400)


INTEGERS = [name for name, kind in DATATYPES.items() if kind.kind == "int"]


@pytest.mark.parametrize("name", INTEGERS)
def test_bi05f_integers_out_of_range(door: Door, name: str) -> None:
    bits = DATATYPES[name].itemsize * 8
    low, high = (0, 2**bits - 1) if name[0] == "U" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    model = f"echo_{name.lower()}"
    assert door.infer([tensor([low, high], [1, 2], name)], model=model).ok
    for value in (low - 1, high + 1):
        if not door.is_http and bits >= 32:
            continue  # protobuf itself cannot say it
        if not door.is_http and name[0] == "U" and value < 0:
            continue
        refused(door.infer([tensor([1, value], [1, 2], name)], model=model), 400)
    if door.is_http:
        for value in (300 if name == "UINT8" else 2**70, -(2**70), 1.5, 1e30):
            refused(door.infer([tensor([1, value], [1, 2], name)], model=model), 400)


@pytest.mark.parametrize(
    ("name", "value"),
    [("FP16", 65520), ("FP16", -1e6), ("BF16", 3.4e38 * 1.01), ("FP32", 1e39), ("FP32", -1e300),
     ("FP16", 10**18), ("FP32", 1e308)],
)  # fmt: skip
def test_bi05g_floats_that_overflow(gateway: Served, name: str, value: float) -> None:
    for data in ([1, value], [[1, value]]):
        one = tensor(data, [1, 2], name)
        refused(infer_json(gateway, {"inputs": [one]}, f"echo_{name.lower()}"), 400, "cannot hold")


@pytest.mark.parametrize("name", list(DATATYPES))
@pytest.mark.parametrize("value", ["1", None, {}, [], True, [1], 1, 1.5], ids=repr)
def test_bi05h_wrong_json_types(gateway: Served, name: str, value: Any) -> None:
    kind = DATATYPES[name].kind
    right = {"bool": True, "bytes": "a"}.get(kind, 1)
    fits = {"bool": (bool,), "bytes": (str,), "int": (int,), "float": (int, float)}[kind]
    if type(value) in fits:
        return
    for data in ([right, value], [value, right], [[right, value]]):
        one = tensor(data, [1, 2], name)
        refused(infer_json(gateway, {"inputs": [one]}, f"echo_{name.lower()}"), 400)


@pytest.mark.parametrize(
    "data",
    [
        [[1, 2], [3]], [[1, 2, 3, 4], 5], [1, [2, 3, 4]], [[[1, 2], [3, 4]]], [[1], [2], [3], [4]],
        [[1, 2], [3, 4]], [[[[1, 2, 3, 4]]]], [[]], [[[]]], [], {}, "1234", 4, None, [[1, 2, 3,
        4], []],
    ],
    ids=repr,
)  # fmt: skip
def test_bi05i_ragged_or_wrongly_nested(gateway: Served, data: Any) -> None:
    one = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": data}
    refused(infer_json(gateway, {"inputs": [one]}), 400)
    strings = {**one, "shape": [1, 2], "datatype": "BYTES"}
    if isinstance(data, list):
        refused(infer_json(gateway, {"inputs": [strings]}, "echo_bytes"), 400)


@pytest.mark.parametrize("name", ["FP64", "INT32", "BYTES", "BOOL"])
def test_bi05j_wrong_datatype_for_the_model(door: Door, name: str) -> None:
    value: Any = {"BYTES": "a", "BOOL": True, "FP64": 1.0}.get(name, 1)
    refused(door.infer([tensor([value] * 4, [1, 4], name)]), 400, "is FP32")


@pytest.mark.parametrize(
    "name", ["", "fp32", "FLOAT", "TYPE_FP32", "FP8", "STRING", "\0", "x" * 10_000]
)
def test_bi05k_unknown_datatype(door: Door, name: str) -> None:
    refused(door.infer([raw_input(b"\0" * 16, datatype=name)]), 400, "unknown datatype")


@pytest.mark.parametrize("kind", [None, 1, [], {}, True], ids=repr)
def test_bi05l_datatype_that_is_no_string(gateway: Served, kind: Any) -> None:
    refused(infer_json(gateway, {"inputs": [tensor(datatype=kind)]}), 400, "datatype")


def test_bi05m_bytes_that_are_not_utf8_have_no_json(gateway: Served) -> None:
    import json

    head = {"inputs": [tensor(shape=[1, 2], datatype="BYTES", parameters={"binary_data_size": 10})]}
    text = json.dumps(head).encode()
    body = text + element(b"\xff") + element(b"\xfe")
    headers = {"inference-header-content-length": str(len(text))}
    reply = http(gateway, "/v2/models/echo_bytes/infer", body, headers)
    refused(reply, 501, "binary_data")


def test_bi05n_nan_in_binary_data_passes_and_is_null_in_json(door: Door) -> None:
    nan = struct.pack("<4f", float("nan"), float("inf"), -float("inf"), 1)
    reply = door.infer([raw_input(nan)])
    if door.is_http:
        assert reply.json["outputs"][0]["data"] == [None, None, None, 2]
    else:
        assert response(reply).raw_output_contents[0][8:12] == nan[8:12]


@pytest.mark.parametrize("text", ['"\\ud800"', '"\\udc00x"', '"\xff"'], ids=repr)
def test_bi05o_broken_surrogates(gateway: Served, text: str) -> None:
    body = f'{{"inputs":[{{"name":"x","shape":[1,2],"datatype":"BYTES","data":["a",{text}]}}]}}'
    refused(infer_json(gateway, body.encode("latin-1"), "echo_bytes"), 400)


def test_bi05p_bool_bytes_other_than_0_and_1(door: Door) -> None:
    """Any byte but 0 is true for numpy; the answer must be made of 0 and 1 or be refused."""
    reply = door.infer([raw_input(b"\x02\xff", [1, 2], "BOOL")], model="echo_bool")
    refused(reply, 400, "BOOL")
