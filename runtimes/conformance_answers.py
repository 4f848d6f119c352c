"""Checks of what a loaded model answers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import numpy as np

from gateway.errors import InferenceFailed, InvalidInput
from gateway.tensors import BYTES, Array, TensorSpec, objects
from runtimes.conformance_base import (
    ROWS,
    Suite,
    check_answer,
    check_message,
    made_up,
    request_of,
    require,
    unaligned,
)
from runtimes.interface import AsyncModel, Model, Outputs

TEXTS: Final = ("", "é 你好 🌍", "a\0b", " ", "x" * 300)
NO_TEXT: Final = b"\xff\xfe\x80"


class AnswerChecks(Suite):
    """Everything around `infer`; models with many answers are asked by `stream`."""

    def test_describes_its_tensors(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            require(bool(model.outputs), "a model needs outputs")
            require(isinstance(model.platform, str), "platform must be text")
            for group in (model.inputs, model.outputs):
                names = [spec.name for spec in group]
                require(all(names), "each tensor needs a name")
                require(len(set(names)) == len(names), f"names are not unique: {names}")
                for spec in group:
                    require(all(d >= -1 for d in spec.shape), f"{spec}: -1 is any size")
                    if model.batch_dimension:
                        require(spec.shape[:1] == (-1,), f"{spec} has no batch dimension")

    def test_declares_how_it_runs(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            require(model.instances >= 1, "instances must be 1 or more")
            most = model.max_batch_size
            require(most is None or most >= 0, "max_batch_size must be 0 or more, or None")
            if most:
                require(model.batch_dimension, f"max_batch_size is {most} without batch_dimension")
            if model.decoupled:
                kind = type(model)
                if isinstance(model, AsyncModel):
                    streams = kind.stream_async is not AsyncModel.stream_async  # type: ignore[attr-defined]
                    require(streams, "a decoupled AsyncModel needs stream_async()")
                else:
                    require(kind.stream is not Model.stream, "a decoupled model needs stream()")

    def test_gives_what_it_declares(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            answers = self.answers(model, self.inputs(model, ROWS))
            require(bool(answers), "good inputs must get an answer")
            for answer in answers:
                check_answer(model, answer, ROWS)

    def test_gives_the_outputs_asked_for(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            inputs = self.inputs(model, ROWS)
            everything = self.answers(model, inputs)
            for spec in model.outputs:
                some = self.answers(model, inputs, (spec.name,))
                if not model.decoupled:
                    require(spec.name in some[0], f"output {spec.name} was asked for, is missing")
                if self.comparable(model):
                    self.same_answers("asked for alone", some, everything)

    def test_rows_together_are_rows_apart(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            batched = model.batch_dimension and model.max_batch_size != 0
            if not batched or model.decoupled or not self.comparable(model):
                return
            inputs = self.inputs(model, ROWS)
            together = model.infer(inputs, (), {})
            for row in range(ROWS):
                apart = model.infer({k: v[row : row + 1] for k, v in inputs.items()}, (), {})
                for name, array in apart.items():
                    self.same(f"{name} row {row}", array, together[name][row : row + 1])

    def test_remembers_nothing(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            if not self.comparable(model):
                return
            inputs = self.inputs(model, ROWS, seed=1)
            first = self.answers(model, inputs)
            self.answers(model, self.inputs(model, ROWS, seed=2))
            what = "the same after another request (else declare it stateful)"
            self.same_answers(what, self.answers(model, inputs), first)

    def test_looks_at_no_parameters_unless_they_matter(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            if model.parameters_matter or not self.comparable(model):
                return
            inputs = self.inputs(model, ROWS)
            with_one = self.answers(model, inputs, (), {"conformance": "a parameter"})
            what = "with a parameter (else declare parameters_matter)"
            self.same_answers(what, with_one, self.answers(model, inputs))

    def test_leaves_its_inputs_alone(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            inputs = self.inputs(model, ROWS)
            before = {name: array.copy() for name, array in inputs.items()}
            for array in inputs.values():
                array.flags.writeable = False
            self.answers(model, inputs)
            for name, array in inputs.items():
                require(np.array_equal(before[name], array), f"input {name} was changed")

    def test_takes_views_of_received_bytes(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            inputs = self.inputs(model, ROWS)
            views = {name: unaligned(array) for name, array in inputs.items()}
            got = self.answers(model, views)
            if self.comparable(model):
                self.same_answers("unaligned inputs", got, self.answers(model, inputs))

    def test_outputs_survive_the_next_call(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            first = self.answers(model, self.inputs(model, ROWS, seed=1))
            kept: list[Outputs] = [{k: np.array(v) for k, v in each.items()} for each in first]
            self.answers(model, self.inputs(model, ROWS, seed=2))
            self.same_answers("after the next call", first, kept)

    def test_survives_bad_input(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            bad = self.bad_inputs(model)
            if bad is not None:
                try:
                    self.answers(model, bad)
                except InferenceFailed as error:
                    check_message(error, tmp_path)
                else:
                    raise AssertionError("bad input must raise InvalidInput or InferenceFailed")
            self.answers(model, self.inputs(model, ROWS))

    def test_takes_any_text(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            for spec in model.inputs:
                if spec.datatype is not BYTES or spec.optional:
                    continue
                inputs = self.inputs(model, ROWS)
                for raw in (*(text.encode() for text in TEXTS), NO_TEXT):
                    array = objects([raw] * inputs[spec.name].size, inputs[spec.name].shape)
                    self._answers_or_refuses(model, {**inputs, spec.name: array}, spec, tmp_path)

    def test_takes_dimensions_of_size_zero(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            inputs = self.inputs(model, ROWS)
            for spec in model.inputs:
                inner = spec.shape[1:] if model.batch_dimension else spec.shape
                if -1 not in inner or spec.optional:
                    continue
                empty: Array = _emptied(spec, inputs[spec.name], batched=model.batch_dimension)
                self._answers_or_refuses(model, {**inputs, spec.name: empty}, spec, tmp_path)

    def test_runs_on_all_instances_at_once(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            if isinstance(model, AsyncModel):
                return  # awaited, not called: see the checks of those
            failures: list[str] = []
            instances = 1 if model.stateful else model.instances

            def work(seed: int) -> None:
                try:
                    inputs = self.inputs(model, ROWS, seed)
                    first = self.answers(model, inputs)
                    for _ in range(10):
                        got = self.answers(model, inputs)
                        if self.comparable(model):
                            self.same_answers("beside other calls", got, first)
                except BaseException as error:
                    failures.append(repr(error))

            if instances == 1:
                work(0)
            threads = [
                threading.Thread(target=work, args=(n,), daemon=True)
                for n in range(instances if instances > 1 else 0)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(self.patience)
                require(not thread.is_alive(), f"infer() hangs in {len(threads)} threads")
            require(not failures, f"infer() in {instances} threads: {failures}")

    def test_answers_each_request_of_a_batch(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            if not model.separate or model.decoupled:
                return
            asked = [self.inputs(model, ROWS, seed) for seed in range(3)]
            requests = [request_of(inputs) for inputs in asked]
            got = model.infer_each(requests, lambda _: False)
            require(len(got) == len(asked), f"{len(got)} answers to {len(asked)} requests")
            for one, inputs in zip(got, asked, strict=True):
                require(not isinstance(one, Exception), f"a good request failed: {one!r}")
                if self.comparable(model) and not isinstance(one, Exception):
                    what = "one of a batch"
                    self.same_answers(what, [one], self.answers(model, inputs))

    # -- helpers -------------------------------------------------------------------------

    def _answers_or_refuses(
        self, model: Model, inputs: dict[str, Array], spec: TensorSpec, folder: Path
    ) -> None:
        """A well-formed answer or `InvalidInput`, and afterwards the model still works."""
        array = inputs[spec.name]
        what = f"input {spec} of shape {list(array.shape)} (first: {array.ravel()[:1].tolist()})"
        try:
            answers = self.answers(model, inputs)
        except InvalidInput as error:
            check_message(error, folder)
            answers = []
        except Exception as error:
            cause = f"{what} must be answered or raise InvalidInput: {error!r}"
            raise AssertionError(cause) from None
        usual = self.answers(model, self.inputs(model, ROWS))
        if all(is_well_formed(model, answer) for answer in usual):
            for answer in answers:
                check_answer(model, answer, ROWS)


def is_well_formed(model: Model, answer: Outputs) -> bool:
    """Whether an answer is as declared: whoever gives none ever fails one check, not several."""
    try:
        check_answer(model, answer, ROWS)
    except AssertionError:
        return False
    return True


def _emptied(spec: TensorSpec, like: Array, *, batched: bool) -> Array:
    shape = tuple(
        0 if dim < 0 and not (batched and axis == 0) else dim for axis, dim in enumerate(spec.shape)
    )
    rows = len(like) if batched else None
    return made_up(TensorSpec(spec.name, spec.datatype, shape), rows, np.random.default_rng(0))
