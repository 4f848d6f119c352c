"""Files for Triton's Python backend, without a server around them."""

from __future__ import annotations

import asyncio
import gc
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    InferenceFailed,
    InvalidInput,
    ModelLoadError,
    NotFound,
    Unavailable,
    Unsupported,
)
from gateway.lifecycle.loader import load_here
from gateway.model_settings import ModelSettings, TensorSettings
from runtimes.interface import Answer, Artifact, AsyncModel, Model
from runtimes.python import PythonRuntime
from runtimes.python.context import make_request
from runtimes.python.pb import instance as instance_module
from runtimes.python.pb.backend import DecoupledTritonModel
from runtimes.python.pb.errors import ErrorCode, TritonError, TritonModelException, to_ours
from runtimes.python.pb.messages import InferenceRequest, InferenceResponse
from runtimes.python.pb.model_config import ModelConfig
from runtimes.python.pb.tensor import Tensor, deserialize_bytes_tensor, serialize_byte_tensor

Load = Callable[..., Model]
XY: dict[str, Any] = {
    "inputs": (TensorSettings(name="x", datatype="INT32", dims=(1,)),),
    "outputs": (TensorSettings(name="y", datatype="INT32", dims=(1,)),),
}
HEAD = """
import json, threading
import numpy as np
import triton_python_backend_utils as pb_utils

def x_of(request):
    return pb_utils.get_input_tensor_by_name(request, "x").as_numpy()

def answer(y):
    return pb_utils.InferenceResponse([pb_utils.Tensor("y", np.asarray(y, np.int32))])

class TritonPythonModel:
"""


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Loads a model from the body of its class; closed at the end."""
    made: list[Model] = []

    def do(body: str, *, folder: str = "m", **settings: Any) -> Model:
        at = tmp_path / folder / "1"
        at.mkdir(parents=True, exist_ok=True)
        (at / "model.py").write_text(HEAD + textwrap.indent(textwrap.dedent(body), "    "))
        artifact = Artifact(folder, "1", at, ModelSettings(**{**XY, **settings}))
        made.append(PythonRuntime().load(artifact))
        return made[-1]

    yield do
    for model in made:
        model.close()


def request(value: int, **more: Any) -> Any:
    made = make_request("m", {"x": np.array([value], np.int32)}, outputs=more.pop("outputs", ()))
    for name, each in more.items():
        setattr(made, name, each)
    return made


def each(model: Model, *values: int, gone: Callable[[int], bool] = lambda n: False) -> list[Any]:
    """Values or exceptions."""
    answers = model.infer_each([request(value) for value in values], gone)
    return [a if isinstance(a, Exception) else int(a["y"][0]) for a in answers]


def test_requests_reach_execute_one_by_one(load: Load) -> None:
    model = load("""
        def execute(self, requests):
            answers = []
            for n, r in enumerate(requests):
                if x_of(r)[0] == 2:
                    error = pb_utils.TritonError("two", pb_utils.TritonError.NOT_FOUND)
                    answers.append(pb_utils.InferenceResponse(error=error))
                else:
                    answers.append(answer(x_of(r) * 10 + len(requests)))
            return answers
        """)
    assert model.separate
    assert not model.probed
    first, second, third = each(model, 1, 2, 3)
    assert (first, third) == (13, 33)
    assert isinstance(second, NotFound)
    assert str(second) == "two"
    assert model.infer({"x": np.array([5], np.int32)}, (), {})["y"].tolist() == [51]
    with pytest.raises(NotFound):
        model.infer({"x": np.array([2], np.int32)}, (), {})


def test_what_a_request_says(load: Load) -> None:
    model = load("""
        def execute(self, requests):
            (r,) = requests
            said = {"p": json.loads(r.parameters()), "id": r.request_id(), "t": r.timeout(),
                    "o": r.requested_output_names(), "m": r.model_name(), "c": r.is_cancelled(),
                    "k": r.correlation_id()}
            response = answer([1])
            return [pb_utils.InferenceResponse(response.output_tensors(), parameters=said["p"] | {
                "said": json.dumps(said)})]
        """)
    asked = request(
        1, id="i", parameters={"a": 1, "timeout": 7, "triton_x": 1}, timeout_us=7, outputs=("y",)
    )
    (given_answer,) = model.infer_each([asked], lambda n: True)
    assert isinstance(given_answer, Answer)
    assert given_answer.parameters is not None
    said = {
        "p": {"a": 1}, "id": "i", "t": 7, "o": ["y"], "m": "m", "c": True, "k": 0,
    }  # fmt: skip
    import json

    assert json.loads(str(given_answer.parameters["said"])) == said


def test_arrays_may_be_written_into_without_harm(load: Load) -> None:
    model = load("""
        def execute(self, requests):
            for r in requests:
                x = x_of(r)
                x += 1
            return [answer(x_of(r)) for r in requests]
        """)
    array = np.array([4], np.int32)
    array.flags.writeable = False
    assert model.infer({"x": array}, (), {})["y"].tolist() == [5]
    assert array.tolist() == [4]


def test_instances_have_modules_and_threads_of_their_own(load: Load) -> None:
    model = load(
        """
        barrier = threading.Barrier(2, timeout=30)
        def initialize(self, args):
            self.thread = threading.current_thread()
            self.name = args["model_instance_name"]
            pb_utils.mine = getattr(pb_utils, "mine", 0) + 1
        def execute(self, requests):
            assert threading.current_thread() is self.thread and pb_utils.mine == 1
            return [answer([int(self.name[-1])]) for r in requests]
        def finalize(self):
            assert threading.current_thread() is self.thread
        """,
        instances=2,
    )
    assert model.instances == 2
    seen = {each(model, 1)[0] for _ in range(4)}
    assert seen == {0, 1}


def test_each_model_has_utilities_of_its_own_while_it_is_loaded(load: Load) -> None:
    body = """
        def execute(self, requests):
            import triton_python_backend_utils as again
            assert again is pb_utils
            return [answer([id(pb_utils) % 1000]) for r in requests]
        """
    one, two = load(body, folder="one"), load(body, folder="two")
    name = "triton_python_backend_utils"
    assert name in sys.modules
    assert each(one, 1) != []
    one.close()
    assert each(two, 1) != []
    assert name in sys.modules
    two.close()
    assert name not in sys.modules


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return None", "the model forgot a request"),
        ("return []", "execute returned 0 responses to 1 requests"),
        ("return {}", "execute returned dict, but must return a list"),
        ("return ['a']", "a list with str in it"),
        ("raise KeyError('k')", "the model failed: KeyError: 'k'"),
        ("raise SystemExit(3)", "the model failed: SystemExit: 3"),
        ("raise pb_utils.TritonModelException('m')", "the model failed: TritonModelException: m"),
        ("return [answer([1]), answer([2])]", "2 responses to 1 requests"),
        ("requests[0].get_response_sender().send(flags=1)", "the model sent no response"),
        (
            "s = requests[0].get_response_sender(); s.send(answer([1])); s.send(answer([2]), 1)",
            "several responses to a request, but it is not decoupled",
        ),
        ("requests[0].set_release_flags(2)", "rescheduling a request is not supported"),
        ("requests[0].set_flags(1)", "models here keep no sequences"),
        ("pb_utils.load_model('x')", "load_model is not supported"),
        ("pb_utils.unload_model(model_name='x')", "unload_model is not supported"),
        ("requests[0].get_response_sender().send(answer([1]), 5)", "Unsupported flag"),
        ("requests[0].get_response_sender().send()", "must be provided when"),
        ("pb_utils.Tensor('y', np.array(['a']))", "which Triton has no datatype for"),
        ("pb_utils.Tensor.from_dlpack('y', 3)", "neither a DLPack capsule"),
        ("pb_utils.InferenceRequest(model_name='o')", "needs inputs, requested_output_names"),
        ("pb_utils.MetricFamily('nv_x', 'x', 0)", "does not begin with sluice_ or nv_"),
    ],
)
def test_what_a_model_does_wrong(load: Load, body: str, said: str) -> None:
    model = load(f"def execute(self, requests):\n    {body}")
    with pytest.raises(InferenceFailed) as caught:
        model.infer({"x": np.array([1], np.int32)}, (), {})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    ok = load("def execute(self, requests):\n    return [answer(x_of(r)) for r in requests]")
    assert each(ok, 3) == [3]


def test_asking_another_model_without_a_gateway_is_an_error_response(load: Load) -> None:
    model = load("""
        async def execute(self, requests):
            asked = pb_utils.InferenceRequest(model_name="o", requested_output_names=["y"],
                inputs=[pb_utils.Tensor("x", np.zeros(1, np.int32))], timeout=5,
                preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
                trace=requests[0].trace())
            one, two = asked.exec(), await asked.async_exec()
            many = list(asked.exec(decoupled=True))
            assert one.has_error() and two.has_error() and many[0].has_error()
            assert one.error().code() == pb_utils.TritonError.INTERNAL
            return [pb_utils.InferenceResponse(error=one.error()) for r in requests]
        """)
    (failed,) = each(model, 1)
    assert "no gateway runs here" in str(failed)


# --- decoupled


REPEAT = """
def initialize(self, args):
    self.folder = args["model_repository"]
