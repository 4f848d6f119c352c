"""PyTorch models through the runtime: values, signatures, threads, errors, memory."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtimes.torch as runtime_module
from gateway.errors import InferenceFailed, InvalidInput, ModelLoadError
from gateway.model_settings import ModelSettings
from gateway.tensors import DATATYPES, Array, objects
from runtimes import torch_threads
from runtimes.interface import Artifact, Model
from runtimes.torch import TorchRuntime
from runtimes.torch_errors import inference_error, one_line
from runtimes.torch_tensors import TORCH_NAMES

torch = pytest.importorskip("torch")
from tests.support import torch_models as models  # noqa: E402 - it imports PyTorch
from tests.support.torch_models import tensor  # noqa: E402

nn, Tensor = torch.nn, torch.Tensor
X = np.arange(8, dtype=np.float32).reshape(2, 4) / 8


def load(folder: Path, **settings: Any) -> Model:
    return TorchRuntime().load(Artifact("m", "1", folder, ModelSettings(**settings)))


def run(model: Model, **inputs: Array) -> dict[str, Array]:
    return dict(model.infer(inputs, (), {}))


def script(module: Any, folder: Path, **settings: Any) -> Model:
    models.save_script(module.eval(), folder / "model.pt")
    return load(folder, **settings)


def one(datatype: str = "FP32", *dims: int) -> dict[str, Any]:
    """One input x and one output y, of any shape [n] unless `dims` say otherwise."""
    dims = dims or (-1,)
    return {"inputs": (tensor("x", datatype, *dims),), "outputs": (tensor("y", datatype, *dims),)}


def expected() -> tuple[Array, Array]:
    with torch.no_grad():
        scores, label = models.make_mlp()(torch.from_numpy(X))
    return scores.numpy(), label.numpy()


def test_every_format_gives_the_same(tmp_path: Path) -> None:
    scores, label = expected()
    mlp, inputs = models.make_mlp(), (torch.rand(2, 4),)
    declared = models.MLP_SIGNATURE
    loaded = []
    for name in ("script", "traced", "program", "weights", "safetensors"):
        (tmp_path / name).mkdir()
    models.save_script(mlp, tmp_path / "script/model.pt")
    models.save_traced(mlp, inputs, tmp_path / "traced/model.pt")
    models.save_program(mlp, inputs, tmp_path / "program/model.pt2")
    torch.save(mlp.state_dict(), tmp_path / "weights/model.pth")
    (tmp_path / "safetensors/model.safetensors").write_bytes(safetensors(mlp.state_dict()))
    for name in ("script", "traced", "program"):
        loaded.append(load(tmp_path / name, **declared))
    factory = {"factory": "tests.support.torch_models:make_mlp"}
    for name in ("weights", "safetensors"):
        loaded.append(load(tmp_path / name, **declared, options=factory))
    for model in loaded:
        assert model.platform == "pytorch_libtorch" and model.batch_dimension
        assert (model.inputs[0].shape, model.outputs[1].shape) == ((-1, 4), (-1, 1))
        result = run(model, x=X)
        np.testing.assert_allclose(result["scores"], scores, rtol=1e-5)
        assert result["label"].tolist() == label[:, None].tolist()


def safetensors(state: dict[str, Any]) -> bytes:
    import json

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, value in state.items():
        raw = value.numpy().tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda raw: raw[:-1], "lies outside"),
        (lambda raw: raw[:5], "no safetensors file"),
        (lambda raw: b"\xff" * 8 + raw[8:], "its header is too long"),
        (lambda raw: raw.replace(b"F32", b"F99"), "F99"),
    ],
)
def test_damaged_safetensors(tmp_path: Path, change: Any, text: str) -> None:
    raw = safetensors(models.make_mlp().state_dict())
    (tmp_path / "model.safetensors").write_bytes(change(raw))
    factory = {"factory": "tests.support.torch_models:make_mlp"}
    with pytest.raises(ModelLoadError, match=text):
        load(tmp_path, **models.MLP_SIGNATURE, options=factory)


@pytest.mark.parametrize("name", sorted(TORCH_NAMES))
def test_every_datatype_goes_through(tmp_path: Path, name: str) -> None:
    model = script(nn.Identity(), tmp_path, **one(name, -1, 2))
    x = np.array([[0, 1], [1, 0], [1, 1]]).astype(DATATYPES[name].dtype)
    x.flags.writeable = False
    result = run(model, x=x)["y"]
    assert result.dtype == x.dtype and result.tolist() == x.tolist()
    assert result.flags.c_contiguous and not np.shares_memory(result, x)


def test_inputs_are_not_copied_and_may_lie_anywhere(tmp_path: Path) -> None:
    class Add(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    models.save_traced(Add(), (torch.rand(2, 4),), tmp_path / "model.pt")
    model: Any = load(tmp_path, **one("FP32", -1, 4))
    assert not model._copied
    for offset in range(5):
        raw = bytes(offset) + np.arange(8, dtype=np.float32).tobytes()
        x = np.frombuffer(raw, np.float32, offset=offset).reshape(2, 4)
        assert run(model, x=x)["y"].ravel().tolist() == list(range(1, 9))
    columns = np.arange(16, dtype=np.float32).reshape(2, 8)[:, ::-2]
    columns.flags.writeable = False
    assert run(model, x=columns)["y"].tolist() == (columns + 1).tolist()


class Writes(nn.Module):
    """Changes its input through a view of it."""

    def forward(self, x: Tensor) -> Tensor:
        x.view(-1).add_(1)
        return x


def test_received_bytes_are_never_written_to(tmp_path: Path) -> None:
    declared = one("FP32", -1, 4)
    cases = [script(Writes(), tmp_path, **declared)]
    (tmp_path / "program").mkdir()
    models.save_program(Writes(), (torch.rand(2, 4),), tmp_path / "program/model.pt2")
    cases.append(load(tmp_path / "program"))
    for model in cases:
        raw = X.tobytes()
        result = run(model, x=np.frombuffer(raw, np.float32).reshape(2, 4))
        assert next(iter(result.values())).tolist() == (X + 1).tolist()
        assert raw == X.tobytes()


class Buffer(nn.Module):
    """Gives its own memory away, and changes it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(x.sum())
        return self.seen


