"""Model repositories with files for Triton's Python backend, served here and by Triton alike."""

from __future__ import annotations

from pathlib import Path
from typing import Final

PLAIN: Final = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        import json
        config = json.loads(args["model_config"])
        self.dtype = pb_utils.triton_string_to_numpy(
            pb_utils.get_output_config_by_name(config, "sum")["data_type"])
        assert pb_utils.get_input_config_by_name(config, "a")["dims"] == [4]
        assert pb_utils.get_output_config_by_name(config, "nothing") is None

    def execute(self, requests):
        answers = []
        for request in requests:
            a = pb_utils.get_input_tensor_by_name(request, "a")
            b = pb_utils.get_input_tensor_by_name(request, "b").as_numpy()
            assert list(a.shape()) == [4] and a.is_cpu() and a.name() == "a"
            assert pb_utils.get_input_tensor_by_name(request, "c") is None
            a = a.as_numpy()
            b += 0  # arrays may be written into
            answers.append(pb_utils.InferenceResponse(output_tensors=[
                pb_utils.Tensor("sum", (a + b).astype(self.dtype)),
                pb_utils.Tensor("difference", (a - b).astype(self.dtype)),
            ]))
        return answers
"""
TEXT: Final = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
            shout = np.array([[t.decode().upper().encode() for t in row] for row in text], object)
            length = np.array([[len(t) for t in row] for row in text], np.int32)
            raw = pb_utils.serialize_byte_tensor(text)
            again = pb_utils.deserialize_bytes_tensor(raw).reshape(text.shape)
            assert (again == text).all()
            answers.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("shout", shout), pb_utils.Tensor("length", length)]))
        return answers
"""
COMPLETED: Final = """
import json
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        config = auto_complete_model_config
        assert config.as_dict()["name"] == "completed"
        config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [2]})
        config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [2]})
        config.set_max_batch_size(4)
        config.set_dynamic_batching()
        return config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        assert config["max_batch_size"] == 4 and "dynamic_batching" in config
        assert args["model_name"] == "completed" and args["model_version"] == "1"
        assert args["model_instance_kind"] == "CPU" and args["model_instance_device_id"] == "0"
        assert args["model_instance_name"].startswith("completed_0")

    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y",
            2 * pb_utils.get_input_tensor_by_name(r, "x").as_numpy())]) for r in requests]
"""
ERRORS: Final = """
import triton_python_backend_utils as pb_utils

CODES = ["UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED",
         "ALREADY_EXISTS", "CANCELLED"]

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            kind = int(x.ravel()[0])
            if kind == 100:
                raise ValueError("all of it")
            if kind == 101:
                raise pb_utils.TritonModelException("a model's exception")
            if kind == 102:
                error = pb_utils.TritonError("without a code")
                answers.append(pb_utils.InferenceResponse(output_tensors=[], error=error))
            elif kind >= 0:
                code = getattr(pb_utils.TritonError, CODES[kind])
                error = pb_utils.TritonError(f"kind {kind}", code)
                assert error.message() == f"kind {kind}"
                answers.append(pb_utils.InferenceResponse(error=error))
            else:
                answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]))
        return answers
"""
PARAMETERS: Final = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.factor = parameters["factor"]["string_value"]

    def execute(self, requests):
        answers = []
        for request in requests:
            said = {"parameters": json.loads(request.parameters()), "id": request.request_id(),
                    "factor": self.factor, "correlation": request.correlation_id(),
                    "timeout": request.timeout(), "flags": request.flags(),
                    "cancelled": request.is_cancelled()}
            text = np.array([json.dumps(said, sort_keys=True).encode()], dtype=np.object_)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("said", text)]))
        return answers