def execute(self, requests):
    for r in requests:
        threading.Thread(target=self.go, args=(r.get_response_sender(), int(x_of(r)[0]))).start()
def go(self, sender, n):
    for i in range(abs(n)):
        sender.send(answer([i]))
    if n < 0:
        while not sender.is_cancelled():
            threading.Event().wait(0.005)
        open(self.folder + "/cancelled", "w").close()
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    try:
        sender.send(answer([9]))
    except pb_utils.TritonModelException as error:
        assert "has been closed" in str(error)
    else:
        raise AssertionError
"""


async def taken(model: AsyncModel, value: int) -> list[int]:
    return [int(a["y"][0]) async for a in model.stream_each(request(value))]


def test_decoupled_answers_come_from_any_thread(load: Load, tmp_path: Path) -> None:
    model = load(REPEAT, decoupled=True)
    assert isinstance(model, DecoupledTritonModel)
    assert model.decoupled

    async def go() -> None:
        assert await taken(model, 3) == [0, 1, 2]
        assert await taken(model, 0) == []
        assert await asyncio.gather(*(taken(model, n) for n in range(6))) == [
            list(range(n)) for n in range(6)
        ]
        assert await taken(model, 2000) == list(range(2000)), "more than may wait"
        answers = model.stream_each(request(-2))
        await anext(answers)
        await answers.aclose()  # type: ignore[attr-defined]
        while not (tmp_path / "m" / "cancelled").exists():
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(go(), 60))
    assert [int(a["y"][0]) for a in model.stream({"x": np.array([2], np.int32)}, (), {})] == [0, 1]
    with pytest.raises(InferenceFailed, match="ask for a stream"):
        model.infer({"x": np.array([2], np.int32)}, (), {})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return []", "a decoupled model must return None"),
        ("raise ValueError('v')", "the model failed: ValueError: v"),
        ("pass", "the model forgot a request"),
        ("requests[0].get_response_sender().send(answer([1]))", "the model forgot a request"),
        (
            "requests[0].get_response_sender().send(pb_utils.InferenceResponse("
            "error=pb_utils.TritonError('e', pb_utils.TritonError.UNSUPPORTED)))",
            "e",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["", "async "])
def test_what_a_decoupled_model_does_wrong(load: Load, kind: str, body: str, said: str) -> None:
    if kind and body == "return []":
        pytest.skip("what a coroutine returns is not looked at, as in Triton")
    model = load(f"{kind}def execute(self, requests):\n    {body}", decoupled=True)
    assert isinstance(model, AsyncModel)
    with pytest.raises((InferenceFailed, Unsupported), match=said):
        asyncio.run(asyncio.wait_for(taken(model, 1), 30))


# --- configuration


COMPLETE = """
@staticmethod
def auto_complete_config(config):
    config.add_input({"name": "a", "data_type": "TYPE_STRING", "dims": [-1], "optional": True})
    config.add_output({"name": "b", "data_type": "TYPE_FP32", "dims": [2]})
    config.set_max_batch_size(3)
    CHANGE
    return config
