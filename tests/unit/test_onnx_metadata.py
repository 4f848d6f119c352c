"""Signatures: read from the file, compared with what was declared, reshaped between the two."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.errors import ModelLoadError
from gateway.model_settings import ModelSettings, TensorSettings
from runtimes.onnx_metadata import (
    TYPES,
    Dim,
    Metadata,
    Reshape,
    node_of,
    read_metadata,
    shares_batch_dimension,
)

Shape = tuple[Dim, ...]


def arg(name: str, shape: Shape, kind: str = "tensor(float)") -> Any:
    return SimpleNamespace(name=name, type=kind, shape=list(shape))


def session(inputs: list[Any], outputs: list[Any], defaults: tuple[Any, ...] = ()) -> Any:
    return SimpleNamespace(
        get_inputs=lambda: inputs,
        get_outputs=lambda: outputs,
        get_overridable_initializers=lambda: list(defaults),
    )


ADD = session([arg("x", ("N", 4))], [arg("y", ("N", 4))])


def declare(name: str, *dims: int, datatype: str = "FP32", **more: Any) -> TensorSettings:
    return TensorSettings(name=name, datatype=datatype, dims=dims, **more)


def read(file: Any = ADD, unranked: tuple[str, ...] = (), **settings: Any) -> Metadata:
    return read_metadata(file, ModelSettings(**settings), unranked)


def test_an_undeclared_signature_comes_from_the_file() -> None:
    metadata = read()
    assert repr(metadata.inputs) == "(x FP32 [-1, 4],)"
    assert repr(metadata.outputs) == "(y FP32 [-1, 4],)"
    assert metadata.batch_dimension
    assert not metadata.input_reshapes and not metadata.output_reshapes


@pytest.mark.parametrize(("kind", "name"), TYPES.items())
def test_every_datatype(kind: str, name: str) -> None:
    node = node_of(arg("x", (1, None, "s"), kind), "input")
    assert node.datatype.name == name
    assert node.shape == (1, -1, -1)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("seq(map(int64,tensor(float)))", "zipmap"),
        ("map(string,tensor(float))", "zipmap"),
        ("seq(tensor(float))", "no datatype for"),
        ("optional(tensor(float))", "without optional"),
        ("tensor(complex64)", "no datatype for"),
        ("tensor(float8e4m3fn)", "no datatype for"),
        ("tensor(int4)", "no datatype for"),
        ("sparse_tensor(float)", "no datatype for"),
    ],
)
def test_types_without_a_datatype_are_refused(kind: str, text: str) -> None:
    with pytest.raises(ModelLoadError, match=text) as caught:
        read(session([arg("x", ("N",))], [arg("scores", (), kind)]))
    assert f"output 'scores' is of the ONNX type {kind}" in str(caught.value)


@pytest.mark.parametrize(
    ("shapes", "undeclared", "declared"),
    [
        ([("N", 4), ("N",)], True, True),
        ([("N", 4), ("M", 4)], False, False),
        ([(2, "N", 128), (2, "N", 128)], False, False),
        ([("N", 4), (2, "N")], False, False),
        ([("N", 4), ()], False, False),
        ([(1, 4), (1, 4)], False, False),
        ([(0, 4), ("N", 4)], False, False),
        ([(None, 4), (None, 4)], False, True),
        ([("N", 4), (None, 4)], False, True),
        ([("unk__0", 4), ("unk__1", 4)], False, True),
        ([("", 4), ("", 4)], False, True),
        ([(None, 4), (3, 4)], False, False),
        ([], False, False),
    ],
)
def test_what_a_batch_dimension_is(shapes: list[Shape], undeclared: bool, declared: bool) -> None:
    nodes = [node_of(arg(f"t{i}", shape), "input") for i, shape in enumerate(shapes)]
    assert shares_batch_dimension(nodes, declared=False) is undeclared
    assert shares_batch_dimension(nodes, declared=True) is declared


def test_declared_dims_come_without_the_batch() -> None:
    metadata = read(max_batch_size=8, inputs=(declare("x", 4),), outputs=(declare("y", 4),))
    assert metadata.inputs[0].shape == (-1, 4)
    assert read(inputs=(declare("x", -1, 4),)).inputs[0].shape == (-1, 4)


def test_the_more_specific_dimension_counts() -> None:
    wide = session([arg("x", ("N", "height", 3))], [arg("y", ("N", 7))])
    metadata = read(
        wide, max_batch_size=8, inputs=(declare("x", 28, -1),), outputs=(declare("y", -1),)
    )
    assert metadata.inputs[0].shape == (-1, 28, 3)
    assert metadata.outputs[0].shape == (-1, 7)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"inputs": (declare("z", -1, 4),)},
            "input 'z' is declared, but the file has: x FP32 [-1, 4]",
        ),
        ({"outputs": (declare("z", -1, 4),)}, "output 'z' is declared, but the file has: y FP32"),
        (
            {"inputs": (declare("x", -1, 5),)},
            "input 'x' is declared as FP32 [-1, 5], but the file has FP32 [-1, 4]",
        ),
        (
            {"inputs": (declare("x", -1, 4, datatype="FP64"),)},
            "input 'x' is declared as FP64 [-1, 4], but the file has FP32 [-1, 4]",
        ),
        ({"outputs": (declare("y", 4),)}, "output 'y' is declared as FP32 [4], but the file has"),
        (
            {"inputs": (declare("x", -1, 4),), "max_batch_size": 8},
            "FP32 [-1, -1, 4], but the file has FP32 [-1, 4]; dims come without the batch",
        ),
        ({"inputs": (declare("x", -1, 4, optional=True),)}, "no default value for it"),
        (
            {"inputs": (declare("x", 5, reshape=(4,)),), "max_batch_size": 8},
            "must hold the same number of elements and of -1",
        ),
        (
            {"inputs": (declare("x", -1, reshape=(4,)),), "max_batch_size": 8},
            "must hold the same number of elements and of -1",
        ),
        (
            {"inputs": (declare("x", 6, reshape=(2, 3)),), "max_batch_size": 8},
            "declared as FP32 [-1, 6] (reshaped to [-1, 2, 3]), but the file has FP32 [-1, 4]",
        ),
    ],
)
def test_declarations_that_do_not_agree_show_both_sides(
    settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        read(**settings)
    assert text in str(caught.value)


def test_a_batch_needs_a_free_first_dimension() -> None:
    fixed = session([arg("x", (1, 4))], [arg("y", (1, 4))])
    with pytest.raises(
        ModelLoadError, match=r"declared as FP32 \[-1, 4\], but the file has FP32 \[1"
    ):
        read(fixed, max_batch_size=8, inputs=(declare("x", 4),))


def test_all_inputs_have_to_be_declared_but_not_all_outputs() -> None:
    file = session([arg("a", ("N",)), arg("b", ("N",))], [arg("y", ("N",)), arg("z", ("N",))])
    with pytest.raises(ModelLoadError, match="input 'b' of the file is not declared"):
        read(file, inputs=(declare("a", -1),))
    assert [spec.name for spec in read(file, outputs=(declare("z", -1),)).outputs] == ["z"]


def test_defaults_are_inputs_only_where_declared() -> None:
    file = session([arg("x", ("N",))], [arg("y", ("N",))], (arg("bias", (1,)), arg("w", (9,))))
    assert [spec.name for spec in read(file).inputs] == ["x"]
    declared = (declare("x", -1), declare("bias", 1, optional=True))
    metadata = read(file, inputs=declared)
    assert [(spec.name, spec.optional) for spec in metadata.inputs] == [
        ("x", False),
        ("bias", True),
    ]
    assert not metadata.batch_dimension


def test_a_tensor_without_rank_has_to_be_declared() -> None:
    file = session([arg("x", ("N",))], [arg("y", ())])
    assert read(file).outputs[0].shape == ()
    with pytest.raises(
        ModelLoadError, match="how many dimensions output 'y' has; declare its dims"
    ):
        read(file, unranked=("y",))
    metadata = read(file, ("y",), max_batch_size=4, outputs=(declare("y", 3, -1),))
    assert metadata.outputs[0].shape == (-1, 3, -1)
    assert metadata.batch_dimension


def test_reshape_stands_between_client_and_model() -> None:
    file = session([arg("x", ("N",))], [arg("y", ("N", 2, "k"))])
    metadata = read(
        file,
        max_batch_size=8,
        inputs=(declare("x", 1, reshape=()),),
        outputs=(declare("y", -1, 1, 2, reshape=(2, -1)),),
    )
    assert metadata.inputs[0].shape == (-1, 1)
    assert metadata.input_reshapes["x"]((5, 1)) == (5,)
    assert metadata.outputs[0].shape == (-1, -1, 1, 2)
    assert metadata.output_reshapes["y"]((5, 2, 7)) == (5, 7, 1, 2)


def test_free_dimensions_carry_over_in_order() -> None:
    assert Reshape((-1, 4, -1), (-1, 2, -1, 2))((3, 4, 5)) == (3, 2, 5, 2)
