"""Models of our own kind: `model.py` with a small class."""

from __future__ import annotations

import asyncio
import gc
import logging
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    ModelLoadError,
    UnknownModel,
)
from gateway.lifecycle.loader import load_here
from gateway.model_settings import ModelSettings, TensorSettings, WarmupInput, WarmupSettings
from gateway.tensors import BYTES, DATATYPES, TensorSpec
from runtimes.hosts import LoopHost
from runtimes.interface import Artifact, AsyncModel, Model
from runtimes.python import PythonRuntime
from runtimes.python import models as models_module

XY = 'signature = {"inputs": {"x": ("FP32", [-1, 2])}, "outputs": {"y": ("FP32", [-1, 2])}}'
X = np.array([[1, 2], [3, 4], [5, 6]], np.float32)

Load = Callable[..., Model]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Loads a model from the text of its class; closed at the end."""
    made: list[Model] = []

    def do(code: str, *, host: Any = None, folder: str = "m", **settings: Any) -> Model:
        at = tmp_path / folder / "1"
        at.mkdir(parents=True, exist_ok=True)
        text = "import asyncio\nimport numpy as np\n" + textwrap.dedent(code).replace("XY", XY)
        (at / "model.py").write_text(text)
        artifact = Artifact(folder, "1", at, ModelSettings(**settings), host)
        made.append(PythonRuntime().load(artifact))
        return made[-1]

    yield do
    for model in made:
        model.close()


def test_a_plain_class(load: Load) -> None:
    model = load("""
        class Double:
            XY
            def infer(self, inputs):
                return {"y": inputs["x"] * 2}
        """)
    assert model.batch_dimension
    assert (model.instances, model.inline, model.decoupled) == (1, False, False)
    assert model.infer({"x": X}, (), {})["y"].tolist() == (X * 2).tolist()
    assert [repr(spec) for spec in model.inputs] == ["x FP32 [-1, 2]"]
    model.close()
    with pytest.raises(InferenceFailed, match="closed"):
        model.infer({"x": X}, (), {})


def test_load_is_told_everything_and_close_is_called(load: Load, tmp_path: Path) -> None:
    model = load(
        """
        class Told:
            def load(self, context):
                self.c = context
                (context.folder / "loaded").touch()
            def signature(self):
                text = ("BYTES", [1])
                return {"inputs": {"x": (*text, "optional")}, "outputs": {"y": text}}
            def infer(self, inputs):
                c = self.c
                said = f"{c.model} {c.version} {c.device} {c.gpu} {c.instance} {c.options['k']}"
                return {"y": np.array([said.encode()], object)}
            def close(self):
                (self.c.folder / "closed").touch()
        """,
        options={"k": 3},
        device="cpu",
    )
    assert model.infer({}, (), {})["y"].tolist() == [b"m 1 cpu None 0 3"]
    assert model.inputs[0].optional
    folder = tmp_path / "m" / "1"
    assert (folder / "loaded").exists()
    assert not (folder / "closed").exists()
    model.close()
    assert (folder / "closed").exists()


def test_parameters_come_to_those_that_ask_for_them(load: Load) -> None:
    takes = load("""
        class Takes:
            XY
            def infer(self, inputs, parameters):
                return {"y": inputs["x"] * np.float32(parameters.get("factor", 1))}
        """)
    assert takes.parameters_matter
    assert takes.infer({"x": X}, (), {"factor": 3})["y"].tolist() == (X * 3).tolist()
    plain = load("class A:\n    XY\n    def infer(self, inputs): return {'y': inputs['x']}\n")
    assert not plain.parameters_matter


def test_each_instance_is_an_object_used_by_one_thread_at_a_time(load: Load) -> None:
    model = load(
        """
        import threading
        barrier = threading.Barrier(2, timeout=30)
        class Busy:
            XY
            def load(self, context):
                self.index, self.busy = context.instance, False
            def infer(self, inputs):
                assert not self.busy
                self.busy = True
                barrier.wait()  # the other instance is at work as well
                self.busy = False
                return {"y": inputs["x"] * 0 + self.index}
        """,
        instances=2,
    )
    assert model.instances == 2
    seen: list[float] = []

    def work() -> None:
        seen.append(float(model.infer({"x": X}, (), {})["y"][0, 0]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(seen) == [0.0, 0.0, 1.0, 1.0]


def test_rows_are_batched_when_they_prove_independent(load: Load, tmp_path: Path) -> None:
    code = "class A:\n    XY\n    def infer(self, inputs): return {{'y': {0}}}\n"
    load(code.format("inputs['x']"), folder="apart")
    load(code.format("inputs['x'] - inputs['x'].mean(axis=0)"), folder="mixed")

    def size(name: str, **settings: Any) -> int:
        artifact = Artifact(name, "1", tmp_path / name / "1", ModelSettings(**settings))
        loaded = load_here(artifact, PythonRuntime(), 64, lambda runtime: None)
        loaded.model.close()
        return loaded.findings.max_batch_size

    assert size("apart") == 64
    assert size("apart", max_batch_size=5) == 5
    assert size("apart", max_batch_size=0) == 0
    assert size("mixed") == 0
    with pytest.raises(ModelLoadError, match="rows together give other answers"):
        size("mixed", max_batch_size=4)


def test_what_made_up_rows_break_is_not_logged(
    load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = "class A:\n    XY\n    {0}def infer(self, inputs): raise ValueError('no')\n"
    for name, prefix in (("plain", ""), ("later", "async ")):
        load(code.format(prefix), folder=name)
        artifact = Artifact(name, "1", tmp_path / name / "1", ModelSettings())
        loaded = load_here(artifact, PythonRuntime(), 64, lambda runtime: None)
        assert caplog.records == []
        with pytest.raises(InferenceFailed, match="the model failed: ValueError: no"):
            loaded.model.infer({"x": X}, (), {})
        assert "model.py, line 5: ValueError: no" in caplog.text
        assert caplog.records[0].exc_info is not None
        with pytest.raises(InferenceFailed):
            loaded.model.infer({"x": X}, (), {})
        assert len(caplog.records) == 1, "the same failure is not logged again and again"
        caplog.clear()
        loaded.model.close()


def test_errors_for_callers_have_type_and_message_and_no_more(load: Load) -> None:
    model = load("""
        from gateway.errors import InvalidInput
        class Picky:
            XY
            def infer(self, inputs):
                kind = int(inputs["x"][0, 0])
                if kind == 1:
                    raise InvalidInput("x must not be 1")
                if kind == 2:
                    raise KeyError("/srv/secret/place/file")
                if kind == 3:
                    raise SystemExit(4)
                return [lambda: None, lambda: 7, lambda: {}, lambda: {"y": inputs["x"], "z": 1},
                        lambda: {"y": inputs["x"].astype("float64")}][kind - 4]()
        """)

    def said(value: int) -> str:
        with pytest.raises(InferenceFailed) as caught:
            model.infer({"x": np.full((1, 2), value, np.float32)}, (), {})
        assert "\n" not in str(caught.value)
        return str(caught.value)

    with pytest.raises(InvalidInput, match="x must not be 1"):
        model.infer({"x": np.ones((1, 2), np.float32)}, (), {})
    assert said(2) == "the model failed: KeyError: 'file'"
    assert said(3) == "the model failed: SystemExit: 4"
    assert said(4) == "infer returned NoneType, but must return a dict of arrays"
    assert said(5) == "infer returned int, but must return a dict of arrays"
    assert said(6) == "infer returned no output 'y'"
    assert said(7) == "infer returned 'z', which its signature does not have"
    assert said(8) == (
        "infer returned output 'y' as float64, but it is declared FP32; convert it with "
        ".astype('float32')"
    )


def test_a_coroutine_runs_on_a_loop_of_its_own(load: Load) -> None:
    model = load("""
        import threading
        class Later:
            XY
            async def load(self, context):
                self.thread = threading.current_thread()
            async def infer(self, inputs):
                assert threading.current_thread() is self.thread
                await asyncio.sleep(0)
                return {"y": inputs["x"] + 1}
            async def close(self):
                assert threading.current_thread() is self.thread
        """)
    assert isinstance(model, AsyncModel)
    assert model.instances == 64
    assert model.infer({"x": X}, (), {})["y"].tolist() == (X + 1).tolist()

    async def blocked() -> None:
        here = threading.current_thread()
        answers = await asyncio.gather(*(model.infer_async({"x": X}, (), {}) for _ in range(5)))
        assert threading.current_thread() is here
        assert all(answer["y"].tolist() == (X + 1).tolist() for answer in answers)

    asyncio.run(blocked())


def test_a_coroutine_is_cancelled_with_its_request(load: Load, tmp_path: Path) -> None:
    model = load("""
        class Slow:
            XY
            def load(self, context): self.at = context.folder
            async def infer(self, inputs):
                (self.at / "started").touch()
                try:
                    await asyncio.sleep(600)
                finally:
                    (self.at / "cancelled").touch()
        """)
    at = tmp_path / "m" / "1"
    assert isinstance(model, AsyncModel)

    async def go() -> None:
        task = asyncio.ensure_future(model.infer_async({"x": X}, (), {}))
        while not (at / "started").exists():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not (at / "cancelled").exists():
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(go(), 30))


def test_a_coroutine_that_cancels_itself_is_an_error(load: Load) -> None:
    model = load("""
        class Odd:
            XY
            async def infer(self, inputs): raise asyncio.CancelledError
        """)
    with pytest.raises(InferenceFailed, match="cancelled itself"):
        model.infer({"x": X}, (), {})
    assert isinstance(model, AsyncModel)
    with pytest.raises(InferenceFailed, match="cancelled itself"):
        asyncio.run(model.infer_async({"x": X}, (), {}))  # type: ignore[arg-type]


COUNT = """
class Count:
    signature = {"inputs": {"n": ("INT32", [1])}, "outputs": {"i": ("INT32", [1])}}
    def load(self, context): self.at = context.folder
    KIND def infer(self, inputs):
        try:
            for i in range(int(inputs["n"][0])):
                if i == 5:
                    raise ValueError("five")
                yield {"i": np.array([i], np.int32)}
        finally:
            (self.at / "ended").touch()
