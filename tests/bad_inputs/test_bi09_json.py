"""BI-09: JSON that is none, or costs more than it says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.bad_inputs.attack import LIMIT, MIB, Served, http, infer_json, refused, tensor

GOOD = json.dumps({"inputs": [tensor()]}).encode()
ONE = json.dumps(tensor())
V1 = "/v1/models/add:predict"


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b"[[", b'{"inputs":[{"data":['])
@pytest.mark.parametrize("depth", [100, 1000, 100_000])
def test_bi09a_nested_deeply(gateway: Served, opening: bytes, depth: int) -> None:
    refused(infer_json(gateway, opening * depth), 400)
    closing = {b"[": b"]", b"{": b"}"}
    marks = [
        closing[opening[i : i + 1]] for i in range(len(opening)) if opening[i : i + 1] in closing
    ]
    text = opening * depth + b"1" + b"".join(reversed(marks)) * depth
    refused(infer_json(gateway, text), 400)
    refused(http(gateway, V1, text), 400)


def test_bi09b_the_depth_limit_itself(gateway: Served) -> None:
    """limits.max_json_depth is 64 levels, and what is below passes."""
    for depth, says in ((60, "does not fit"), (62, "max_json_depth"), (70, "max_json_depth")):
        data = "[" * depth + "1" + "]" * depth
        body = f'{{"inputs":[{{"name":"x","shape":[1,4],"datatype":"FP32","data":{data}}}]}}'
        reply = infer_json(gateway, body.encode())
        refused(reply, 400)
        if says == "max_json_depth":
            assert says in reply.message, depth
        else:
            assert "max_json_depth" not in reply.message


@pytest.mark.parametrize("where", ["before", "inside", "behind"])
def test_bi09c_megabytes_of_white_space(gateway: Served, where: str) -> None:
    space = b" " * (LIMIT - len(GOOD) - 10)
    body = {"before": space + GOOD, "behind": GOOD + space, "inside": GOOD[:-1] + space + b"}"}[
        where
    ]
    gateway.ask("reset")
    before = gateway.ask()["memory"]
    assert infer_json(gateway, body).ok  # it is JSON, and below the limit
    assert gateway.ask()["peak"] - before < 6 * LIMIT
    refused(infer_json(gateway, space + b" " * len(GOOD)), 400, "not JSON")


def test_bi09d_one_long_string_with_a_colon(gateway: Served) -> None:
    """The look for keys given twice must not keep a place for every character."""
    gateway.ask("reset")
    before = gateway.ask()["memory"]
    for text in (
        "x" * (LIMIT - 1000) + ":",
        "\\n" * ((LIMIT - 1000) // 2) + ":",
        ":" * (LIMIT - 1000),
    ):
        body = f'{{"inputs":[{{"name":"x","shape":[1,4],"datatype":"BYTES","data":["{text}"]}}]}}'
        refused(infer_json(gateway, body.encode()), 400)
    assert gateway.ask()["peak"] - before < 8 * LIMIT


@pytest.mark.parametrize(
    "body",
    [
        f'{{"inputs":[{ONE}],"inputs":[{ONE}]}}',
        f'{{"inputs":[{ONE[:-1]},"name":"x"}}]}}',
        f'{{"inputs":[{ONE[:-1]},"data":[9,9,9,9]}}]}}',
        f'{{"inputs":[{ONE[:-1]},"da\\u0074a":[9,9,9,9]}}]}}',
        f'{{"inputs":[{ONE}],"parameters":{{"a":":::","a":2}}}}',
        f'{{"id":"a:b","id":"c","inputs":[{ONE}]}}',
        f'{{"inputs":[{ONE}],"outputs":[1,{{"name":"y","name":"y"}}]}}',
    ],
)
def test_bi09e_the_same_key_twice(gateway: Served, body: str) -> None:
    refused(infer_json(gateway, body.encode()), 400)


def test_bi09f_colons_in_strings_are_no_keys(gateway: Served) -> None:
    body = {"id": 'a":"b', "inputs": [tensor()], "parameters": {"a:b": '":\\":"', "c": ":"}}
    assert infer_json(gateway, body).ok


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"\xff","inputs":[]}', b'{"id":"\xc3\x28"}', b'{"id":"\xed\xa0\x80"}',
        b'{"id":"\xf0\x28\x8c\x28"}',
        b'{"id":"\xc0\xaf"}', GOOD.decode().encode("utf-16"), GOOD.decode().encode("utf-32"),
        b"\xff\xfe",
    ],
    ids=lambda b: repr(b[:12]),
)  # fmt: skip
def test_bi09g_bad_utf8(gateway: Served, body: bytes) -> None:
    refused(infer_json(gateway, body), 400, "not JSON")


def test_bi09h_byte_order_mark(gateway: Served) -> None:
    refused(infer_json(gateway, b"\xef\xbb\xbf" + GOOD), 400, "byte order mark")


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"null", b"true", b"1", b'"x"', b"[]", b"{", b"}", b"{}}", GOOD + b"x",
        GOOD + GOOD,
        GOOD[:-1], b"{'inputs': []}", b'{"inputs": [],}', b"// x\n" + GOOD, b'{"a":1,}', b"\0",
        GOOD + b"\0",
        b'{"id":"a\nb","inputs":[]}', b'{"id":"a\0b","inputs":[]}', b"\x1f\x8b\x08\x00",
        b"<xml/>", b"a=1&b=2",
    ],
    ids=lambda b: repr(b[:16]),
)  # fmt: skip
def test_bi09i_no_json_or_no_object(gateway: Served, body: bytes) -> None:
    refused(infer_json(gateway, body), 400)
    refused(http(gateway, V1, body), 400)


@pytest.mark.parametrize("key", ["id", "parameters"])
@pytest.mark.parametrize("value", [1, 1.5, True, [], ["a"], "x"], ids=repr)
def test_bi09j_wrong_types_of_the_other_keys(gateway: Served, key: str, value: Any) -> None:
    if key == "id" and isinstance(value, str):
        return
    refused(infer_json(gateway, {"inputs": [tensor()], key: value}), 400)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"instances": []}, {"instances": {}}, {"instances": 1}, {"instances": [[1]]},
        {"inputs": 1},
        {"instances": [[1, 2, 3, 4]], "inputs": [[1, 2, 3, 4]]}, {"instances": [[1, 2, 3, "4"]]},
        {"instances": [{"x": [1, 2, 3, 4]}, {}]}, {"instances": [{"z": [1]}]},
        {"inputs": {"z": [1]}},
        {"instances": [[1, 2, 3, 4], [1]]}, {"instances": [None]}, {"instances": [[1, 2, 3, 4]],
        "x": 1},
        {"instances": [[1, 2, 3, True]]}, {"instances": [[[[1, 2, 3, 4]]]]}, {"inputs": {"x": 1}},
    ],
    ids=repr,
)  # fmt: skip
def test_bi09k_v1_bodies(gateway: Served, body: Any) -> None:
    refused(http(gateway, V1, json.dumps(body).encode()), 400)


def test_bi09l_index_bodies(gateway: Served) -> None:
    for body in (b"[]", b"1", b"{", b'{"ready":1}', b'{"ready":"yes"}', b"\xff", b"[" * 100_000):
        refused(http(gateway, "/v2/repository/index", body), 400)


def test_bi09m_a_list_of_the_whole_limit_stays_bounded(gateway: Served) -> None:
    numbers = b"0," * ((LIMIT - 1000) // 2)
    body = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[' + numbers + b"0]}]}"
    gateway.ask("reset")
    before = gateway.ask()["memory"]
    refused(infer_json(gateway, body), 400, "does not fit")
    assert gateway.ask()["peak"] - before < 32 * LIMIT
    assert gateway.ask()["memory"] - before < 256 * MIB