def test_an_answer_is_not_changed_by_the_next_call(tmp_path: Path) -> None:
    model = script(Buffer(), tmp_path, **one())
    first = run(model, x=np.ones(1, np.float32))["y"]
    assert run(model, x=np.ones(1, np.float32))["y"].tolist() == [2]
    assert first.tolist() == [1]


def test_a_program_that_keeps_something_is_stateful(tmp_path: Path) -> None:
    models.save_program(Buffer(), (torch.ones(3),), tmp_path / "model.pt2")
    model = load(tmp_path)
    assert model.stateful
    answers = [run(model, x=np.ones(2, np.float32))["OUTPUT__0"].tolist() for _ in range(2)]
    assert answers == [[2], [4]]


class Two(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return left - right, right


@pytest.mark.parametrize(
    ("ins", "outs"),
    [
        (("INPUT__1", "INPUT__0"), ("OUTPUT__1", "OUTPUT__0")),  # by number
        (("right", "left"), ("OUTPUT__1", "OUTPUT__0")),  # by forward()'s names
        (("right", "left"), ("b__1", "a__0")),
        (("b", "a"), ("q", "p")),  # in order: swapped on both sides
    ],
)
@pytest.mark.parametrize("program", [False, True])
def test_names(
    tmp_path: Path, ins: tuple[str, str], outs: tuple[str, str], *, program: bool
) -> None:
    declared = {
        "inputs": tuple(tensor(name, "FP32", -1) for name in ins),
        "outputs": tuple(tensor(name, "FP32", -1) for name in outs),
    }
    if program:
        models.save_program(Two(), (torch.rand(3), torch.rand(3)), tmp_path / "model.pt2")
        model = load(tmp_path, **declared)
    else:
        model = script(Two(), tmp_path, **declared)
    two, one_ = np.full(2, 2, np.float32), np.full(2, 1, np.float32)
    if ins == ("b", "a"):
        assert run(model, b=two, a=one_)["q"].tolist() == [1, 1]
        assert run(model, b=two, a=one_)["p"].tolist() == [1, 1]
    else:
        result = run(model, **{ins[0]: one_, ins[1]: two})
        assert result[outs[1]].tolist() == [1, 1] and result[outs[0]].tolist() == [1, 1]
        assert list(model.infer({ins[0]: two, ins[1]: one_}, (outs[1],), {})) == [outs[1]]


@pytest.mark.parametrize(
    ("ins", "outs", "text"),
    [
        ((), ("y",), r"'model.pt' \(a TorchScript module\) does not hold its inputs; write them"),
        (("a", "b", "c"), ("y",), "input 'c' is declared, but forward\\(\\) takes: left, right"),
        (("left",), ("y",), "'right' is not declared as input"),
        (("a__0", "b"), ("y",), r"number all of them \(NAME__0, NAME__1, ...\) or none"),
        (("a__0", "b__0"), ("y",), "two inputs have the same number"),
        (("a", "b"), ("y__2",), r"declared, but forward\(\) gives 2"),
    ],
)
def test_declarations_that_do_not_fit(
    tmp_path: Path, ins: tuple[str, ...], outs: tuple[str, ...], text: str
) -> None:
    with pytest.raises(ModelLoadError, match=text) as caught:
        script(
            Two(),
            tmp_path,
            inputs=tuple(tensor(name, "FP32", -1) for name in ins),
            outputs=tuple(tensor(name, "FP32", -1) for name in outs),
        )
    assert "\n" not in str(caught.value)


def test_the_signature_to_write_can_be_pasted(tmp_path: Path) -> None:
    import msgspec
    import yaml

    with pytest.raises(ModelLoadError) as caught:
        script(Two(), tmp_path)
    text = str(caught.value)
    document = yaml.safe_load(text[text.index("{max_batch_size") :])
    settings = msgspec.convert(document, ModelSettings)
    assert [t.name for t in settings.inputs] == ["left", "right"]
    assert [t.name for t in settings.outputs] == ["OUTPUT__0", "OUTPUT__1"]
    assert load(tmp_path, **document | {"inputs": settings.inputs, "outputs": settings.outputs})


class Optional(nn.Module):
    def forward(self, x: Tensor, bias: Tensor | None = None, scale: float = 2.0) -> Tensor:
        return x * scale if bias is None else x * scale + bias


def test_optional_inputs(tmp_path: Path) -> None:
    declared = (tensor("x", "FP32", -1), tensor("bias", "FP32", -1, optional=True))
    model = script(Optional(), tmp_path, inputs=declared, outputs=(tensor("y", "FP32", -1),))
    x = np.ones(1, np.float32)
    assert run(model, x=x)["y"].tolist() == [2]
    assert run(model, x=x, bias=x)["y"].tolist() == [3]
    with pytest.raises(ModelLoadError, match=r"'x' is declared optional, but forward\(\) has no"):
        load(
            tmp_path,
            inputs=(tensor("x", "FP32", -1, optional=True),),
            outputs=(tensor("y", "FP32", -1),),
        )


class Dicts(nn.Module):
    def forward(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sum": values["a"] + values["b"], "a": values["a"]}


@pytest.mark.parametrize("program", [False, True])
def test_dicts_of_tensors(tmp_path: Path, *, program: bool) -> None:
    inputs = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    if program:
        rows = torch.export.Dim("rows")
        with models.quiet():
            values = {"a": torch.rand(3), "b": torch.rand(3)}
            shapes = ({"a": {0: rows}, "b": {0: rows}},)
            exported = torch.export.export(Dicts(), (values,), dynamic_shapes=shapes)
            torch.export.save(exported, tmp_path / "model.pt2")
        model = load(tmp_path)
        assert [spec.name for spec in model.outputs] == ["sum", "a"]
        inputs = dict(zip([s.name for s in model.inputs], inputs.values(), strict=True))
    else:
        model = script(
            Dicts(),
            tmp_path,
            inputs=(tensor("b", "FP32", -1), tensor("a", "FP32", -1)),
            outputs=(tensor("sum", "FP32", -1),),
        )
    assert run(model, **inputs)["sum"].tolist() == [2, 2]
    assert model.batch_dimension is program


class Words(nn.Module):
    def forward(self, words: list[str]) -> tuple[Tensor, list[str]]:
        return torch.tensor([len(word) for word in words]), [word.upper() for word in words]


def test_text(tmp_path: Path) -> None:
    model = script(
        Words(),
        tmp_path,
        max_batch_size=4,
        inputs=(tensor("words", "BYTES", 1),),
        outputs=(tensor("length", "INT64", 1, reshape=()), tensor("upper", "BYTES", 1)),
    )
    result = run(model, words=objects([b"one", b"three"], (2, 1)))
    assert result["length"].tolist() == [[3], [5]]
    assert result["upper"].tolist() == [["ONE"], ["THREE"]]
    with pytest.raises(InvalidInput, match="'words' is not UTF-8"):
        run(model, words=objects([b"\xff"], (1, 1)))


def test_text_needs_a_model_that_takes_it(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="'x' is declared BYTES, but PyTorch's tensors hold"):
        script(nn.Identity(), tmp_path, **one("BYTES"))


class Number(nn.Module):
    def forward(self, x: Tensor, times: int) -> Tensor:
        return x * times


def test_arguments_that_are_no_tensors(tmp_path: Path) -> None:
    with pytest.raises(
        ModelLoadError, match="forward\\(\\) takes 'times', a int, and only tensors"
    ):
        script(Number(), tmp_path, **one())
    models.save_program(Number(), (torch.rand(3), 2), tmp_path / "model.pt2", batch=False)
    (tmp_path / "model.pt").unlink()
    model = load(tmp_path)  # an exported program keeps the number it was exported with
    assert [spec.name for spec in model.inputs] == ["x"]
    assert run(model, x=np.ones(3, np.float32))["OUTPUT__0"].tolist() == [2, 2, 2]


def test_the_signature_of_a_program(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    image = (torch.rand(2, 3, 8, 8),)
    models.save_program(models.make_cnn(), image, path, batch=False)
    model = load(tmp_path)
    assert repr(model.inputs) == "(image FP32 [2, 3, 8, 8],)" and not model.batch_dimension
    models.save_program(models.make_cnn(), image, path)
    model = load(tmp_path)
    assert repr(model.inputs) == "(image FP32 [-1, 3, 8, 8],)" and model.batch_dimension
    assert repr(model.outputs) == "(OUTPUT__0 FP32 [-1, 5],)"
    assert run(model, image=np.zeros((1, 3, 8, 8), np.float32))["OUTPUT__0"].shape == (1, 5)
    with pytest.raises(ModelLoadError, match=r"declared as FP32 \[-1, 3, 8, 9\], but the file has"):
        load(
            tmp_path,
            max_batch_size=4,
            inputs=(tensor("image", "FP32", 3, 8, 9),),
            outputs=(tensor("y", "FP32", 5),),
        )
    with pytest.raises(ModelLoadError, match="output 'y__1' is declared, but the program gives 1"):
        load(tmp_path, outputs=(tensor("y__1", "FP32", -1, 5),))


def test_reshape(tmp_path: Path) -> None:
    class Transpose(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(1, 2)

    def flat(name: str) -> Any:
        return tensor(name, "FP32", 4, reshape=(2, 2))

    model = script(
        Transpose(), tmp_path, max_batch_size=4, inputs=(flat("x"),), outputs=(flat("y"),)
    )
    assert model.inputs[0].shape == model.outputs[0].shape == (-1, 4)
    result = run(model, x=np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32))["y"]
    assert result.tolist() == [[1, 3, 2, 4], [5, 7, 6, 8]]


# --- errors


@pytest.mark.parametrize("program", [False, True])
@pytest.mark.parametrize(
    "x", [np.zeros((2, 5), np.float32), np.zeros(3, np.float32), np.zeros((2, 4, 1), np.float32)]
)
def test_input_that_does_not_fit_is_the_senders_fault(
    tmp_path: Path, x: Array, *, program: bool
) -> None:
    models.save_program(models.make_mlp(), (torch.rand(2, 4),), tmp_path / "model.pt2")
    if not program:
        models.save_script(models.make_mlp(), tmp_path / "model.pt")
    name = "model.pt2" if program else "model.pt"
    model = load(tmp_path, file=name, **models.MLP_SIGNATURE)
    with pytest.raises(InvalidInput) as caught:
        run(model, x=x)
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text and "File" not in text and len(text) < 400
    assert run(model, x=X)["scores"].shape == (2, 3)


def test_values_out_of_range_are_the_senders_fault(tmp_path: Path) -> None:
    declared = {"inputs": (tensor("i", "INT64", -1),), "outputs": (tensor("y", "FP32", -1, 2),)}
    model = script(nn.Embedding(3, 2), tmp_path, **declared)
    with pytest.raises(InvalidInput, match="index out of range in self"):
        run(model, i=np.array([9]))


@pytest.mark.parametrize("kind", ["script", "factory"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6])
def test_the_models_own_bugs_are_not_the_senders_fault(
    tmp_path: Path, kind: str, rows: int
) -> None:
    declared = {"inputs": (tensor("x", "FP32", -1, 4),), "outputs": (tensor("y", "FP32", -1, 4),)}
    if kind == "script":
        model = script(models.Buggy(), tmp_path, **declared)
    else:
        torch.save({}, tmp_path / "model.pt")
        options = {"factory": "tests.support.torch_models:Buggy"}
        model = load(tmp_path, options=options, **declared)
    said = {
        1: "size of mine", 2: "shape of mine", 3: "dimension of mine",
        4: "list index out of range", 5: "index out of range in self", 6: "cannot be multiplied",
    }  # fmt: skip
    wanted = InvalidInput if rows == 6 else InferenceFailed
    with pytest.raises(InferenceFailed, match=said[rows]) as caught:
        run(model, x=np.zeros((rows, 4), np.float32))
    assert type(caught.value) is wanted


def test_missing_and_unknown_tensors(tmp_path: Path) -> None:
    model = script(models.make_mlp(), tmp_path, **models.MLP_SIGNATURE)
    with pytest.raises(InvalidInput, match="input 'x' is missing"):
        run(model)
    with pytest.raises(InvalidInput, match="no input 'zz'"):
        run(model, x=X, zz=X)
    with pytest.raises(InferenceFailed, match="no output 'nope'"):
        model.infer({"x": X}, ("nope",), {})


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ((tensor("y", "INT64", -1, 3),), "output 'y' is declared INT64, but the model gives FP32"),
        ((tensor("y__5", "FP32", -1),), "declared, but forward"),
    ],
)
def test_outputs_that_were_declared_wrongly(tmp_path: Path, outputs: Any, text: str) -> None:
    declared = {**models.MLP_SIGNATURE, "max_batch_size": None, "outputs": outputs}
    with pytest.raises((InferenceFailed, ModelLoadError), match=text):
        run(script(models.make_mlp(), tmp_path, **declared | {"max_batch_size": 0}), x=X)


def test_a_gpu_without_memory_is_swept_out(monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: swept.append(1))
    error = inference_error(torch, torch.OutOfMemoryError("CUDA out of memory. Tried ..."))
    assert type(error) is InferenceFailed and "lower max_batch_size" in str(error) and swept


def test_messages_lose_stacks_and_folders() -> None:
    text = "sizes differ\nException raised from f at /w/x.cpp:1 (most recent call first):\nframe #0"
    assert one_line(RuntimeError(text)) == "sizes differ"
    text = (
        "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript"
        ' (most recent call last):\n  File "/home/me/net.py", line 1\nRuntimeError: bad value\n'
    )
    assert one_line(RuntimeError(text)) == "bad value"
    text = "\nUnknown builtin op: mine::twice.\nCould not find\n in TorchScript ~~~ <--- HERE"
    assert one_line(RuntimeError(text)) == "Unknown builtin op: mine::twice."
    assert one_line(RuntimeError("[enforce fail at alloc.cpp:9] data. no memory")) == "no memory"
    assert one_line(RuntimeError("cannot open /home/me/models/x.pt")) == "cannot open x.pt"
    assert one_line(RuntimeError()) == "RuntimeError"
    assert len(one_line(RuntimeError("x" * 999))) == 400


# --- state dicts


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        ("nowhere.at_all:make", "there is no module 'nowhere'"),
        ("tests.support.torch_models:gone", "has no attribute 'gone'"),
        ("tests.support.torch_models:not_a_module", "gives a str; it must give a torch.nn.Module"),
        ("tests.support.torch_models:fails", "failed: ValueError: no such width"),
        ("tests.support.torch_models:make_cnn", "do not fit the module of"),
    ],
)
def test_factories_that_do_not_work(tmp_path: Path, factory: str, text: str) -> None:
    torch.save(models.make_mlp().state_dict(), tmp_path / "model.pt")
    with pytest.raises(ModelLoadError, match=text) as caught:
        load(tmp_path, **models.MLP_SIGNATURE, options={"factory": factory})
    assert "\n" not in str(caught.value)