"""
N = {name: np.array([count], np.int32) for name, count in (("none", 0), ("two", 2), ("many", 9))}


def test_a_generator_streams_and_hears_of_its_end(load: Load, tmp_path: Path) -> None:
    model = load(COUNT.replace("KIND ", ""))
    ended = tmp_path / "m" / "1" / "ended"
    assert model.decoupled
    assert [a["i"].tolist() for a in model.stream({"n": N["two"]}, (), {})] == [[0], [1]]
    assert list(model.stream({"n": N["none"]}, (), {})) == []
    ended.unlink()
    answers = model.stream({"n": N["many"]}, (), {})
    next(answers)
    assert not ended.exists()
    answers.close()  # type: ignore[attr-defined]
    assert ended.exists()
    with pytest.raises(InferenceFailed, match="ValueError: five"):
        list(model.stream({"n": N["many"]}, (), {}))
    assert len(list(model.stream({"n": N["two"]}, (), {}))) == 2, "its object is free again"


def test_an_asynchronous_generator_streams_and_hears_of_its_end(load: Load, tmp_path: Path) -> None:
    model = load(COUNT.replace("KIND ", "async "))
    ended = tmp_path / "m" / "1" / "ended"
    assert isinstance(model, AsyncModel)

    async def go() -> None:
        def stream(count: str) -> AsyncIterator[Any]:
            return model.stream_async({"n": N[count]}, (), {})

        assert [a["i"].tolist() async for a in stream("two")] == [[0], [1]]
        assert [a async for a in stream("none")] == []
        ended.unlink()
        answers = stream("many")
        await anext(answers)
        assert not ended.exists()
        await answers.aclose()  # type: ignore[attr-defined]
        assert ended.exists()
        with pytest.raises(InferenceFailed, match="ValueError: five"):
            [a async for a in stream("many")]

    asyncio.run(go())
    assert len(list(model.stream({"n": N["two"]}, (), {}))) == 2


def test_closing_in_the_middle_of_a_step_cancels_it(load: Load, tmp_path: Path) -> None:
    model = load("""
        class Stuck:
            signature = {"inputs": {"n": ("INT32", [1])}, "outputs": {"i": ("INT32", [1])}}
            def load(self, context): self.at = context.folder
            async def infer(self, inputs):
                try:
                    (self.at / "started").touch()
                    await asyncio.sleep(600)
                    yield {"i": inputs["n"]}
                finally:
                    (self.at / "ended").touch()
        """)
    at = tmp_path / "m" / "1"
    assert isinstance(model, AsyncModel)

    async def go() -> None:
        answers = model.stream_async({"n": N["two"]}, (), {})
        step = asyncio.ensure_future(anext(answers))
        while not (at / "started").exists():
            await asyncio.sleep(0.01)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        assert (at / "ended").exists()

    asyncio.run(asyncio.wait_for(go(), 30))


# --- which class, which signature


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = 1", "has no class with a method infer"),
        (
            "class A:\n    def infer(self, i): ...\nclass B:\n    def infer(self, i): ...",
            "several classes that could be the model (A, B); name one with: model = A",
        ),
        ("class A:\n    def infer(self, i): ...", "does not say what its inputs are"),
        ("class A:\n    signature = 3\n    def infer(self, i): ...", "signature is 3, but must be"),
        (
            "class A:\n    signature = {'inputs': {'x': ('FP33', [1])}}\n    def infer(self, i): 0",
            "input 'x': unknown datatype 'FP33'",
        ),
        (
            "class A:\n    signature = {'inputs': {'x': ('FP32', 'a')}}\n    def infer(self, i): 0",
            "shape 'a' must be a list of sizes",
        ),
        (
            "class A:\n    signature = {'outputs': {'x': ('FP32', [1], 'optional')}}\n"
            "    def infer(self, i): 0",
            "must be (datatype, shape)",
        ),
        (
            "class A:\n    XY\n    def load(self, c): raise OSError('no weights')\n"
            "    def infer(self, i): 0",
            "load failed: model.py, line 5: OSError: no weights",
        ),
        (
            "class A:\n    XY\n    def __init__(self, x): ...\n    def infer(self, i): 0",
            "load failed: TypeError: ",
        ),
        (
            "class A:\n    XY\n    stateful = 3\n    def infer(self, i): 0",
            "A.stateful must be True or False",
        ),
        ("class A:\n    def signature(self): 1 / 0\n    def infer(self, i): 0", "signature failed"),
        ("import sys\nclass A:\n    XY\n    def load(self): sys.exit(1)\n    def infer(self, i): 0",
         "load ended the process"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_model_is_said_in_one_line(load: Load, code: str, said: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load(code)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_class_is_found(load: Load) -> None:
    body = "    XY\n    def infer(self, inputs): return {'y': inputs['x']}\n"
    load(f"class _Hidden:\n{body}class Seen(_Hidden):\n    pass\n")
    load(f"class Base:\n{body}class Heir(Base):\n    pass\n")
    load(f"class A:\n{body}class B:\n{body}model = B\n")
    load(f"from collections import OrderedDict\nclass A:\n{body}")


def test_the_settings_may_declare_what_the_class_does_not(load: Load) -> None:
    code = "class A:\n    def infer(self, inputs): return {'y': inputs['x'].reshape(-1, 2, 2)}\n"
    x = TensorSettings(name="x", datatype="FP32", dims=(2, 2), reshape=(4,))
    y = TensorSettings(name="y", datatype="FP32", dims=(4,), reshape=(2, 2))
    model = load(code, inputs=(x,), outputs=(y,), max_batch_size=4)
    assert model.batch_dimension
    assert [repr(s) for s in (*model.inputs, *model.outputs)] == [
        "x FP32 [-1, 2, 2]",
        "y FP32 [-1, 4]",
    ]
    given = model.infer({"x": np.ones((3, 2, 2), np.float32)}, (), {})
    assert given["y"].shape == (3, 4)


def test_the_settings_must_agree_with_the_class(load: Load) -> None:
    code = "class A:\n    XY\n    def infer(self, inputs): return {'y': inputs['x']}\n"
    same = TensorSettings(name="x", datatype="FP32", dims=(-1, 2))
    load(code, inputs=(same,))
    load(code, inputs=(TensorSettings(name="x", datatype="FP32", dims=(2,)),), max_batch_size=2)
    other = TensorSettings(name="x", datatype="FP32", dims=(-1, 3))
    with pytest.raises(ModelLoadError, match=r"x FP32 \[-1, 2\], but the settings declare x FP32"):
        load(code, inputs=(other,))
    with pytest.raises(ModelLoadError, match=r"'decoupled' is set, but A\.infer answers once"):
        load(code, decoupled=True)


@pytest.mark.parametrize("file", ["../model.py", "/etc/passwd", "model.txt", "a/../../m.py"])
def test_files_elsewhere_are_not_loaded(tmp_path: Path, file: str) -> None:
    with pytest.raises(ModelLoadError, match=r"loads a \.py file in the version's folder"):
        PythonRuntime().load(Artifact("m", "1", tmp_path, ModelSettings(file=file)))


def test_a_gpu_that_is_not_there(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ModelLoadError, match="no GPU is visible"):
        load("class A:\n    XY\n    def infer(self, i): return i\n", device="gpu")


def test_what_it_says_of_itself(tmp_path: Path) -> None:
    runtime = PythonRuntime()
    artifact = Artifact("m", "1", tmp_path, ModelSettings())
    assert runtime.report().available
    assert runtime.executes_code(artifact) == "model.py"
    assert not runtime.probe(artifact)
    (tmp_path / "model.py").touch()
    assert runtime.probe(artifact)


def test_a_declared_warm_up_reaches_streaming_models_too(load: Load, tmp_path: Path) -> None:
    load(COUNT.replace("KIND ", ""))
    warmup = WarmupSettings(
        batch_size=0, inputs={"n": WarmupInput(datatype="INT32", dims=(1,), source="zero")}
    )
    artifact = Artifact("m", "1", tmp_path / "m" / "1", ModelSettings(warmup=(warmup,)))
    loaded = load_here(artifact, PythonRuntime(), 64, lambda runtime: None)
    loaded.model.close()
    assert (tmp_path / "m" / "1" / "ended").exists()


def test_twenty_reloads_leave_no_threads_and_no_objects(load: Load) -> None:
    code = """
        class Kept:
            XY
            {0}def infer(self, inputs): return {{"y": inputs["x"]}}
        """
    threads = threading.active_count()
    for _ in range(10):
        for prefix in ("", "async "):
            model = load(code.format(prefix))
            model.infer({"x": X}, (), {})
            model.close()
    gc.collect()
    assert [o for o in gc.get_objects() if type(o).__name__ == "Kept"] == []
    assert threading.active_count() == threads


# --- without a gateway


def test_other_models_cannot_be_called_where_no_gateway_runs(load: Load) -> None:
    code = """
        class Calls:
            XY
            def load(self, context): self.context = context
            def infer(self, inputs): return self.context.call("other", {"x": inputs["x"]})
        """
    with pytest.raises(InferenceFailed, match="no gateway runs here"):
        load(code).infer({"x": X}, (), {})
    with LoopHost() as host, pytest.raises(InferenceFailed, match="'other' was called"):
        load(code, host=host).infer({"x": X}, (), {})


def test_a_blocking_call_inside_a_coroutine_is_refused(load: Load) -> None:
    model = load("""
        class Blocks:
            XY
            def load(self, context): self.context = context
            async def infer(self, inputs): return self.context.call("other", inputs)
        """)
    with pytest.raises(InferenceFailed, match=r"use: await context.call_async"):
        model.infer({"x": X}, (), {})


# --- transformers


class Predictor(LoopHost):
    """A host with one model that doubles `image`, and an error for others."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    def describe(self, model: str, version: str = "") -> Any:
        from runtimes.interface import Description

        if model != "double":
            raise UnknownModel(model)
        fp32 = DATATYPES["FP32"]
        return Description(
            (TensorSpec("image", fp32, (-1, 2)),),
            (TensorSpec("score", fp32, (-1, 2)), TensorSpec("label", BYTES, (-1,))),
        )

    def call(self, request: Any) -> Any:
        from concurrent.futures import Future

        from gateway.tensors import InferenceResponse, Tensor, objects

        self.asked.append(request)
        future: Future[InferenceResponse] = Future()
        if request.model != "double":
            future.set_exception(UnknownModel(request.model))
        elif request.parameters and request.parameters.get("late"):
            future.set_exception(DeadlineExceeded("too late"))
        else:
            score = request.inputs[0].array * 2
            label = objects([b"a"] * len(score), (len(score),))
            outputs = [
                Tensor("score", DATATYPES["FP32"], score.shape, array=score),
                Tensor("label", BYTES, label.shape, array=label),
            ]
            future.set_result(InferenceResponse("double", "1", outputs))
        return future