def initialize(self, args):
    self.args = args
    assert json.loads(args["model_config"])["max_batch_size"] == 3
def execute(self, requests): ...
"""


def test_auto_complete_config_decides(load: Load, tmp_path: Path) -> None:
    none: dict[str, Any] = {"inputs": (), "outputs": ()}
    model = load(COMPLETE.replace("CHANGE", ""), **none)
    assert [repr(spec) for spec in (*model.inputs, *model.outputs)] == [
        "a BYTES [-1, -1]",
        "b FP32 [-1, 2]",
    ]
    assert model.inputs[0].optional
    assert (model.max_batch_size, model.joined, model.decoupled) == (3, False, False)
    model = load(COMPLETE.replace("CHANGE", "config.set_dynamic_batching()"), **none)
    assert model.joined
    decoupled = "config.set_model_transaction_policy({'decoupled': True})"
    assert load(COMPLETE.replace("CHANGE", decoupled), **none).decoupled
    load(COMPLETE.replace("CHANGE", ""), folder="plain", **none)
    settings = ModelSettings(**none, max_batch_size=2)
    artifact = Artifact("plain", "1", tmp_path / "plain" / "1", settings)
    loaded = load_here(artifact, PythonRuntime(), 64, lambda runtime: None)
    assert loaded.findings.max_batch_size == 3, "what the file says last counts, as in Triton"
    loaded.model.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("config.add_input({'name': 'a'})", "is missing 'data_type'"),
        ("config.add_input({'name': 'a', 'x': 1})", "has no property 'x'"),
        ("config.add_input({'name': 'a', 'data_type': 'TYPE_FP32', 'dims': [1]})", "data_type"),
        ("config.set_max_batch_size(2)", "the configuration says max_batch_size 3"),
        ("config.set_model_transaction_policy({'x': 1})", "no property 'x'"),
        ("return 3", "auto_complete_config returned int"),
        ("1 / 0", "model.py, line 19: ZeroDivisionError"),
        ("config.add_output({'name': 'c', 'data_type': 'FP32', 'dims': [1]})", "data_type FP32"),
        ("config.add_output({'name': 'c', 'data_type': 'TYPE_FP32', 'dims': 3})", "dims 3"),
    ],
)
def test_what_auto_complete_config_does_wrong(load: Load, change: str, said: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load(COMPLETE.replace("CHANGE", change), inputs=(), outputs=())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("x = 1", "TritonPythonModel has no method execute"),
        ("def initialize(self, args): 1 / 0\ndef execute(self, r): ...", "line 13: ZeroDivision"),
        ("def __init__(self, x): ...\ndef execute(self, r): ...", "initialize failed: TypeError"),
    ],
)
def test_what_does_not_load(load: Load, body: str, said: str) -> None:
    with pytest.raises(ModelLoadError, match=said):
        load(body)
    assert "triton_python_backend_utils" not in sys.modules


def test_a_model_without_a_signature_says_how_to_give_it_one(load: Load) -> None:
    with pytest.raises(ModelLoadError, match="or with add_input in auto_complete_config"):
        load("def execute(self, requests): ...", inputs=())


def test_reshape_is_between_client_and_model(load: Load) -> None:
    x = TensorSettings(name="x", datatype="INT32", dims=(2, 2), reshape=(4,))
    y = TensorSettings(name="y", datatype="INT32", dims=(4,), reshape=(2, 2))
    model = load(
        """
        def execute(self, requests):
            assert all(x_of(r).shape[1:] == (4,) for r in requests)
            return [answer(x_of(r).reshape(-1, 2, 2)) for r in requests]
        """,
        inputs=(x,), outputs=(y,), max_batch_size=4,
    )  # fmt: skip
    given_outputs = model.infer({"x": np.ones((3, 2, 2), np.int32)}, (), {})
    assert given_outputs["y"].shape == (3, 4)


def test_twenty_reloads_leave_nothing_behind(load: Load) -> None:
    threads = threading.active_count()
    for turn in range(20):
        model = load(REPEAT if turn % 2 else "def execute(self, r): return [answer(x_of(r[0]))]",
                     decoupled=bool(turn % 2))  # fmt: skip
        if not model.decoupled:
            assert each(model, 3) == [3]
        model.close()
    gc.collect()
    assert [o for o in gc.get_objects() if type(o).__name__ == "TritonPythonModel"] == []
    assert threading.active_count() == threads


# --- the parts


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_an_error_of_ours(code: ErrorCode) -> None:
    expected: Mapping[ErrorCode, type[Exception]] = {
        ErrorCode.NOT_FOUND: NotFound,
        ErrorCode.INVALID_ARG: InvalidInput,
        ErrorCode.ALREADY_EXISTS: InvalidInput,
        ErrorCode.UNAVAILABLE: Unavailable,
        ErrorCode.CANCELLED: Unavailable,
        ErrorCode.UNSUPPORTED: Unsupported,
    }
    error = to_ours(TritonError("a\nb", code))
    assert isinstance(error, expected.get(code, InferenceFailed))
    assert str(error) == "a b"


@given(st.lists(st.binary(max_size=20)))
def test_bytes_survive_serializing(elements: list[bytes]) -> None:
    array = np.empty(len(elements), object)
    array[:] = elements
    raw = serialize_byte_tensor(array)
    if not elements:
        assert raw == ()
    else:
        assert deserialize_bytes_tensor(raw).tolist() == elements


def test_tensors_go_through_dlpack_there_and_back() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = Tensor("x", array)
    assert np.shares_memory(np.from_dlpack(tensor), array)
    again = Tensor.from_dlpack("y", tensor.to_dlpack())
    assert again.as_numpy().tolist() == array.tolist()
    assert again.shape() == [2, 3]
    with pytest.raises(TritonModelException, match="DLPack has no BYTES"):
        Tensor("t", np.array([b"a"], object)).to_dlpack()


def test_tensors_go_to_torch_and_back() -> None:
    torch = pytest.importorskip("torch")
    tensor = Tensor("x", np.arange(4, dtype=np.float32))
    assert torch.from_dlpack(tensor).sum().item() == 6
    assert torch.utils.dlpack.from_dlpack(tensor.to_dlpack()).sum().item() == 6
    back = Tensor.from_dlpack("y", torch.ones(3))
    assert back.as_numpy().tolist() == [1, 1, 1]
    back = Tensor.from_dlpack("y", torch.utils.dlpack.to_dlpack(torch.ones(3)))
    assert back.as_numpy().tolist() == [1, 1, 1]
    frozen = np.ones(2, np.float32)
    frozen.flags.writeable = False
    assert torch.from_dlpack(Tensor("z", frozen)).sum().item() == 2


def test_objects_refuse_what_they_are_not_made_of() -> None:
    with pytest.raises(TypeError):
        InferenceResponse([3])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        InferenceResponse(error="text")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        TritonError(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Tensor("x", [1, 2])  # type: ignore[arg-type]
    with pytest.raises(TritonModelException, match="sequences"):
        InferenceRequest(inputs=[], requested_output_names=[], model_name="m", correlation_id=4)


def test_a_model_config_takes_what_is_missing_and_nothing_else() -> None:
    config = ModelConfig('{"name": "m", "max_batch_size": 0, "input": [{"name": "a", '
                         '"data_type": "TYPE_FP32", "dims": []}], "output": []}')  # fmt: skip
    config.add_input({"name": "a", "data_type": "TYPE_FP32", "dims": [3]})
    assert config.as_dict()["input"][0]["dims"] == [3]
    with pytest.raises(ValueError, match="says dims"):
        config.add_input({"name": "a", "data_type": "TYPE_FP32", "dims": [4]})


def test_modules_in_the_models_folder_are_found(load: Load, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "shared_by_versions.py").write_text("NUMBER = 40\n")
    body = """
        def execute(self, requests):
            import shared_by_versions
            return [answer(x_of(r) + shared_by_versions.NUMBER) for r in requests]
    """
    assert each(load(body), 2) == [42]
    at = tmp_path / "m" / "1"
    (at / "shared_by_versions.py").write_text("NUMBER = 1\n")
    assert each(load(body), 2) == [3], "the version's folder goes first"


def test_only_tritons_files_see_the_models_folder(tmp_path: Path) -> None:
    at = tmp_path / "m" / "1"
    at.mkdir(parents=True)
    runtime = PythonRuntime()
    artifact = Artifact("m", "1", at, ModelSettings())
    assert runtime.code_folders(artifact) == ()
    (at / "model.py").write_text("class A:\n    def infer(self, inputs): return inputs\n")
    assert runtime.code_folders(artifact) == () and runtime.code_file(artifact) == at / "model.py"
    (at / "model.py").write_text("class TritonPythonModel: ...\n")
    assert runtime.code_folders(artifact) == (at.parent,)
    elsewhere = Artifact("m", "2", at, ModelSettings())
    assert runtime.code_folders(elsewhere) == (), "a single file, or a folder of another layout"


def test_a_decoupled_request_that_cannot_be_made_ends(load: Load, tmp_path: Path) -> None:
    reshaped = {
        "inputs": (TensorSettings(name="x", datatype="INT32", dims=(-1,), reshape=(2, -1)),),
    }
    model = load("def execute(self, requests): ...", decoupled=True, **reshaped)
    assert isinstance(model, DecoupledTritonModel)

    async def ask() -> None:
        odd = make_request("m", {"x": np.zeros(3, np.int32)})
        async for _ in model.stream_each(odd):
            pass

    with pytest.raises(InferenceFailed):
        asyncio.run(asyncio.wait_for(ask(), 20))


def test_async_exec_sends_at_once() -> None:
    sent: list[str] = []

    class Binding:
        def call(self, request: Any) -> Future[Any]:
            sent.append(request.model)
            if request.model == "gone":
                raise Unavailable("no such thing")
            future: Future[Any] = Future()
            future.set_result(SimpleNamespace(outputs=(), parameters=None))
            return future

    class Request(InferenceRequest):
        binding = Binding()  # type: ignore[assignment]

    async def ask() -> None:
        futures = [
            Request(inputs=[], requested_output_names=[], model_name=n) for n in ("a", "gone")
        ]
        pending = [request.async_exec() for request in futures]
        assert sent == ["a", "gone"], "before anything is awaited"
        first, second = [await each for each in pending]
        assert not first.has_error() and second.has_error()

    asyncio.run(ask())


def test_finalize_is_not_waited_for_without_end(
    load: Load, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(instance_module, "FINALIZE_SECONDS", 0.1)
    model = load(
        """
        free = threading.Event()
        def execute(self, requests): return [answer(x_of(r)) for r in requests]
        def finalize(self): self.free.wait(60)
        """,
        instances=2,
    )
    free = model._instances[0]._object.free  # type: ignore[attr-defined]
    others = model._instances[1]._object.free  # type: ignore[attr-defined]
    try:
        model.close()
        assert caplog.text.count("finalize is not done after 0.1 s") == 2
    finally:
        free.set()
        others.set()
