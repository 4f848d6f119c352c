"""What a PyTorch file is, without unpickling it: formats, bombs, damage."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import ModelLoadError
from gateway.model_settings import ModelSettings
from runtimes.interface import Artifact
from runtimes.torch import TorchRuntime
from runtimes.torch_file import Kind, candidates, model_file, open_archive
from runtimes.torch_trust import code_in

torch = pytest.importorskip("torch")
from tests.support import torch_models as models  # noqa: E402 - it imports PyTorch


def artifact(folder: Path, **more: Any) -> Artifact:
    return Artifact("m", "1", folder, ModelSettings(**more))


def test_every_format_is_told_by_its_contents(tmp_path: Path) -> None:
    mlp, inputs = models.make_mlp(), (torch.rand(2, 4),)
    path = tmp_path / "model.pt"  # the name says nothing
    assert open_archive(models.save_script(mlp, path)).kind is Kind.SCRIPT
    assert open_archive(models.save_traced(mlp, inputs, path)).kind is Kind.SCRIPT
    assert open_archive(models.save_program(mlp, inputs, path)).kind is Kind.PROGRAM
    torch.save(mlp.state_dict(), path)
    assert open_archive(path).kind is Kind.WEIGHTS


def test_a_pickled_module_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(models.make_mlp(), tmp_path / "model.pt")
    with pytest.raises(ModelLoadError) as caught:
        TorchRuntime().load(artifact(tmp_path))
    text = str(caught.value)
    assert "a pickled object (tests.support.torch_models.Mlp)" in text
    assert "torch.jit.save" in text and "torch.export.save" in text and "factory" in text


class Evil:
    """Unpickling it leaves a file behind."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (open, (str(self.file), "w"))


@pytest.mark.parametrize("options", [{}, {"factory": "tests.support.torch_models:make_mlp"}])
def test_nothing_is_unpickled(tmp_path: Path, options: dict[str, Any]) -> None:
    trap = tmp_path / "trap"
    torch.save({"layers.0.weight": Evil(trap)}, tmp_path / "model.pt")
    for _ in range(2):
        with pytest.raises(ModelLoadError, match="pickled object"):
            TorchRuntime().load(artifact(tmp_path, options=options))
    assert not trap.exists()


@pytest.mark.parametrize("name", ["data/sample_inputs/model.pt", "data/weights/model.pt"])
def test_nothing_in_a_program_is_unpickled(tmp_path: Path, name: str) -> None:
    trap = tmp_path / "trap"
    path = models.save_program(models.make_mlp(), (torch.rand(2, 4),), tmp_path / "model.pt2")
    torch.save((Evil(trap),), tmp_path / "evil")
    models.rewrite(path, {name: (tmp_path / "evil").read_bytes()})
    with pytest.raises(ModelLoadError, match="holds pickled objects beside tensors"):
        TorchRuntime().load(artifact(tmp_path))
    assert not trap.exists()


@pytest.mark.parametrize("kind", ["weights", "constants"])
def test_pickled_weights_of_a_program_are_refused(tmp_path: Path, kind: str) -> None:
    path = models.save_program(models.make_mlp(), (torch.rand(2, 4),), tmp_path / "model.pt2")
    name = f"data/{kind}/model_{kind}_config.json"
    data = b'{"config": {"w": {"path_name": "opaque_obj_0", "use_pickle": true}}}'
    models.rewrite(path, {name: data})
    with pytest.raises(ModelLoadError, match="holds 'w' as a pickled object"):
        TorchRuntime().load(artifact(tmp_path))


def test_a_bomb_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/constants.pkl", b"")
        archive.writestr("m/code/x.py", b"\0" * (80 << 20))
    with pytest.raises(ModelLoadError, match="would unpack to 83886080"):
        open_archive(path)