def test_a_list_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "model.pt")
    options = {"factory": "tests.support.torch_models:make_mlp"}
    with pytest.raises(ModelLoadError, match="holds no state dict"):
        load(tmp_path, **models.MLP_SIGNATURE, options=options)


# --- options


def test_autocast_gives_the_declared_datatype(tmp_path: Path) -> None:
    plain = script(models.make_mlp(), tmp_path, **models.MLP_SIGNATURE)
    model = load(tmp_path, **models.MLP_SIGNATURE, options={"autocast": "bf16"})
    found, exact = run(model, x=X)["scores"], run(plain, x=X)["scores"]
    assert found.dtype == np.float32
    assert 0 < np.abs(found - exact).max() < 0.05, "computed in bfloat16"


@pytest.mark.parametrize(
    "options",
    [
        {"optimize": "freeze"},
        {"optimize": "inference"},
        {"channels_last": True},
        {"optimized_execution": False},
        {"inference_mode": False},
    ],
)
def test_options_change_no_answers(tmp_path: Path, options: dict[str, Any]) -> None:
    image = np.random.default_rng(0).random((4, 3, 8, 8)).astype(np.float32) - 0.5
    with torch.no_grad():
        wanted = models.make_cnn()(torch.from_numpy(image.copy())).numpy()
    model = script(models.make_cnn(), tmp_path, **models.CNN_SIGNATURE, options=options)
    for _ in range(3):  # TorchScript profiles the first runs and optimises the next
        for rows in (4, 1, 3):
            found = run(model, image=image[:rows])["scores"]
            np.testing.assert_allclose(found, wanted[:rows], rtol=1e-4, atol=1e-5)


