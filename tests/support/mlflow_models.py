"""MLflow model directories for tests, written by mlflow itself.

Import it after `runtimes.mlflow_library`, which keeps mlflow quiet.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
from onnx import TensorProto as T
from onnx import helper as h

import runtimes.mlflow_library  # noqa: F401

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mlflow.onnx
    import mlflow.pyfunc
    import mlflow.pytorch
    import mlflow.sklearn
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec


def columns(**types: str) -> Schema:
    """A schema of columns; a type that ends in ``?`` is optional."""
    return Schema([ColSpec(t.rstrip("?"), n, required=t[-1] != "?") for n, t in types.items()])


def tensors(*specs: tuple[str | None, str, tuple[int, ...]]) -> Schema:
    """A schema of tensors: name, dtype, shape."""
    return Schema([TensorSpec(np.dtype(dtype), shape, name) for name, dtype, shape in specs])


def save_function(
    folder: Path,
    predict: Any,
    inputs: Schema | None,
    outputs: Schema | None,
    *,
    example: Any = None,
    params: list[tuple[str, str, Any]] | None = None,
    **more: Any,
) -> Path:
    """A python_function model whose `predict(data, params)` is given."""

    def method(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        return predict(model_input, params)

    # Without a type mlflow warns wherever the model is loaded. This one changes nothing; it is put
    # here as itself, because a name could not be looked up there.
    method.__annotations__["model_input"] = pd.DataFrame
    function = type("Function", (mlflow.pyfunc.PythonModel,), {"predict": method})

    schema = None if params is None else ParamSchema([ParamSpec(n, t, d) for n, t, d in params])
    signature = ModelSignature(inputs=inputs, outputs=outputs, params=schema) if inputs else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            folder,
            python_model=function(),
            signature=signature,
            input_example=example,
            pip_requirements=[],
            **more,
        )
    return folder


def save_sklearn(folder: Path) -> tuple[Path, Any, pd.DataFrame]:
    """A logistic regression on iris, with column names; the model and the data beside."""
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    data, target = load_iris(return_X_y=True, as_frame=True)
    model = LogisticRegression(max_iter=500).fit(data, target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.sklearn.save_model(
            model,
            folder,
            signature=infer_signature(data, model.predict(data)),
            input_example=data.head(3),
            pip_requirements=[],
            serialization_format="cloudpickle",
        )
    return folder, model, data


def save_onnx(folder: Path) -> Path:
    """``y = x + x``, FP32 [-1, 3]."""
    x, y = (h.make_tensor_value_info(name, T.FLOAT, ["N", 3]) for name in "xy")
    graph = h.make_graph([h.make_node("Add", ["x", "x"], ["y"])], "g", [x], [y])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    ones = {"x": np.ones((2, 3), np.float32)}
    signature = infer_signature(ones, {"y": ones["x"]})
    mlflow.onnx.save_model(
        model, folder, signature=signature, input_example=ones, pip_requirements=[]
    )
    return folder


def save_torch(folder: Path, form: str) -> Path:
    """``y = 2 x``, FP32 [-1, 3]; `form` is script, program or pickle."""
    import torch

    class Twice(torch.nn.Module):
        def forward(self, x):  # type: ignore[no-untyped-def]
            return x * 2

    model: Any = Twice().eval()
    kind = tensors((None, "float32", (-1, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pytorch.save_model(
            torch.jit.trace(model, torch.ones(2, 3)) if form == "script" else model,
            folder,
            signature=ModelSignature(inputs=kind, outputs=kind),
            input_example=np.ones((2, 3), np.float32),
            pip_requirements=[],
            serialization_format="pt2" if form == "program" else "pickle",
        )
    return folder