@pytest.fixture
def predictor() -> Iterator[Predictor]:
    with Predictor() as host:
        yield host  # type: ignore[misc]


PRE = """
class Pre:
    predictor = "double"
    signature = {"inputs": {"text": ("BYTES", [-1])}}
    KIND def preprocess(self, inputs):
        return {"image": np.array([[len(t), 1] for t in inputs["text"]], np.float32)}
"""
POST = """
class Post:
    predictor = "double"
    signature = {"outputs": {"sum": ("FP32", [-1])}}
    KIND def postprocess(self, outputs, inputs, parameters):
        return {"sum": outputs["score"].sum(axis=1) + inputs["image"].sum(axis=1)
                       + np.float32(parameters.get("plus", 0))}
"""


@pytest.mark.parametrize("kind", ["", "async "])
def test_the_side_that_is_not_transformed_is_the_predictors(
    load: Load, predictor: Predictor, kind: str
) -> None:
    pre = load(PRE.replace("KIND ", kind), host=predictor)
    assert [spec.name for spec in pre.inputs] == ["text"]
    assert [repr(spec) for spec in pre.outputs] == ["score FP32 [-1, 2]", "label BYTES [-1]"]
    text = np.array([b"abc", b""], object)
    assert pre.infer({"text": text}, (), {})["score"].tolist() == [[6, 2], [0, 2]]
    assert list(pre.infer({"text": text}, ("label",), {})) == ["label"]
    assert predictor.asked[-1].outputs == ("label",)
    post = load(POST.replace("KIND ", kind), host=predictor, folder="post")
    image = np.array([[1, 2]], np.float32)
    assert [spec.name for spec in post.inputs] == ["image"]
    assert post.infer({"image": image}, (), {"plus": 100})["sum"].tolist() == [6 + 3 + 100]


