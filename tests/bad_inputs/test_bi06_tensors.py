"""BI-06: tensors that are there twice, not there, or not known."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bad_inputs.attack import (
    Door,
    Served,
    call,
    infer_json,
    message,
    raw_input,
    refused,
    tensor,
)


def test_bi06a_given_twice(door: Door) -> None:
    refused(door.infer([tensor(), tensor()]), 400, "given twice")


def test_bi06b_unknown(door: Door) -> None:
    refused(door.infer([tensor(name="z")]), 400, "has no input 'z'")
    refused(door.infer([tensor(), tensor(name="z")]), 400, "has no input 'z'")


def test_bi06c_missing(door: Door) -> None:
    refused(door.infer([]), 400, "no inputs")
    a = tensor([0.0, 0.0], [1, 2], name="a")
    refused(door.infer([a], model="pair"), 400, "'b' is missing")


def test_bi06d_unknown_output(door: Door) -> None:
    refused(door.infer([tensor()], outputs=["nothing"]), 400, "has no output 'nothing'")
    refused(door.infer([tensor()], outputs=["y", ""]), 400)


def test_bi06e_output_asked_for_twice_comes_once(door: Door) -> None:
    reply = door.infer([tensor()], outputs=["y", "y"])
    assert reply.ok


def test_bi06f_data_and_binary_both(gateway: Served) -> None:
    one = tensor(parameters={"binary_data_size": 16}, data=[0, 0, 0, 0])
    refused(infer_json(gateway, {"inputs": [one]}), 400, "both")


def test_bi06g_neither_data_nor_binary(gateway: Served) -> None:
    one = tensor()
    del one["data"]
    refused(infer_json(gateway, {"inputs": [one]}), 400, "neither")


def test_bi06h_more_tensors_than_the_limit(door: Door) -> None:
    refused(door.infer([tensor()] * 1025), 400, "limits.max_tensors")
    refused(
        door.infer([tensor()], outputs=[f"y{n}" for n in range(1025)]), 400, "limits.max_tensors"
    )


@pytest.mark.parametrize("inputs", [None, {}, "x", 1, [1], ["x"], [None], [[]], True], ids=repr)
@pytest.mark.parametrize("key", ["inputs", "outputs"])
def test_bi06i_lists_that_are_none(gateway: Served, key: str, inputs: Any) -> None:
    body = {"inputs": [tensor()], key: inputs}
    reply = infer_json(gateway, body)
    if key == "outputs" and inputs is None:
        assert reply.ok  # as if it were not there
    else:
        refused(reply, 400)


@pytest.mark.parametrize("name", [None, 1, "", [], {}, True], ids=repr)
def test_bi06j_names_that_are_none(gateway: Served, name: Any) -> None:
    refused(infer_json(gateway, {"inputs": [tensor(name=name)]}), 400, "name")
    body = {"inputs": [tensor()], "outputs": [{"name": name}]}
    refused(infer_json(gateway, body), 400, "name")


def test_bi06k_empty_tensor_name(grpc_gateway: Served) -> None:
    refused(call(grpc_gateway, message([raw_input(b"\0" * 16, name="")])), 400, "has no input ''")


@pytest.mark.parametrize("key", ["extra", "Inputs", "", "__proto__", "x\ny", "k" * 100_000])
def test_bi06l_unknown_keys(gateway: Served, key: str) -> None:
    refused(infer_json(gateway, {"inputs": [tensor()], key: 1}), 400, "unknown key")
    refused(infer_json(gateway, {"inputs": [{**tensor(), key: 1}]}), 400, "unknown key")
