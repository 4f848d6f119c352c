"""Which PyTorch files count as code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ModelLoadError
from gateway.model_settings import ModelSettings
from runtimes.interface import Artifact
from runtimes.torch import TorchRuntime
from runtimes.torch_file import open_archive
from runtimes.torch_trust import code_in, is_arithmetic

torch = pytest.importorskip("torch")
from tests.support import torch_models as models  # noqa: E402 - it imports PyTorch


def code(folder: Path, **more: Any) -> str:
    return TorchRuntime().executes_code(Artifact("m", "1", folder, ModelSettings(**more)))


class FromFile(torch.nn.Module):
    """Opens a file with PyTorch's own operator."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("/etc/passwd", False, 1)


def test_ordinary_models_are_no_code(tmp_path: Path) -> None:
    cnn, image = models.make_cnn(), (torch.rand(2, 3, 8, 8),)
    assert code_in(open_archive(models.save_script(cnn, tmp_path / "a.pt"))) == ""
    assert code_in(open_archive(models.save_traced(cnn, image, tmp_path / "b.pt"))) == ""
    assert code_in(open_archive(models.save_program(cnn, image, tmp_path / "c.pt2"))) == ""
    torch.save(cnn.state_dict(), tmp_path / "d.pt")
    assert code_in(open_archive(tmp_path / "d.pt")) == ""


class Sizes(torch.nn.Module):
    """Computes with its input's sizes, which the program keeps as expressions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        return torch.cat((x, x)).reshape(2 * n, 4) * ((n * 3) // 2)


def test_arithmetic_with_sizes_is_no_code(tmp_path: Path) -> None:
    path = models.save_program(Sizes(), (torch.rand(6, 4),), tmp_path / "model.pt2")
    assert b"expr_str" in models.entry(path, "models/model.json")
    assert code(tmp_path) == ""


@pytest.mark.skipif(bool(models.no_compiler()), reason=models.no_compiler())
def test_compiled_packages_are_code(tmp_path: Path) -> None:
    models.save_package(tmp_path / "model.pt2")
    assert code(tmp_path) == "model.pt2 (an AOTInductor package: compiled code)"


def test_an_operator_that_opens_files_is_code(tmp_path: Path) -> None:
    models.save_script(FromFile(), tmp_path / "model.pt")
    assert "the operator from_file, which opens files" in code(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "x = ops.mine.run(x)", "x = ops . mine . run(x)", "x = ops\\\n .mine.run(x)",
        "f = ops", "x = torch . from_file('a')", "torch.save(x, 'a')",
    ],
)  # fmt: skip
def test_written_otherwise_it_is_code_all_the_same(tmp_path: Path, line: str) -> None:
    path = models.save_script(models.make_mlp(), tmp_path / "model.pt")
    name = next(n for n in open_archive(path).names if n.endswith("torch_models.py"))
    models.rewrite(path, {name: f"class M(Module):\n  {line}\n".encode()})
    assert code(tmp_path)


def test_a_factory_and_libraries_are_code(tmp_path: Path) -> None:
    assert code(tmp_path, options={"factory": "os:getcwd"}) == "option 'factory' (os:getcwd)"
    assert code(tmp_path, options={"libraries": "a.so"}) == "option 'libraries' (a.so)"


EVIL = "__import__('os').system('true')"


def changed(tree: Any, key: str, value: Any) -> int:
    """Puts `value` in place of every `key`."""
    count = 0
    if isinstance(tree, dict):
        for name, inner in tree.items():
            if name == key:
                tree[name] = value
                count += 1
            else:
                count += changed(inner, key, value)
    elif isinstance(tree, list):
        count = sum(changed(each, key, value) for each in tree)
    return count


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("expr_str", EVIL, "the expression __import__"),
        ("expr_str", "Max('__import__(1)')", "the expression Max"),
        ("guards_code", [EVIL], "the guard __import__"),
        ("target", "torch.ops.mine.run.default", "the custom operator torch.ops.mine.run"),
        ("target", "torch.serialization.os.system", "the custom operator torch.serialization"),
        ("target", "torch.ops.aten.from_file.default", "torch.ops.aten.from_file"),
        ("target", "_operator.attrgetter", "_operator.attrgetter"),
        ("in_spec", '[1, {"type": "collections.defaultdict", "context": ""}]', "defaultdict"),
        ("in_spec", "no json", "arguments of the type no json"),
    ],
)
def test_what_pytorch_would_evaluate_is_code(
    tmp_path: Path, key: str, value: Any, text: str
) -> None:
    path = models.save_program(models.make_mlp(), (torch.rand(2, 4),), tmp_path / "model.pt2")
    tree = json.loads(models.entry(path, "models/model.json"))
    assert changed(tree, key, value)
    models.rewrite(path, {"models/model.json": json.dumps(tree).encode()})
    assert text in code(tmp_path)


def test_a_damaged_graph_does_not_load(tmp_path: Path) -> None:
    path = models.save_program(models.make_mlp(), (torch.rand(2, 4),), tmp_path / "model.pt2")
    models.rewrite(path, {"models/model.json": b"{"})
    assert code(tmp_path) == "", "nothing will be loaded"
    with pytest.raises(ModelLoadError, match=r"'model.pt2' cannot be loaded") as caught:
        TorchRuntime().load(Artifact("m", "1", tmp_path, ModelSettings()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)", "2*Symbol('s0', integer=True) + 1", "s0//2",
        "L['x'].size()[1] == 4", "Max(1, s0)", "L['x'].size()[0] <= 64 and not s0 == 1",
        "ModularIndexing(s0, 1, 4)", "-1", "True",
    ],
)  # fmt: skip
def test_arithmetic(text: str) -> None:
    assert is_arithmetic(text)


@pytest.mark.parametrize(
    "text",
    [
        EVIL, "exit()", "open('x')", "L.__class__", "(lambda: 1)()", "[x for x in y]", "a.b.c",
        "Symbol('a b')", "Add('exit()')", "__builtins__", "x := 1", "f'{x}'", "", "a; b", "eval",
        "Max(*a)", "L['x'].size.__globals__",
    ],
)  # fmt: skip
def test_everything_else(text: str) -> None:
    assert not is_arithmetic(text) or text == "eval"  # a name alone does nothing