def test_optimized_execution_is_off_only_while_the_model_runs(tmp_path: Path) -> None:
    options = {"optimized_execution": False}
    model = script(models.make_mlp(), tmp_path, **models.MLP_SIGNATURE, options=options)
    run(model, x=X)
    assert torch._C._get_graph_executor_optimize()


@pytest.mark.skipif(bool(models.no_compiler()), reason=models.no_compiler())
def test_compile(tmp_path: Path) -> None:
    models.save_program(models.make_mlp(), (torch.rand(2, 4),), tmp_path / "model.pt2")
    with models.quiet():
        model = load(tmp_path, **models.MLP_SIGNATURE, options={"compile": "default"})
        for rows in (2, 1):
            found = run(model, x=X[:rows])["scores"]
            np.testing.assert_allclose(found, expected()[0][:rows], rtol=1e-5)


def test_compile_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*args: Any, **more: Any) -> Any:
        raise RuntimeError("no C++ compiler found")

    models.save_program(models.make_mlp(), (torch.rand(2, 4),), tmp_path / "model.pt2")
    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(ModelLoadError, match=r"no C\+\+ compiler found; install a C\+\+ compiler"):
        load(tmp_path, options={"compile": "default"})


def test_libraries(tmp_path: Path) -> None:
    models.save_script(models.make_mlp(), tmp_path / "model.pt")
    for name in ("gone.so", "../gone.so", "/lib/x.so"):
        with pytest.raises(ModelLoadError, match="is not a file in the version's folder"):
            load(tmp_path, options={"libraries": name})
    (tmp_path / "bad.so").write_bytes(b"no library")
    with pytest.raises(ModelLoadError, match=r"'bad.so' cannot be loaded: ") as caught:
        load(tmp_path, options={"libraries": "bad.so"})
    assert str(tmp_path) not in str(caught.value)


