"""A test suite for runtimes: anything that passes it can be served.

    from runtimes.conformance import RuntimeConformance

    class TestMyRuntime(RuntimeConformance):
        runtime = MyRuntime()

        def artifact(self, folder):
            (folder / "model.mine").write_bytes(...)
            return Artifact("mine", "1", folder, ModelSettings())

That is a pytest class; `inputs`, `bad_inputs` and `broken` are there to be overridden where
made-up values will not do. Nothing here needs pytest itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np

from gateway.errors import InferenceFailed, ModelLoadError
from gateway.model_settings import ModelSettings
from gateway.tensors import BYTES, Array, TensorSpec, as_bytes, datatype_of, objects
from runtimes.interface import Artifact, Model, Runtime

ROWS = 5
ANY_SIZE = 2
"""What -1 becomes in dimensions other than the batch."""


def require(condition: bool, text: str) -> None:
    """An assertion that holds its text where asserts are not rewritten, and under ``-O``."""
    if not condition:
        raise AssertionError(text)


class RuntimeConformance:
    """Derive from it, set `runtime`, and write `artifact`."""

    runtime: ClassVar[Runtime]
    tolerance: ClassVar[float] = 1e-4
    """Relative and absolute, between rows run apart and rows run together."""

    def artifact(self, folder: Path) -> Artifact:
        """A small good artifact, written into `folder`, which exists and is empty."""
        raise NotImplementedError("write artifact()")

    def broken(self, folder: Path) -> Artifact:
        """One that must not load; here the good one with its files overwritten."""
        artifact = self.artifact(folder)
        for file in folder.rglob("*"):
            if file.is_file():
                file.write_bytes(b"\0this is not a model\xff" * 50)
        return artifact

    def inputs(self, model: Model, rows: int, seed: int = 0) -> dict[str, Array]:
        """Good inputs with `rows` rows where the model has a batch dimension."""
        random = np.random.default_rng(seed)
        return {
            spec.name: _random(spec, rows if model.batch_dimension else None, random)
            for spec in model.inputs
            if not spec.optional
        }

    def bad_inputs(self, model: Model) -> dict[str, Array] | None:
        """Inputs that the model cannot answer; None when it can answer any."""
        inputs = self.inputs(model, 1)
        if not inputs:
            return None
        name = next(iter(inputs))
        return {**inputs, name: inputs[name].reshape((1, 1, 1, *inputs[name].shape))}

    @contextmanager
    def loaded(self, folder: Path) -> Iterator[Model]:
        """The good artifact's model, closed at the end."""
        model = self.runtime.load(self.artifact(folder))
        try:
            yield model
        finally:
            model.close()

    # -- the tests -----------------------------------------------------------------------

    def test_reports_that_it_can_be_used(self) -> None:
        report = self.runtime.report()
        require(report.name == self.runtime.name, "report().name must be the runtime's name")
        require(report.available, f"not available: {report.reason}")
        require(bool(report.formats), "report().formats must say what is loaded")

    def test_probes_only_its_own(self, tmp_path: Path) -> None:
        empty = Artifact("empty", "1", tmp_path, ModelSettings())
        require(not self.runtime.probe(empty), "probe() must be False for an empty folder")
        gone = Artifact("gone", "1", tmp_path / "gone", ModelSettings())
        require(not self.runtime.probe(gone), "probe() must be False for a missing folder")
        require(self.runtime.probe(self.artifact(tmp_path)), "probe() must take the artifact")

    def test_estimates_memory(self, tmp_path: Path) -> None:
        require(self.runtime.estimate(self.artifact(tmp_path)) > 0, "estimate() must be above 0")

    def test_describes_its_tensors(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            require(bool(model.outputs), "a model needs outputs")
            require(model.instances >= 1, "instances must be 1 or more")
            for group in (model.inputs, model.outputs):
                names = [spec.name for spec in group]
                require(len(set(names)) == len(names), f"names are not unique: {names}")
                for spec in group:
                    require(all(d >= -1 for d in spec.shape), f"{spec}: -1 is any size")
                    if model.batch_dimension:
                        require(spec.shape[:1] == (-1,), f"{spec} has no batch dimension")

    def test_gives_what_it_declares(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            _check(model, model.infer(self.inputs(model, ROWS), (), {}), ROWS)

    def test_gives_the_outputs_asked_for(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            inputs = self.inputs(model, ROWS)
            everything = model.infer(inputs, (), {})
            for spec in model.outputs:
                some = model.infer(inputs, (spec.name,), {})
                require(spec.name in some, f"output {spec.name} was asked for and is missing")
                self._same(spec.name, some[spec.name], everything[spec.name])

    def test_rows_together_are_rows_apart(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            if not model.batch_dimension:
                return
            inputs = self.inputs(model, ROWS)
            together = model.infer(inputs, (), {})
            for row in range(ROWS):
                apart = model.infer({k: v[row : row + 1] for k, v in inputs.items()}, (), {})
                for name, array in apart.items():
                    self._same(f"{name} row {row}", array, together[name][row : row + 1])

    def test_leaves_its_inputs_alone(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            inputs = self.inputs(model, ROWS)
            before = {name: array.copy() for name, array in inputs.items()}
            for array in inputs.values():
                array.flags.writeable = False
            model.infer(inputs, (), {})
            for name, array in inputs.items():
                require(np.array_equal(before[name], array), f"input {name} was changed")

    def test_takes_views_of_received_bytes(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            inputs = self.inputs(model, ROWS)
            expected = model.infer(inputs, (), {})
            views = {name: _unaligned(array) for name, array in inputs.items()}
            for name, array in model.infer(views, (), {}).items():
                self._same(name, array, expected[name])

    def test_outputs_survive_the_next_call(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            first = model.infer(self.inputs(model, ROWS, seed=1), (), {})
            kept = {name: array.copy() for name, array in first.items()}
            model.infer(self.inputs(model, ROWS, seed=2), (), {})
            for name, array in first.items():
                self._same(name, array, kept[name])

    def test_survives_bad_input(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            bad = self.bad_inputs(model)
            if bad is not None:
                try:
                    model.infer(bad, (), {})
                except InferenceFailed as error:
                    require("\n" not in str(error), "errors take one line")
                    require(str(tmp_path) not in str(error), "errors name no folders")
                else:
                    raise AssertionError("bad input must raise InvalidInput or InferenceFailed")
            _check(model, model.infer(self.inputs(model, ROWS), (), {}), ROWS)

    def test_runs_on_all_instances_at_once(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            failures: list[str] = []

            def work(seed: int) -> None:
                try:
                    inputs = self.inputs(model, ROWS, seed)
                    first = model.infer(inputs, (), {})
                    for _ in range(10):
                        for name, array in model.infer(inputs, (), {}).items():
                            self._same(name, array, first[name])
                except BaseException as error:
                    failures.append(repr(error))

            threads = [threading.Thread(target=work, args=(n,)) for n in range(model.instances)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            require(not failures, f"infer() in {len(threads)} threads: {failures}")

    def test_can_be_loaded_twice_and_closed_twice(self, tmp_path: Path) -> None:
        artifact = self.artifact(tmp_path)
        first, second = self.runtime.load(artifact), self.runtime.load(artifact)
        first.close()
        first.close()
        _check(second, second.infer(self.inputs(second, ROWS), (), {}), ROWS)
        second.close()

    def test_says_why_a_broken_artifact_does_not_load(self, tmp_path: Path) -> None:
        try:
            self.runtime.load(self.broken(tmp_path)).close()
        except ModelLoadError as error:
            require(bool(str(error)) and "\n" not in str(error), "the cause takes one line")
            require(str(tmp_path) not in str(error), "the cause names no folders")
        else:
            raise AssertionError("a broken artifact must raise ModelLoadError")

    def _same(self, what: str, got: Array, expected: Array) -> None:
        require(got.shape == expected.shape, f"{what}: {got.shape} is not {expected.shape}")
        if datatype_of(got).kind == "float":
            close = np.allclose(
                got.astype(np.float64),
                expected.astype(np.float64),
                rtol=self.tolerance,
                atol=self.tolerance,
                equal_nan=True,
            )
            require(close, f"{what}: {got} is not {expected}")
        else:
            require(np.array_equal(got, expected), f"{what}: {got} is not {expected}")


def _random(spec: TensorSpec, rows: int | None, random: np.random.Generator) -> Array:
    shape = tuple(ANY_SIZE if dim < 0 else dim for dim in spec.shape)
    if rows is not None:
        shape = (rows, *shape[1:])
    if spec.datatype is BYTES:
        size = int(np.prod(shape))
        return objects([b"text %d" % n for n in random.integers(0, 100, size)], shape)
    if spec.datatype.kind == "float":
        return random.random(shape).astype(spec.datatype.dtype)
    return random.integers(0, 2, shape).astype(spec.datatype.dtype)


def _unaligned(array: Array) -> Array:
    """The same values at an odd address, read-only, as a body with a header leaves them."""
    if array.dtype.kind == "O":
        return array
    raw = b"\0" + array.tobytes()
    return np.frombuffer(raw, array.dtype, offset=1).reshape(array.shape)


def _check(model: Model, outputs: Mapping[str, Array], rows: int) -> None:
    for spec in model.outputs:
        require(spec.name in outputs, f"output {spec.name} is missing")
        array = outputs[spec.name]
        require(
            datatype_of(array) is spec.datatype,
            f"output {spec} came as {array.dtype}",
        )
        fits = len(array.shape) == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True)
        )
        require(fits, f"output {spec} came with shape {list(array.shape)}")
        if model.batch_dimension:
            require(array.shape[0] == rows, f"output {spec} has {array.shape[0]} rows, not {rows}")
        if spec.datatype is BYTES:
            for element in array.ravel().tolist():
                as_bytes(element)