"""
REPEAT: Final = """
import threading
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        import json
        assert pb_utils.using_decoupled_model_transaction_policy(json.loads(args["model_config"]))

    def execute(self, requests):
        for request in requests:
            count = int(pb_utils.get_input_tensor_by_name(request, "count").as_numpy()[0])
            sender = request.get_response_sender()
            threading.Thread(target=self.answer, args=(sender, count)).start()
        return None

    def answer(self, sender, count):
        for index in range(abs(count)):
            tensor = pb_utils.Tensor("index", np.array([index], np.int32))
            sender.send(pb_utils.InferenceResponse([tensor]))
        if count < 0:
            sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("below zero")))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        try:
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as error:
            assert "closed" in str(error)
"""
BLS: Final = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            asked = pb_utils.InferenceRequest(
                model_name="plain", requested_output_names=["sum"],
                inputs=[pb_utils.Tensor("a", x), pb_utils.Tensor("b", x)])
            answer = asked.exec()
            assert not answer.has_error(), answer.error().message()
            (total,) = answer.output_tensors()
            assert pb_utils.get_output_tensor_by_name(answer, "difference") is None
            wrong = pb_utils.InferenceRequest(
                model_name="nobody", requested_output_names=["sum"], inputs=[]).exec()
            assert wrong.has_error() and wrong.error().message()
            failed = pb_utils.InferenceRequest(
                model_name="errors", requested_output_names=["y"],
                inputs=[pb_utils.Tensor("x", np.array([[3]], np.int32))]).exec()
            assert failed.has_error() and "kind 3" in failed.error().message()
            many = pb_utils.InferenceRequest(
                model_name="repeat", requested_output_names=["index"],
                inputs=[pb_utils.Tensor("count", np.array([3], np.int32))]).exec(decoupled=True)
            seen = [pb_utils.get_output_tensor_by_name(each, "index").as_numpy()[0]
                    for each in many if each.output_tensors()]
            assert seen == [0, 1, 2], seen
            y = pb_utils.get_output_tensor_by_name(answer, "sum").as_numpy()
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return answers
"""
ASYNC_BLS: Final = """
import asyncio
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    async def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            asked = [pb_utils.InferenceRequest(
                model_name="plain", requested_output_names=["sum", "difference"],
                inputs=[pb_utils.Tensor("a", x), pb_utils.Tensor("b", k * x)]).async_exec()
                for k in range(3)]
            given = await asyncio.gather(*asked)
            y = sum(pb_utils.get_output_tensor_by_name(each, "difference").as_numpy()
                    for each in given)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", y)]))
        return answers
"""
DLPACK: Final = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x")
            tripled = pb_utils.Tensor("y", np.from_dlpack(x) * 3)
            y = pb_utils.Tensor.from_dlpack("y", tripled.to_dlpack())
            z = pb_utils.Tensor.from_dlpack("z", x)
            answers.append(pb_utils.InferenceResponse([y, z]))
        return answers
"""
WANTED: Final = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            names = ",".join(sorted(request.requested_output_names()))
            answers.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("y", x), pb_utils.Tensor("z", -x),
                pb_utils.Tensor("names", np.array([names.encode()], dtype=np.object_))]))
        return answers
"""
LOGS: Final = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        logger = pb_utils.Logger
        logger.log_info("an info line")
        logger.log_warn("a warning line")
        logger.log_error("an error line")
        logger.log_verbose("a verbose line")
        logger.log("a line by level", logger.WARNING)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y",
            pb_utils.get_input_tensor_by_name(r, "x").as_numpy())]) for r in requests]
"""
KINDS: Final = """
import numpy as np
import triton_python_backend_utils as pb_utils

NAMES = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
         "FP16", "FP32", "FP64"]

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            tensors = []
            for name in NAMES:
                tensor = pb_utils.get_input_tensor_by_name(request, name)
                dtype = pb_utils.triton_string_to_numpy("TYPE_" + name)
                assert tensor.as_numpy().dtype == dtype
                number = pb_utils.numpy_to_triton_type(np.dtype(dtype).type)
                assert pb_utils.triton_to_numpy_type(number) in (dtype, np.bool_)
                tensors.append(pb_utils.Tensor(name, tensor.as_numpy()))
            answers.append(pb_utils.InferenceResponse(tensors))
        return answers
