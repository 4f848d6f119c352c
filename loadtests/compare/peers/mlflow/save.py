"""Saves an ONNX file as an MLflow model: ``save.py FILE FOLDER THREADS``.

Runs in MLflow's environment.
"""

from __future__ import annotations

import sys

import mlflow.onnx
import onnx
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from onnx.helper import tensor_dtype_to_np_dtype


def schema(values: object) -> Schema:
    """What MLflow takes the JSON's numbers for."""
    specs = []
    for value in values:  # type: ignore[attr-defined]
        tensor = value.type.tensor_type
        shape = (-1, *(size.dim_value for size in tensor.shape.dim[1:]))
        specs.append(TensorSpec(tensor_dtype_to_np_dtype(tensor.elem_type), shape, value.name))
    return Schema(specs)


def main() -> None:
    """Writes the folder."""
    path, folder, threads = sys.argv[1:]
    model = onnx.load(path)
    mlflow.onnx.save_model(
        model,
        folder,
        signature=ModelSignature(schema(model.graph.input), schema(model.graph.output)),
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={
            "intra_op_num_threads": int(threads),
            "inter_op_num_threads": 1,
        },
        pip_requirements=[],
    )


if __name__ == "__main__":
    main()