# --- threads


def test_models_with_different_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.pt")
    factory = "tests.support.torch_models:ThreadCount"
    one_, three = (
        load(tmp_path, **one(), options={"factory": factory, "intra_op_threads": number})
        for number in (1, 3)
    )
    x = np.zeros(1, np.float32)
    for model, number in ((one_, 1), (three, 3), (one_, 1)):
        assert run(model, x=x)["y"].tolist() == [number]
    seen: list[float] = []
    thread = threading.Thread(target=lambda: seen.extend(run(one_, x=x)["y"].tolist()))
    thread.start()
    thread.join()
    assert seen == [1]
    assert run(three, x=x)["y"].tolist() == [3]


class FakePool:
    """The pool between operators, as PyTorch has it: told once, never after it started."""

    def __init__(self, *, started: bool = False) -> None:
        self.threads, self.started = 2, started

    def get_num_interop_threads(self) -> int:
        return self.threads

    def set_num_interop_threads(self, number: int) -> None:
        if self.started:
            raise RuntimeError("cannot set number of interop threads after parallel work")
        self.threads, self.started = number, True


def test_threads_between_operators_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_threads, "_inter_op", 0)
    pool = FakePool()
    for number in (0, 4, 4, 0):
        torch_threads.set_inter_op_threads(pool, number)
    assert pool.threads == 4
    with pytest.raises(ModelLoadError, match="is 2, but PyTorch has 4 in this process already"):
        torch_threads.set_inter_op_threads(pool, 2)
    monkeypatch.setattr(torch_threads, "_inter_op", 0)
    torch_threads.set_inter_op_threads(FakePool(started=True), 2)
    monkeypatch.setattr(torch_threads, "_inter_op", 0)
    with pytest.raises(ModelLoadError, match="restart the gateway, or set isolation: process"):
        torch_threads.set_inter_op_threads(FakePool(started=True), 3)


