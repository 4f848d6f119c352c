"""Which runtime an MLflow directory is handed to, and what python_function models need."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gateway.errors import InferenceFailed, InvalidInput, ModelLoadError
from gateway.model_settings import ModelSettings, TensorSettings
from gateway.tensors import objects
from runtimes.interface import Artifact, Model
from runtimes.mlflow import MlflowRuntime
from tests.support.gateway import ROOT
from tests.support.mlflow_models import (
    columns,
    mlflow,
    save_function,
    save_onnx,
    save_torch,
    tensors,
)

PYTHON = "the python_function flavour of MLmodel"
ONE = columns(a="double")


def artifact(folder: Path, **settings: Any) -> Artifact:
    return Artifact("m", "1", folder, ModelSettings(**settings))


def load(folder: Path, **settings: Any) -> Model:
    return MlflowRuntime().load(artifact(folder, **settings))


def refused(folder: Path, **settings: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load(folder, **settings)
    assert "\n" not in str(caught.value) and str(folder) not in str(caught.value)
    return str(caught.value)


def code(folder: Path, **settings: Any) -> str:
    return MlflowRuntime().executes_code(artifact(folder, **settings))


def edit(folder: Path, **changes: Any) -> Path:
    """Changes keys of MLmodel; None takes them away."""
    document = yaml.safe_load((folder / "MLmodel").read_text())
    document.update(changes)
    document = {key: value for key, value in document.items() if value is not None}
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    return folder


def number(value: float) -> dict[str, Any]:
    return {"a": np.array([[float(value)]])}


# --- which flavour


def test_onnx_goes_to_onnx_runtime(tmp_path: Path) -> None:
    folder = save_onnx(tmp_path / "m")
    assert code(folder) == ""
    model = load(folder, options={"intra_op_threads": 1})
    assert model.platform == "onnxruntime_onnx"
    x = np.ones((2, 3), np.float32)
    assert model.infer({"x": x}, (), {})["y"].tolist() == (x + x).tolist()
    assert "no option 'intra_op_thread'" in refused(folder, options={"intra_op_thread": 1})
    assert MlflowRuntime().estimate(artifact(folder)) > 0


def test_the_settings_choose_the_flavour(tmp_path: Path) -> None:
    folder = save_onnx(tmp_path / "m")
    options = {"flavor": "python_function"}
    assert code(folder, options=options) == f"{PYTHON} (mlflow.onnx)"
    assert load(folder, options=options).platform == "mlflow_python_function"
    assert "'flavor' is 'onyx'; it must be onnx," in refused(folder, options={"flavor": "onyx"})
    assert refused(folder, options={"flavor": "pytorch"}) == (
        "MLmodel has no flavour 'pytorch'; it has: onnx, python_function"
    )


@pytest.mark.parametrize("form", ["script", "program"])
def test_torch_goes_to_pytorch(tmp_path: Path, form: str) -> None:
    folder = save_torch(tmp_path / "m", form)
    assert code(folder) == ""
    model = load(folder)
    assert "torch" in model.platform and model.batch_dimension
    assert [repr(spec) for spec in model.inputs] == ["input-0 FP32 [-1, 3]"]
    x = np.ones((2, 3), np.float32)
    assert model.infer({"input-0": x}, (), {})["output-0"].tolist() == (x * 2).tolist()
    model.close()
    tensor = TensorSettings(name="x", datatype="FP32", dims=(3,))
    named = load(folder, inputs=(tensor,), outputs=(tensor,), max_batch_size=4)
    assert [repr(spec) for spec in named.inputs] == ["x FP32 [-1, 3]"]


def test_pickled_modules_are_python(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    (folder / "data").mkdir(parents=True)
    with zipfile.ZipFile(folder / "data" / "model.pth", "w") as archive:
        archive.writestr("model/data.pkl", b"")
    flavors: dict[str, Any] = {"pytorch": {"model_data": "data"}}
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors}))
    assert "is a pickled module, which executes code; save it with" in refused(folder)
    python = {"python_function": {"loader_module": "mlflow.pytorch", "data": "data"}}
    edit(folder, flavors={**flavors, **python})
    assert code(folder) == f"{PYTHON} (mlflow.pytorch)"
    assert "set options: {flavor: python_function} and list its source in trust.code" in (
        refused(folder, options={"flavor": "pytorch"})
    )


def test_anything_else_is_python(tmp_path: Path) -> None:
    folder = save_function(tmp_path / "m", lambda data, _: data["a"] * 2, ONE, ONE)
    assert code(folder) == f"{PYTHON} (mlflow.pyfunc.model)"
    model = load(folder)
    assert model.infer(number(4), (), {})["a"].tolist() == [[8.0]]
    model.close()
    with pytest.raises(InferenceFailed, match="the model is closed"):
        model.infer(number(4), (), {})


# --- python_function


def test_params_are_request_parameters(tmp_path: Path) -> None:
    def predict(data: Any, params: Any) -> Any:
        return data["a"] * params["k"]

    model = load(save_function(tmp_path / "m", predict, ONE, ONE, params=[("k", "double", 10.0)]))
    assert model.parameters_matter
    assert model.infer(number(4), (), {})["a"].tolist() == [[40.0]]
    assert model.infer(number(4), (), {"k": 2, "x": 1})["a"].tolist() == [[8.0]]
    with pytest.raises(InvalidInput, match="k"):
        model.infer(number(4), (), {"k": "much"})


def test_the_library_is_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_function(tmp_path / "m", lambda d, p: d["a"], ONE, ONE, params=[("k", "long", 1)])
    model = load(folder)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            model.infer(number(4), (), {"k": 2})
    assert len(caplog.records) <= 1


def test_columns_must_have_equally_many_rows(tmp_path: Path) -> None:
    two = columns(a="double", b="double")
    model = load(save_function(tmp_path / "m", lambda data, _: data, two, two))
    with pytest.raises(InvalidInput, match="same number of rows, but 'a' has 1, 'b' has 2"):
        model.infer({"a": np.ones((1, 1)), "b": np.ones((2, 1))}, (), {})


def test_what_the_model_raises_is_told(tmp_path: Path) -> None:
    def predict(data: Any, params: Any) -> Any:
        raise ValueError("cannot read /srv/models/secret/table.csv\nsorry")

    model = load(save_function(tmp_path / "m", predict, ONE, ONE))
    with pytest.raises(InferenceFailed) as caught:
        model.infer(number(1), (), {})
    assert str(caught.value) == "ValueError: cannot read table.csv sorry"
    assert not isinstance(caught.value, InvalidInput)


def test_without_a_signature(tmp_path: Path) -> None:
    folder = save_function(tmp_path / "m", lambda data, _: data * 2, None, None)
    assert "MLmodel has no signature of its inputs; save the model with signature=" in (
        refused(folder)
    )
    tensor = TensorSettings(name="x", datatype="FP32", dims=(-1, 2))
    model = load(folder, inputs=(tensor,), outputs=(tensor,))
    x = np.ones((1, 2), np.float32)
    assert model.infer({"x": x}, (), {})["x"].tolist() == [[2, 2]]
    one = TensorSettings(name="x", datatype="FP32", dims=(-1, 1))
    frame = load(folder, inputs=(one,), outputs=(one,), options={"dataframe": True})
    assert frame.infer({"x": x[:, :1]}, (), {})["x"].tolist() == [[2]]


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"options": {"flavour": "x"}}, "no option 'flavour'; did you mean 'flavor'? (known here"),
        ({"options": {"config.x": 1}}, "no option 'config.x'"),
        ({"options": {"dataframe": "yes"}}, "option 'dataframe' must be true or false"),
        ({"options": {"dataframe": True}}, "'dataframe' is for models without a signature"),
        ({"device": "cpu"}, "'device' does nothing for python_function models"),
        ({"gpus": (1,)}, "'gpus' does nothing for python_function models"),
    ],
)
def test_what_does_nothing_is_refused(tmp_path: Path, settings: dict[str, Any], cause: str) -> None:
    folder = save_function(tmp_path / "m", lambda data, _: data, ONE, ONE)
    assert cause in refused(folder, **settings)


def test_the_models_own_configuration(tmp_path: Path) -> None:
    script = tmp_path / "model.py"
    script.write_text(
        "import mlflow\n"
        "class M(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input: list[str], params=None) -> list[str]:\n"
        "        return [context.model_config['word']] * len(model_input)\n"
        "mlflow.models.set_model(M())\n"
    )
    folder = tmp_path / "m"
    mlflow.pyfunc.save_model(
        folder, python_model=str(script), model_config={"word": "plain"}, pip_requirements=[]
    )
    text = {"input-0": objects([b"x", b"y"], (2, 1))}
    plain = load(folder)
    assert plain.infer(text, (), {})["output-0"].tolist() == [[b"plain"], [b"plain"]]
    model = load(folder, options={"config.word": "fancy"})
    assert model.infer(text, (), {})["output-0"].tolist() == [[b"fancy"], [b"fancy"]]
    assert "did you mean 'config.word'?" in refused(folder, options={"config.wort": "x"})


def with_module(folder: Path, result: int) -> Path:
    """A model with a module of its own, called ``own_module``."""
    source = folder.parent / f"source-{folder.name}"
    source.mkdir(parents=True)
    (source / "own_module.py").write_text(f"def result(): return {result}\n")

    def predict(data: Any, params: Any) -> Any:
        import own_module  # type: ignore[import-not-found]

        return data["a"] * 0 + own_module.result()

    code_paths = [str(source / "own_module.py")]
    return save_function(folder, predict, ONE, ONE, code_paths=code_paths)


def test_modules_of_two_versions_do_not_mix(tmp_path: Path) -> None:
    one, two = with_module(tmp_path / "1", 1), with_module(tmp_path / "2", 2)
    path = list(sys.path)
    first, again = load(one), load(one)
    assert first.infer(number(0), (), {})["a"].tolist() == [[1.0]]
    assert refused(two) == (
        "the model's module 'own_module' is loaded already, from another model or package; set "
        "isolation: process in model.yaml, so that each version has modules of its own"
    )
    first.close()
    assert again.infer(number(0), (), {})["a"].tolist() == [[1.0]]
    again.close()
    assert "own_module" not in sys.modules and sys.path == path
    second = load(two)
    assert second.infer(number(0), (), {})["a"].tolist() == [[2.0]]
    second.close()


def with_files(folder: Path, *files: str) -> Path:
    """A model whose modules are imported at a request, if at all."""
    code = []
    for file in files:
        path = folder.parent / f"source-{folder.name}" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
        code.append(str(path.parents[len(Path(file).parts) - 2] if "/" in file else path))
    return save_function(folder, lambda data, _: data, ONE, ONE, code_paths=code)


@pytest.mark.parametrize(
    ("file", "other"),
    [
        ("lazy_module.py", "lazy_module.py"),
        ("lazy_folder/inner.py", "lazy_folder/inner.py"),  # without __init__.py
        ("lazy_both/inner.py", "lazy_both.py"),
    ],
)
def test_modules_that_are_imported_later_do_not_mix(tmp_path: Path, file: str, other: str) -> None:
    name = Path(file).parts[0].removesuffix(".py")
    first = load(with_files(tmp_path / "1", file, "own_one.py"))
    assert name not in sys.modules
    second = with_files(tmp_path / "2", other, "own_two.py")
    assert refused(second) == (
        f"the model's module '{name}' is one of another loaded model as well; set isolation: "
        "process in model.yaml, so that each version has modules of its own"
    )
    beside = load(with_files(tmp_path / "3", "own_three.py"))
    first.close()
    load(second).close()
    beside.close()


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    def predict(data: Any, params: Any) -> Any:
        return data

    folder = save_function(tmp_path / "m", predict, ONE, ONE)
    document = yaml.safe_load((folder / "MLmodel").read_text())
    document["flavors"]["python_function"]["loader_module"] = "no_such_library.mlflow"
    edit(folder, **document)
    assert refused(folder) == (
        "the model needs the Python module 'no_such_library', which is not installed; type: pip "
        "install -r requirements.txt (the one beside MLmodel)"
    )


# --- the input example


def test_the_input_example_is_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import pandas

    mark = tmp_path / "ran"

    def predict(data: Any, params: Any) -> Any:
        mark.write_text(json.dumps(data.to_dict("list")))
        return data["a"]

    example = pandas.DataFrame({"a": [1.5, 2.5], "s": ["x", "é"]})
    both = columns(a="double", s="string")
    folder = save_function(tmp_path / "m", predict, both, ONE, example=example)
    mark.unlink(missing_ok=True)
    load(folder)
    assert json.loads(mark.read_text()) == {"a": [1.5, 2.5], "s": ["x", "é"]}
    (folder / "input_example.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert "the input example 'input_example.json' is not JSON" in caplog.text
    caplog.clear()
    edit(folder, saved_input_example_info={"artifact_path": "../../x", "type": "dataframe"})
    load(folder)
    assert "saved_input_example_info.artifact_path '../../x'" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        '{"columns": ["a"], "data": [["text"]]}',
        '{"columns": ["b"], "data": [[1]]}',
        '{"columns": ["a", "b"], "data": [[1]]}',
        '{"columns": 3, "data": [[1]]}',
        '{"columns": ["a"], "data": []}',
        '{"columns": ["a"], "data": 3}',
        '{"columns": ["a"], "data": [3]}',
        "[]",
        "3",
        "null",
    ],
)
def test_examples_that_do_not_fit_do_no_harm(tmp_path: Path, content: str) -> None:
    folder = save_function(tmp_path / "m", lambda data, _: data, ONE, ONE)
    (folder / "e.json").write_text(content)
    info = {"artifact_path": "e.json", "type": "dataframe", "pandas_orient": "split"}
    for kind in ("dataframe", "ndarray"):
        edit(folder, saved_input_example_info={**info, "type": kind})
        load(folder).close()


def test_array_examples(tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    def predict(data: Any, params: Any) -> Any:
        mark.write_text(f"{data.dtype} {data.tolist()}")
        return data

    kind = tensors((None, "float32", (-1, 2)))
    folder = save_function(tmp_path / "m", predict, kind, kind)
    (folder / "e.json").write_text("[[1, 2], [3, null]]")
    edit(folder, saved_input_example_info={"artifact_path": "e.json", "type": "ndarray"})
    load(folder).close()
    assert mark.read_text() == "float32 [[1.0, 2.0], [3.0, nan]]"


# --- without the library


def test_without_mlflow_the_gateway_starts_and_says_what_to_install(tmp_path: Path) -> None:
    save_function(tmp_path / "python" / "1", lambda data, _: data, ONE, ONE)
    save_onnx(tmp_path / "native" / "1")
    script = (
        "import sys; sys.modules.update(mlflow=None, pandas=None)\n"
        "from gateway.__main__ import main\n"
        "sys.exit(main())\n"
    )
    said = []
    for arguments in (["runtimes", "--json"], ["check", "--json", "--load", str(tmp_path)]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
            timeout=60,
        )
        said.append(json.loads(done.stdout))
    install = "mlflow is not installed; type: pip install 'sluicegate[mlflow]'"
    [report] = [each for each in said[0]["runtimes"] if each["name"] == "mlflow"]
    assert install in report["reason"]
    found = {each["model"]: each for each in said[1]["findings"]}
    assert found["native"]["state"] == "ok", found["native"]
    assert found["python"]["text"] == f"version 1: {install}"
