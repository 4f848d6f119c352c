"""The built-in runtimes pass the suite that third parties run on theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper as h

from gateway.model_settings import ModelSettings, TensorSettings
from gateway.tensors import Array
from runtimes.conformance import RuntimeConformance
from runtimes.interface import Artifact, Model
from runtimes.mlflow import MlflowRuntime
from runtimes.onnx import OnnxRuntime
from runtimes.python import PythonRuntime
from tests.support.mlflow_models import columns, save_function, save_onnx, save_torch, tensors

info = h.make_tensor_value_info


class OnnxCase(RuntimeConformance):
    runtime = OnnxRuntime()
    library = ("onnxruntime",)
    settings: ClassVar[ModelSettings] = ModelSettings()

    def graph(self) -> onnx.GraphProto:
        raise NotImplementedError

    def artifact(self, folder: Path) -> Artifact:
        opset = h.make_opsetid("", 18)
        model = h.make_model(self.graph(), opset_imports=[opset], ir_version=9)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return Artifact("case", "1", folder, self.settings)


class TestOnnxAdd(OnnxCase):
    settings = ModelSettings(instances=3)

    def graph(self) -> onnx.GraphProto:
        one = h.make_tensor("one", T.FLOAT, [1], [1.0])
        nodes = [h.make_node("Add", ["x", "one"], ["y"]), h.make_node("Sub", ["x", "one"], ["z"])]
        x, y, z = (info(name, T.FLOAT, ["N", 4]) for name in "xyz")
        return h.make_graph(nodes, "g", [x], [y, z], [one])


class TestOnnxMatrixProduct(OnnxCase):
    def graph(self) -> onnx.GraphProto:
        weights = np.random.default_rng(0).random((16, 3)).astype(np.float32)
        w = h.make_tensor("w", T.FLOAT, weights.shape, weights.ravel())
        nodes = [
            h.make_node("MatMul", ["x", "w"], ["scores"]),
            h.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        ]
        outputs = [info("scores", T.FLOAT, ["N", 3]), info("label", T.INT64, ["N"])]
        return h.make_graph(nodes, "g", [info("x", T.FLOAT, ["N", 16])], outputs, [w])


class TestOnnxText(OnnxCase):
    def graph(self) -> onnx.GraphProto:
        node = h.make_node("Identity", ["x"], ["y"])
        x, y = (info(name, T.STRING, ["N", 2]) for name in "xy")
        return h.make_graph([node], "g", [x], [y])


class TestOnnxBfloat16(OnnxCase):
    def graph(self) -> onnx.GraphProto:
        nodes = [h.make_node("Identity", ["x"], ["y"]), h.make_node("Cast", ["x"], ["z"], to=1)]
        x, y = (info(name, T.BFLOAT16, ["N", 4]) for name in "xy")
        return h.make_graph(nodes, "g", [x], [y, info("z", T.FLOAT, ["N", 4])])


class TestOnnxScalar(OnnxCase):
    """No batch dimension at all; several datatypes."""

    def graph(self) -> onnx.GraphProto:
        nodes = [
            h.make_node("Identity", ["half"], ["half_out"]),
            h.make_node("Not", ["flag"], ["flag_out"]),
        ]
        inputs = [info("half", T.FLOAT16, []), info("flag", T.BOOL, [2, "N"])]
        outputs = [info("half_out", T.FLOAT16, []), info("flag_out", T.BOOL, [2, "N"])]
        return h.make_graph(nodes, "g", inputs, outputs)

    def bad_inputs(self, model: Model) -> dict[str, Array] | None:
        # ONNX Runtime lets any shape pass where the file says scalar; the gateway does not.
        return {**self.inputs(model, 1), "half": np.zeros((), np.float64)}


class TestOnnxGather(OnnxCase):
    """Bad values, not bad shapes."""

    def graph(self) -> onnx.GraphProto:
        table = h.make_tensor("table", T.FLOAT, [3, 2], range(6))
        node = h.make_node("Gather", ["table", "index"], ["row"])
        outputs = [info("row", T.FLOAT, ["N", 2])]
        return h.make_graph([node], "g", [info("index", T.INT64, ["N"])], outputs, [table])

    def bad_inputs(self, model: Model) -> dict[str, Array] | None:
        return {"index": np.array([1, 99], np.int64)}


class MlflowCase(RuntimeConformance):
    runtime = MlflowRuntime()


class TestMlflowOnnx(MlflowCase):
    def artifact(self, folder: Path) -> Artifact:
        return Artifact("case", "1", save_onnx(folder / "model").parent, ModelSettings())


class TestMlflowTorchScript(MlflowCase):
    def artifact(self, folder: Path) -> Artifact:
        return Artifact("case", "1", save_torch(folder / "model", "script").parent, ModelSettings())

    def bad_inputs(self, model: Model) -> dict[str, Array] | None:
        return None  # it takes any shape


class TestMlflowColumns(MlflowCase):
    """A python_function over a DataFrame with numbers and text."""

    library = ("mlflow", "pandas")

    def artifact(self, folder: Path) -> Artifact:
        kinds = columns(a="double", b="long", s="string", o="integer?")

        def predict(data: Any, params: Any) -> Any:
            return {"sum": data["a"] + data["b"], "upper": [text.upper() for text in data["s"]]}

        outputs = columns(sum="double", upper="string")
        save_function(folder / "model", predict, kinds, outputs)
        return Artifact("case", "1", folder, ModelSettings(instances=2))


class TestMlflowTensors(MlflowCase):
    """A python_function over named arrays."""

    def artifact(self, folder: Path) -> Artifact:
        def predict(data: Any, params: Any) -> Any:
            return {"y": data["x"] * 2, "t": data["t"]}

        kinds = (("x", "float32", (-1, 3)), ("t", "str", (-1,)))
        outputs = (("y", "float32", (-1, 3)), ("t", "object", (-1,)))
        save_function(folder / "model", predict, tensors(*kinds), tensors(*outputs))
        return Artifact("case", "1", folder, ModelSettings())


class PythonCase(RuntimeConformance):
    runtime = PythonRuntime()
    any_option = True  # they are the model's own
    settings: ClassVar[ModelSettings] = ModelSettings()
    code = ""

    def artifact(self, folder: Path) -> Artifact:
        (folder / "model.py").write_text(self.code)
        return Artifact("case", "1", folder, self.settings)


class TestPythonClass(PythonCase):
    settings = ModelSettings(instances=3)
    code = """
import numpy as np
class Model:
    signature = {"inputs": {"x": ("FP32", [-1, 4]), "t": ("BYTES", [-1])},
                 "outputs": {"y": ("FP32", [-1, 4]), "u": ("BYTES", [-1])}}
    def infer(self, inputs):
        if inputs["x"].ndim != 2:
            raise ValueError("two dimensions are needed")
        return {"y": np.sqrt(inputs["x"]), "u": inputs["t"]}
"""


class TestPythonCoroutine(PythonCase):
    code = TestPythonClass.code.replace("def infer", "async def infer")


class TestPythonTriton(PythonCase):
    """Triton's own kind of file."""

    settings = ModelSettings(
        max_batch_size=8,
        instances=2,
        inputs=(TensorSettings(name="x", datatype="FP32", dims=(4,)),),
        outputs=(TensorSettings(name="y", datatype="FP32", dims=(4,)),),
    )
    code = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            if x.ndim != 2:
                raise ValueError("two dimensions are needed")
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x * 2)]))
        return answers
"""