def test_threads_wait_passively_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in torch_threads._WAITING:
        monkeypatch.delenv(name, raising=False)
    with torch_threads.waiting_passively():
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in os.environ, "children decide for themselves"
    monkeypatch.setenv("GOMP_SPINCOUNT", "99")
    with torch_threads.waiting_passively():
        assert "OMP_WAIT_POLICY" not in os.environ


def test_programs_load_side_by_side(tmp_path: Path) -> None:
    """torch.export reads one program at a time: loads must wait for each other."""
    models.save_program(models.make_cnn(), (torch.rand(2, 3, 8, 8),), tmp_path / "model.pt2")
    failures: list[BaseException] = []

    def work() -> None:
        try:
            load(tmp_path).close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --- life


@pytest.mark.parametrize("program", [False, True])
def test_closing_gives_the_weights_back(tmp_path: Path, *, program: bool) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    if program:
        models.save_program(Wide(), (torch.rand(2, 4),), tmp_path / "model.pt2")
        model: Any = load(tmp_path)
    else:
        model = script(Wide(), tmp_path, **one("FP32", -1, 4))
    module = model._programs[0].module
    storages = [weakref.ref(p.untyped_storage()) for p in module.parameters()]
    held = list(module.parameters())
    gc.disable()
    try:
        model.close()
        assert all(p.untyped_storage().nbytes() == 0 for p in held), "freed without a collection"
    finally:
        gc.enable()
    assert len(storages) == 2
    model.close()
    with pytest.raises(InferenceFailed, match="the model is closed"):
        run(model, x=X)


