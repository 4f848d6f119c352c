"""MLmodel files: found, read with bounds, and kept inside their folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ModelLoadError
from gateway.model_settings import ModelSettings
from runtimes.interface import Artifact
from runtimes.mlflow import MlflowRuntime
from runtimes.mlflow_document import MOST_BYTES, parse, read_document

GOOD = "flavors:\n  onnx:\n    data: model.onnx\n"


def artifact(folder: Path, **settings: Any) -> Artifact:
    return Artifact("m", "1", folder, ModelSettings(**settings))


def write(folder: Path, text: str = GOOD) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "MLmodel").write_text(text)
    return folder


def test_it_is_found_in_the_folder_in_one_in_it_and_by_name(tmp_path: Path) -> None:
    runtime = MlflowRuntime()
    inner = write(tmp_path / "1" / "model")
    assert runtime.probe(artifact(tmp_path / "1"))
    assert read_document(artifact(tmp_path / "1")).root == inner
    write(tmp_path / "1" / "other")
    with pytest.raises(ModelLoadError, match=r"several folders hold .*\(model, other\); name one"):
        read_document(artifact(tmp_path / "1"))
    for file in ("other", "other/MLmodel"):
        named = artifact(tmp_path / "1", file=file)
        assert runtime.probe(named) and read_document(named).root.name == "other"
    by_version = artifact(tmp_path / "1", version_files={"1": "other"})
    assert read_document(by_version).root.name == "other"
    write(tmp_path / "1")
    assert read_document(artifact(tmp_path / "1")).root == tmp_path / "1"


def test_others_are_not_taken(tmp_path: Path) -> None:
    runtime = MlflowRuntime()
    assert not runtime.probe(artifact(tmp_path)) and not runtime.probe(artifact(tmp_path / "no"))
    (tmp_path / "model.onnx").touch()
    write(tmp_path)
    assert not runtime.probe(artifact(tmp_path, file="model.onnx"))
    with pytest.raises(ModelLoadError, match="there is no MLmodel file"):
        read_document(artifact(tmp_path, file="model.onnx"))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("- a\n", "must hold keys and values"),
        ("flavors: 3\n", "'flavors' must hold keys and values, not a int"),
        ("flavors: {onnx: 3}\n", "has none of the flavours onnx, pytorch, python_function"),
        ("signature: []\nflavors: {}\n", "'signature' must hold keys and values, not a list"),
        ("flavors: {sklearn: {}}\n", "it has: sklearn"),
        ("a: [\n", "is not YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "is not YAML"),
        ("\0", "is not YAML"),
        ("[" * 1_000, "nested too deeply"),
        ("a: " + "x" * MOST_BYTES, "larger than 1 MiB"),
        ("a: 2024-13-77\n", "is not YAML"),
        ("&a [*a]\n", "must hold keys and values"),
    ],
)
def test_bad_documents(tmp_path: Path, text: str, cause: str) -> None:
    write(tmp_path, text)
    with pytest.raises(ModelLoadError, match=cause) as caught:
        MlflowRuntime().load(artifact(tmp_path))
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    assert MlflowRuntime().estimate(artifact(tmp_path)) == 0


@given(st.binary(max_size=200) | st.text(alphabet="&*a:[]{}!<>|-? \n\"'%@`#", max_size=60))
def test_any_bytes_are_a_mapping_or_refused(data: bytes | str) -> None:
    raw = data.encode() if isinstance(data, str) else data
    try:
        assert isinstance(parse(raw), dict)
    except ModelLoadError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("../x", "outside the version's folder"),
        ("/etc/hostname", "outside the version's folder"),
        ("link", "outside the version's folder"),
        ("gone.onnx", "is not in the model's folder"),
        ("a\0b", "is not in the model's folder"),
        (3, "must be the name of a file"),
        ("", "must be the name of a file"),
    ],
)
def test_files_are_in_the_folder(tmp_path: Path, name: object, cause: str) -> None:
    (tmp_path / "x").write_text("secret")
    folder = write(tmp_path / "1")
    (folder / "link").symlink_to(tmp_path / "x")
    document = read_document(artifact(folder))
    with pytest.raises(ModelLoadError, match=cause) as caught:
        document.inside(name, "data")
    assert "data" in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_the_whole_folder_is_in_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelLoadError, match="MLmodel is outside the version's folder"):
        read_document(artifact(tmp_path / "1"))
    with pytest.raises(ModelLoadError, match="MLmodel is outside the version's folder"):
        read_document(artifact(tmp_path / "1", file="../elsewhere"))


@pytest.mark.parametrize("key", ["model_path", "code", "data", "python_model"])
def test_python_function_files_are_in_the_folder(tmp_path: Path, key: str) -> None:
    text = f"flavors:\n  python_function:\n    loader_module: x\n    {key}: ../../evil\n"
    write(tmp_path, text)
    with pytest.raises(ModelLoadError, match=rf"{key} '../../evil' is not in the model's folder"):
        MlflowRuntime().load(artifact(tmp_path))


def test_scripts_lie_beside_it_wherever_they_were_saved_from(tmp_path: Path) -> None:
    text = "flavors:\n  python_function:\n    loader_module: x\n    model_code_path: /a/b.py\n"
    write(tmp_path, text)
    with pytest.raises(ModelLoadError, match=r"model_code_path 'b\.py' is not in the model"):
        MlflowRuntime().load(artifact(tmp_path))
    (tmp_path / "b.py").touch()
    with pytest.raises(ModelLoadError, match="no signature of its inputs"):
        MlflowRuntime().load(artifact(tmp_path))