"""
WRONG: Final = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        kind = int(pb_utils.get_input_tensor_by_name(requests[0], "x").as_numpy().ravel()[0])
        if kind == 0:
            return None
        if kind == 1:
            return []
        if kind == 2:
            return ["no response" for _ in requests]
        return {"y": 1}
"""
SENDERS: Final = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            answer = pb_utils.InferenceResponse([pb_utils.Tensor("y", x + 1)])
            request.get_response_sender().send(
                answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""


def config(inputs: str, outputs: str, *, batch: int | None = 0, more: str = "") -> str:
    """A ``config.pbtxt``; tensors as ``name TYPE [dims]``, with semicolons between them."""

    def tensors(kind: str, text: str) -> str:
        lines = []
        for each in filter(None, text.split(";")):
            name, datatype, dims = each.split(maxsplit=2)
            said = f'name: "{name}" data_type: TYPE_{datatype} dims: {dims}'
            lines.append(f"{kind} [ {{ {said} }} ]\n")
        return "".join(lines)

    size = "" if batch is None else f"max_batch_size: {batch}\n"
    group = "instance_group [ { count: 1 kind: KIND_CPU } ]\n"
    said = tensors("input", inputs) + tensors("output", outputs)
    return f'backend: "python"\n{size}{said}{group}{more}\n'


_ALL: Final = (
    "BOOL [3];UINT8 [3];UINT16 [3];UINT32 [3];UINT64 [3];INT8 [3];INT16 [3];INT32 [3];INT64 [3];"
    "FP16 [3];FP32 [3];FP64 [3]"
)
_EACH: Final = ";".join(f"{each.split()[0]} {each}" for each in _ALL.split(";"))
_XY: Final = ("x FP32 [-1]", "y FP32 [-1]")
_ROWS: Final = "dynamic_batching { max_queue_delay_microseconds: 1000 }"

FILES: Final[dict[str, tuple[str, str]]] = {
    "plain": (config("a FP32 [4];b FP32 [4]", "sum FP32 [4];difference FP32 [4]"), PLAIN),
    "text": (config("text STRING [-1]", "shout STRING [-1];length INT32 [-1]", batch=8,
                    more=_ROWS), TEXT),
    "completed": (config("", "", batch=None), COMPLETED),
    "errors": (config("x INT32 [1]", "y INT32 [1]", batch=8, more=_ROWS), ERRORS),
    "parameters": (config("x FP32 [1]", "said STRING [1]",
                          more='parameters { key: "factor" value { string_value: "2.5" } }'),
                   PARAMETERS),
    "repeat": (config("count INT32 [1]", "index INT32 [1]",
                      more="model_transaction_policy { decoupled: true }"), REPEAT),
    "bls": (config("x FP32 [4]", "y FP32 [4]"), BLS),
    "async_bls": (config("x FP32 [4]", "y FP32 [4]"), ASYNC_BLS),
    "dlpack": (config("x FP32 [-1]", "y FP32 [-1];z FP32 [-1]"), DLPACK),
    "wanted": (config("x FP32 [1]", "y FP32 [1];z FP32 [1];names STRING [1]"), WANTED),
    "logs": (config(*_XY), LOGS),
    "kinds": (config(_EACH, _EACH), KINDS),
    "wrong": (config("x INT32 [1]", "y INT32 [1]"), WRONG),
    "senders": (config(*_XY, batch=4), SENDERS),
}  # fmt: skip
"""Name → config.pbtxt and model.py."""


def write_repository(folder: Path) -> Path:
    """All of them as a directory of models."""
    for name, (text, code) in FILES.items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(code)
        (folder / name / "config.pbtxt").write_text(text)
    return folder