def test_report() -> None:
    report = TorchRuntime().report()
    assert report.available and report.devices[0] == "cpu" and "pt2" in report.formats
    assert report.version == torch.__version__


def test_waiting_processes_import_it_with_threads_that_sleep(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "torch.py").write_text("import os\nprint(os.environ.get('OMP_WAIT_POLICY'))\n")
    code = (
        "import importlib, os, sys; sys.path.insert(0, sys.argv[1]); "
        "from runtimes.torch import TorchRuntime; "
        "[importlib.import_module(name) for name in TorchRuntime.preload]; "
        "assert 'torch' in sys.modules and 'OMP_WAIT_POLICY' not in os.environ"
    )
    waits = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: value for name, value in os.environ.items() if name not in waits}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "PASSIVE\n"), done.stderr


def test_report_does_not_import_the_library() -> None:
    import subprocess

    code = (
        "import sys; from runtimes.torch import TorchRuntime; r = TorchRuntime().report(); "
        "assert r.available; sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.save_script(models.make_mlp(), tmp_path / "model.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelLoadError) as caught:
        load(tmp_path)
    line = "PyTorch is not installed; type: pip install 'sluicegate[torch]'"
    assert str(caught.value) == line
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    report = TorchRuntime().report()
    assert not report.available and report.reason == line == runtime_module.MISSING
    assert TorchRuntime().probe(Artifact("m", "1", tmp_path, ModelSettings()))


def test_a_file_of_another_directory(tmp_path: Path) -> None:
    """As an MLflow model has it."""
    (tmp_path / "data").mkdir()
    file = models.save_script(models.make_mlp(), tmp_path / "data/model.pth")
    artifact = Artifact("m", "1", tmp_path, ModelSettings(**models.MLP_SIGNATURE))
    model = TorchRuntime().load_file(artifact, file)
    assert run(model, x=X)["scores"].shape == (2, 3)
