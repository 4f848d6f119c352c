"""Which files an ONNX artifact may read, judged without ONNX Runtime and without `onnx`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from gateway.errors import ModelLoadError
from gateway.model_settings import ModelSettings
from runtimes.interface import Artifact
from runtimes.onnx import OnnxRuntime
from runtimes.onnx_file import external_files, external_locations, model_file, unranked_tensors

info = h.make_tensor_value_info


def external(location: str, name: str = "w") -> T:
    tensor = numpy_helper.from_array(np.arange(4, dtype=np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = T.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "16")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def model_with(*tensors: T, nodes: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    nodes = nodes or [h.make_node("Add", ["x", "w"], ["y"])]
    x, y = (info(name, T.FLOAT, ["N", 4]) for name in "xy")
    graph = h.make_graph(nodes, "g", [x], [y], tensors)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)


def write(folder: Path, model: onnx.ModelProto, name: str = "model.onnx") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(model.SerializeToString())
    return folder / name


def artifact(folder: Path, **settings: object) -> Artifact:
    return Artifact("m", "1", folder, ModelSettings(**settings))  # type: ignore[arg-type]


WEIGHTS = np.arange(4, dtype=np.float32).tobytes()


def test_external_data_beside_the_model_is_used(tmp_path: Path) -> None:
    file = write(tmp_path / "1", model_with(external("sub/w.bin")))
    (tmp_path / "1/sub").mkdir()
    (tmp_path / "1/sub/w.bin").write_bytes(WEIGHTS)
    assert external_files(file, tmp_path / "1") == (tmp_path / "1/sub/w.bin",)
    model = OnnxRuntime().load(artifact(tmp_path / "1"))
    result = model.infer({"x": np.ones((1, 4), np.float32)}, (), {})
    assert result["y"].tolist() == [[1, 2, 3, 4]]
    with_data = OnnxRuntime().estimate(artifact(tmp_path / "1"))
    assert with_data == int((file.stat().st_size + 16) * 1.5) + 10 * 2**20


def test_a_linked_version_folder_is_fine(tmp_path: Path) -> None:
    write(tmp_path / "real", model_with(external("w.bin")))
    (tmp_path / "real/w.bin").write_bytes(WEIGHTS)
    (tmp_path / "1").symlink_to("real")
    OnnxRuntime().load(artifact(tmp_path / "1")).close()


@pytest.mark.parametrize(
    "location",
    [
        "../w.bin", "a/../../w.bin", "/etc/passwd", "//etc/passwd", "..", "C:\\w.bin", "..\\w.bin",
        "\\w.bin", "a\0b", "w.bin\0/../../etc/passwd",
    ],
)  # fmt: skip
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS)
    write(tmp_path / "1", model_with(external(location)))
    with pytest.raises(ModelLoadError, match=r"external data .* is outside the version's folder"):
        OnnxRuntime().load(artifact(tmp_path / "1"))
    assert OnnxRuntime().estimate(artifact(tmp_path / "1")) == 0


@pytest.mark.parametrize("location", ["w.bin", "", ".", "*/_ORT_MEM_ADDR_/*", "x" * 5000])
def test_external_data_that_is_not_there_is_refused(tmp_path: Path, location: str) -> None:
    write(tmp_path / "1", model_with(external(location)))
    with pytest.raises(ModelLoadError, match=r"external data .*(missing|cannot be read)") as caught:
        OnnxRuntime().load(artifact(tmp_path / "1"))
    assert str(tmp_path) not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("through", ["file", "folder"])
def test_symbolic_links_out_of_the_folder_are_refused(tmp_path: Path, through: str) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHTS)
    location = "w.bin" if through == "file" else "sub/w.bin"
    write(tmp_path / "1", model_with(external(location)))
    link = tmp_path / "1" / ("w.bin" if through == "file" else "sub")
    link.symlink_to(tmp_path / "w.bin" if through == "file" else tmp_path)
    with pytest.raises(ModelLoadError, match="symbolic link that leaves"):
        OnnxRuntime().load(artifact(tmp_path / "1"))


def test_a_linked_model_may_not_bring_data(tmp_path: Path) -> None:
    file = write(tmp_path / "elsewhere", model_with(external("w.bin")))
    (tmp_path / "elsewhere/w.bin").write_bytes(WEIGHTS)
    (tmp_path / "1").mkdir()
    (tmp_path / "1/model.onnx").symlink_to(file)
    with pytest.raises(ModelLoadError, match="symbolic link that leaves"):
        OnnxRuntime().load(artifact(tmp_path / "1"))


def test_locations_are_found_wherever_a_tensor_can_be(tmp_path: Path) -> None:
    value = h.make_node("Constant", [], ["c"], value=external("attribute"))
    values = h.make_node("X", [], ["d"], domain="a", list=[external("one"), external("two")])
    body = h.make_graph([value], "then", [], [], [external("subgraph")])
    branch = h.make_node(
        "If", ["x"], ["e"], then_branch=body, else_branch=h.make_graph([], "", [], [])
    )
    loop = h.make_node("X", [], ["f"], domain="a", bodies=[h.make_graph([branch], "b", [], [])])
    model = model_with(external("initializer"), nodes=[values, loop])
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(external("sparse"))
    sparse.indices.CopyFrom(external("indices"))
    function = h.make_function("a", "F", [], [], [value], [h.make_opsetid("", 18)])
    model.functions.append(function)
    model.functions[0].attribute_proto.append(h.make_attribute("t", external("default")))
    training = model.training_info.add()
    training.initialization.CopyFrom(h.make_graph([], "t", [], [], [external("training")]))
    found = external_locations(write(tmp_path, model))
    assert found == {
        "attribute", "one", "two", "subgraph", "initializer", "sparse", "indices", "default",
        "training",
    }  # fmt: skip


def test_every_message_that_may_hold_a_tensor_is_walked() -> None:
    """A new field of the ONNX format that leads to a tensor must not be overlooked."""
    from runtimes.onnx_file import _MESSAGES

    names = {
        "ModelProto": "Model", "TrainingInfoProto": "Training", "FunctionProto": "Function",
        "GraphProto": "Graph", "NodeProto": "Node", "AttributeProto": "Attribute",
        "SparseTensorProto": "Sparse", "TensorProto": "Tensor",
    }  # fmt: skip
    for full, short in names.items():
        fields = getattr(onnx, full).DESCRIPTOR.fields
        leads = {f.number: f.message_type.name for f in fields if f.message_type is not None}
        walked = {number: names[to] for number, to in leads.items() if to in names}
        if full == "TensorProto":
            walked = {f.number: "Entry" for f in fields if f.name == "external_data"}
        assert _MESSAGES[short] == walked, full


def test_large_weights_are_skipped(tmp_path: Path) -> None:
    big = numpy_helper.from_array(np.zeros(4_000_000, np.float32), "big")
    file = write(tmp_path, model_with(big, external("after")))
    assert external_locations(file) == {"after"}


@given(st.binary(max_size=200))
def test_any_bytes_are_answered(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.onnx"
    file.write_bytes(data)
    try:
        external_locations(file)
        unranked_tensors(file)
    except ModelLoadError as error:
        assert "not an ONNX file" in str(error)


@given(st.integers(min_value=0, max_value=10_000), st.integers(min_value=0, max_value=255))
def test_a_damaged_model_is_answered(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    data = bytearray(model_with(external("w.bin")).SerializeToString())
    data[position % len(data)] = byte
    file = tmp_path_factory.getbasetemp() / "damaged.onnx"
    file.write_bytes(data)
    try:
        external_locations(file)
        unranked_tensors(file)
    except ModelLoadError as error:
        assert "not an ONNX file" in str(error)


def test_a_truncated_model_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, model_with(numpy_helper.from_array(np.ones(4, np.float32), "w")))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ModelLoadError, match=r"'model.onnx' is not an ONNX file, or it is damaged"):
        OnnxRuntime().load(artifact(tmp_path))


def test_tensors_without_any_shape_are_found(tmp_path: Path) -> None:
    ins = [info("x", T.FLOAT, None), info("s", T.FLOAT, [])]
    outs = [info("y", T.FLOAT, ["N"]), info("z", T.FLOAT, None)]
    model = h.make_model(h.make_graph([], "g", ins, outs))
    assert unranked_tensors(write(tmp_path, model)) == {"x", "z"}


def test_which_file(tmp_path: Path) -> None:
    runtime = OnnxRuntime()
    assert not runtime.probe(artifact(tmp_path))
    with pytest.raises(ModelLoadError, match=r"'model.onnx' does not exist in the version's"):
        model_file(artifact(tmp_path))
    folder = tmp_path / "model.onnx"
    folder.mkdir()
    assert not runtime.probe(artifact(tmp_path))
    with pytest.raises(ModelLoadError, match=r"exactly one \.onnx file; it has none"):
        model_file(artifact(tmp_path))
    (folder / "a.onnx").touch()
    assert runtime.probe(artifact(tmp_path))
    assert model_file(artifact(tmp_path)) == folder / "a.onnx"
    (folder / "b.onnx").touch()
    with pytest.raises(ModelLoadError, match=r"it has a\.onnx, b\.onnx"):
        model_file(artifact(tmp_path))
    (folder / "model.onnx").touch()
    assert model_file(artifact(tmp_path)) == folder / "model.onnx"


def test_the_settings_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "best.onnx").touch()
    (tmp_path / "old.ort").touch()
    assert OnnxRuntime().probe(artifact(tmp_path, file="best.onnx"))
    assert model_file(artifact(tmp_path, version_files={"1": "best.onnx"})).name == "best.onnx"
    with pytest.raises(ModelLoadError, match="own format"):
        model_file(artifact(tmp_path, file="old.ort"))
    for outside in ("../x/model.onnx", "/etc/passwd", "a/../../b"):
        with pytest.raises(ModelLoadError, match="outside the version's folder"):
            model_file(artifact(tmp_path, file=outside))


def test_the_onnx_package_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = numpy_helper.from_array(np.ones(4, np.float32), "w")
    write(tmp_path, model_with(weights))
    monkeypatch.setitem(sys.modules, "onnx", None)
    OnnxRuntime().load(artifact(tmp_path)).close()
