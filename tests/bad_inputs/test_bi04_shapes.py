"""BI-04: shapes that are none, or not those of the data."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.bad_inputs.attack import (
    Door,
    Served,
    infer_json,
    raw_input,
    refused,
    response,
    tensor,
)

FOUR = struct.pack("<4f", 1, 2, 3, 4)


@pytest.mark.parametrize("shape", [[-1, 4], [1, -4], [-(2**31), 4], [-(2**63), 4], [-1]], ids=str)
@pytest.mark.parametrize("form", ["data", "raw"])
def test_bi04a_negative(door: Door, shape: list[int], form: str) -> None:
    one = tensor(shape=shape) if form == "data" else raw_input(FOUR, shape)
    refused(door.infer([one]), 400, "is not between 0 and")


def test_bi04b_no_rows(door: Door) -> None:
    refused(door.infer([tensor([], shape=[0, 4])]), 400, "0 rows")


@pytest.mark.parametrize("rows", [2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1])
@pytest.mark.parametrize("form", ["data", "raw"])
def test_bi04c_rows_that_are_not_there(door: Door, rows: int, form: str) -> None:
    one = tensor(shape=[rows, 4]) if form == "data" else raw_input(FOUR, [rows, 4])
    refused(door.infer([one]), 400)


@pytest.mark.parametrize("shape", [[2**63, 4], [2**64, 4], [10**30, 4], [1, 2**64 + 4]], ids=str)
def test_bi04d_beyond_int64(gateway: Served, shape: list[int]) -> None:
    refused(infer_json(gateway, {"inputs": [tensor(shape=shape)]}), 400)


@pytest.mark.parametrize(
    "shape",
    [[2**16] * 4, [2**31 - 1] * 3, [2**31 - 1] * 32, [1] * 33, [4] * 1000, [0] + [2**31 - 1] * 31],
    ids=lambda s: f"{s[-1]}x{len(s)}",
)
@pytest.mark.parametrize("form", ["data", "raw"])
def test_bi04e_products_that_overflow(door: Door, shape: list[int], form: str) -> None:
    one = tensor(shape=shape) if form == "data" else raw_input(FOUR, shape)
    refused(door.infer([one], model="free"), 400)


@pytest.mark.parametrize("shape", [[4], [], [1, 1, 4], [1, 2, 2], [4, 1], [1, 5]], ids=str)
@pytest.mark.parametrize("form", ["data", "raw"])
def test_bi04f_wrong_rank_or_inner_size(door: Door, shape: list[int], form: str) -> None:
    one = tensor(shape=shape) if form == "data" else raw_input(FOUR, shape)
    refused(door.infer([one]), 400)


@pytest.mark.parametrize(
    "shape",
    [
        [1.0, 4],
        [1, 4.0],
        ["1", 4],
        [True, 4],
        [None, 4],
        [[1], 4],
        [{}, 4],
        "14",
        4,
        {},
        None,
        True,
    ],
    ids=repr,
)
def test_bi04g_not_integers(gateway: Served, shape: Any) -> None:
    one = {"name": "x", "datatype": "FP32", "shape": shape, "data": [1, 2, 3, 4]}
    refused(infer_json(gateway, {"inputs": [one]}), 400, "shape")
    if shape is None:
        del one["shape"]
        refused(infer_json(gateway, {"inputs": [one]}), 400, "shape")


@pytest.mark.parametrize("count", [0, 3, 5, 8, 1000])
@pytest.mark.parametrize("form", ["data", "raw"])
def test_bi04h_other_than_the_data(door: Door, count: int, form: str) -> None:
    values = [1.0] * count
    one = tensor(values) if form == "data" else raw_input(struct.pack(f"<{count}f", *values))
    refused(door.infer([one]), 400)


@pytest.mark.parametrize("size", [15, 17])
def test_bi04i_bytes_that_are_no_whole_elements(door: Door, size: int) -> None:
    refused(door.infer([raw_input(b"\0" * size)]), 400, f"{size} bytes")


def test_bi04j_rows_above_the_model_s_limit(door: Door) -> None:
    refused(door.infer([tensor([0.0] * 36, [9, 4])], model="limited"), 400, "limits.max_rows")
    assert door.infer([tensor([0.0] * 32, [8, 4])], model="limited").ok


def test_bi04k_rows_of_nothing_cost_nothing(door: Door) -> None:
    """[2^31-1, 0] is no bytes at all, yet would be 33 million slices of 64 rows."""
    door.served.ask("reset")
    before = door.served.ask()["memory"]
    for rows in (2**31 - 1, 2**24, 2**20 + 1):
        refused(door.infer([tensor([], [rows, 0])], model="free"), 400, "rows")
    assert door.served.ask()["peak"] - before < 64 << 20


def test_bi04l_rows_that_differ_between_inputs(door: Door) -> None:
    a = tensor([0.0] * 4, [2, 2], name="a")
    b = tensor([0] * 6, [3, 2], "INT64", "b")
    refused(door.infer([a, b], model="pair"), 400, "rows")


def test_bi04m_fixed_shape(door: Door) -> None:
    refused(door.infer([tensor([0.0] * 12, [4, 3])], model="fixed"), 400, "takes shape")
    assert door.infer([tensor([0.0] * 6, [2, 3])], model="fixed").ok


def test_bi04n_many_rows_are_sliced_and_come_back_whole(door: Door) -> None:
    rows = 5000
    data = struct.pack(f"<{rows * 4}f", *range(rows * 4))
    reply = door.infer([raw_input(data, [rows, 4])])
    assert reply.ok
    if door.is_http:
        assert reply.json["outputs"][0]["data"][-1] == rows * 4
    else:
        assert struct.unpack("<f", response(reply).raw_output_contents[0][-4:]) == (rows * 4,)