def test_entries_that_readers_could_take_differently(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive, models.quiet():
        archive.writestr("m/constants.pkl", b"")
        archive.writestr("m/code/x.py", b"")
        archive.writestr("m/code/x.py", b"ops.evil.run()")
    with pytest.raises(ModelLoadError, match="overlap, repeat"):
        open_archive(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/constants.pkl", b"")
        archive.writestr("n/data/aotinductor/model/x.so", b"")
    with pytest.raises(ModelLoadError, match="share no folder"):
        open_archive(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not a PyTorch file"),
        (b"hello" * 99, "is not a PyTorch file"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "is not a PyTorch file"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ModelLoadError, match=text):
        TorchRuntime().load(artifact(tmp_path))


def test_zip_archives_that_are_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("a/b", b"c")
    with pytest.raises(ModelLoadError, match="neither a TorchScript module"):
        TorchRuntime().load(artifact(tmp_path))
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("serialized_exported_program.json", b"{}")
    with pytest.raises(ModelLoadError, match=r"format before PyTorch 2.8; export it again"):
        TorchRuntime().load(artifact(tmp_path))


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("script") / "model.pt"
    return models.save_script(models.make_mlp(), path).read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_is_one_line_about_the_file(
    tmp_path_factory: pytest.TempPathFactory, script: bytes, data: st.DataObject
) -> None:
    """Cut short, or with bytes changed anywhere: never another exception."""
    cut = data.draw(st.integers(0, len(script)))
    broken = bytearray(script[:cut])
    for place in data.draw(st.lists(st.integers(0, max(cut - 1, 0)), max_size=4 if cut else 0)):
        broken[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damage") / "model.pt"
    path.write_bytes(broken)
    try:
        code_in(open_archive(path))
    except ModelLoadError as error:
        assert "\n" not in str(error) and str(path.parent) not in str(error)


def test_a_file_cut_short_does_not_load(tmp_path: Path, script: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(script[: len(script) // 2])
    with pytest.raises(ModelLoadError, match="cut short"):
        TorchRuntime().load(artifact(tmp_path))


def test_damaged_code_is_told_in_one_line(tmp_path: Path) -> None:
    path = models.save_script(models.make_mlp(), tmp_path / "model.pt")
    name = next(n for n in open_archive(path).names if n.endswith("torch_models.py"))
    models.rewrite(path, {name: b"class Mlp(Module):\n  def forward(self: broken\n"})
    with pytest.raises(ModelLoadError, match=r"'model.pt' cannot be loaded: ") as caught:
        TorchRuntime().load(artifact(tmp_path, **models.MLP_SIGNATURE))
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_which_file(tmp_path: Path) -> None:
    runtime = TorchRuntime()
    assert not runtime.probe(artifact(tmp_path)) and not runtime.estimate(artifact(tmp_path))
    with pytest.raises(ModelLoadError, match=r"has none of model.pt2, model.pt"):
        model_file(artifact(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert not candidates(artifact(tmp_path)), "weights alone are no model"
    assert candidates(artifact(tmp_path, options={"factory": "a:b"}))
    (tmp_path / "model.pt").touch()
    assert model_file(artifact(tmp_path)).name == "model.pt"
    (tmp_path / "model.pt2").touch()
    with pytest.raises(ModelLoadError, match=r"has model.pt2 and model.pt; say which to load"):
        model_file(artifact(tmp_path))
    assert model_file(artifact(tmp_path, file="model.pt")).name == "model.pt"
    assert model_file(artifact(tmp_path, version_files={"1": "model.pt2"})).suffix == ".pt2"
    (tmp_path / "net.txt").touch()
    assert not runtime.probe(artifact(tmp_path, file="net.txt"))
    for name in ("../model.pt", "/etc/passwd"):
        with pytest.raises(ModelLoadError, match="is outside the version's folder"):
            model_file(artifact(tmp_path, file=name))
    with pytest.raises(ModelLoadError, match=r"'gone.pt' does not exist"):
        model_file(artifact(tmp_path, file="gone.pt"))