def test_deadline_and_errors_of_the_predictor_are_passed_on(
    load: Load, predictor: Predictor
) -> None:
    from time import perf_counter

    from runtimes.interface import ForwardingModel
    from runtimes.python.context import make_request

    model = load(PRE.replace("KIND ", ""), host=predictor)
    assert isinstance(model, ForwardingModel)

    def forward(deadline: float | None, **parameters: Any) -> Any:
        request = make_request("m", {"text": np.array([b"x"], object)}, parameters=parameters)
        work = model.forward(request, deadline, lambda key: None)
        return asyncio.run_coroutine_threadsafe(work, predictor.loop).result(30)

    assert forward(None).outputs[0].array.tolist() == [[2, 2]]
    assert predictor.asked[-1].timeout_us == 0
    forward(perf_counter() + 50)
    assert 0 < predictor.asked[-1].timeout_us <= 50_000_000
    with pytest.raises(DeadlineExceeded, match="in preprocess"):
        forward(perf_counter() - 1)
    with pytest.raises(DeadlineExceeded, match="too late"):
        forward(None, late=True)


def test_the_settings_win_over_the_class_in_naming_the_predictor(
    load: Load, predictor: Predictor
) -> None:
    code = PRE.replace("KIND ", "").replace(
        '{"inputs": {"text": ("BYTES", [-1])}}',
        '{"inputs": {"text": ("BYTES", [-1])}, "outputs": {"score": ("FP32", [-1, 2])}}',
    )
    model = load(
        code, host=predictor, options={"predictor": "another", "predictor_version": "stable"}
    )
    with pytest.raises(UnknownModel, match="another"):
        model.infer({"text": np.array([b"x"], object)}, (), {})
    assert predictor.asked[-1].version == "stable"


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (('predictor = "double"', ""), {}, "needs the name of its predictor"),
        (('"double"', '"m"'), {}, "the predictor is the transformer itself"),
        (('"double"', '"nobody"'), {}, "it cannot be had: Request for unknown model: 'nobody'"),
        (("", ""), {"max_batch_size": 4}, "takes its requests one by one"),
        (("", ""), {"decoupled": True}, "a transformer answers once"),
        (("return", "yield"), {}, "preprocess must return a dict, not yield"),
    ],
)
def test_what_is_wrong_with_a_transformer(
    load: Load, predictor: Predictor, change: tuple[str, str], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelLoadError, match=said):
        load(PRE.replace("KIND ", "").replace(*change), host=predictor, **settings)


def test_a_transformers_own_failures(
    load: Load, predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    code = PRE.replace("KIND ", "").replace(
        "return {", "return 3 if len(inputs['text']) == 1 else {"
    )
    model = load(code, host=predictor)
    with pytest.raises(InferenceFailed, match="preprocess returned int"):
        model.infer({"text": np.array([b"x"], object)}, (), {})
    with pytest.raises(InferenceFailed, match="the model failed: TypeError"):
        model.infer({"text": np.array([1, 2], object)}, (), {})
    assert "preprocess" in caplog.text


def test_a_coroutine_close_is_not_waited_for_without_end(
    load: Load, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(models_module, "CLOSE_SECONDS", 0.1)
    model = load("""
        class A:
            XY
            def infer(self, inputs): return {"y": inputs["x"]}
            async def close(self): await asyncio.sleep(3600)
    """)
    model.close()
    assert "close is not done after 0.1 s" in caplog.text
