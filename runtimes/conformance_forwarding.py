"""Checks of models that pass whole requests on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from gateway.codecs.client_grpc import decode_response, encode_request
from gateway.codecs.messages import ModelInferResponse
from gateway.errors import SluiceError
from gateway.tensors import InferenceRequest, InferenceResponse
from runtimes.conformance_base import ROWS, Suite, check_tensor, request_of, require
from runtimes.interface import Artifact, ForwardingModel, Model, Outputs


class ForwardingChecks(Suite):
    """Of a `ForwardingModel`; others pass."""

    def test_forwards_whole_requests(self, tmp_path: Path) -> None:
        with self._forwarding(tmp_path) as (model, artifact):
            if model is None or model.decoupled:
                return
            inputs = self.inputs(model, ROWS)
            expected = self.answers(model, inputs)[0]
            answer = self._forward(model, request_of(inputs, artifact.model))
            require(answer.wire is None, "a request without `wire` must get an answer without")
            self._is_ours(model, answer, artifact)
            if self.comparable(model):
                self.same_answers("forwarded", [arrays_of(answer)], [expected])

    def test_forwards_requests_as_they_came(self, tmp_path: Path) -> None:
        with self._forwarding(tmp_path) as (model, artifact):
            if model is None or model.decoupled:
                return
            inputs = self.inputs(model, ROWS)
            expected = self.answers(model, inputs)[0]
            request = request_of(inputs, artifact.model)
            # As a gRPC front end leaves it: names of the caller's, the tensors raw.
            request.wire = encode_request(request, artifact.model, "")
            answer = self._forward(model, request)
            if answer.wire is not None:
                answer = unpacked(answer)
            self._is_ours(model, answer, artifact)
            if self.comparable(model):
                self.same_answers("forwarded as it came", [arrays_of(answer)], [expected])

    def test_forwards_streams(self, tmp_path: Path) -> None:
        with self._forwarding(tmp_path) as (model, artifact):
            if model is None or not model.decoupled:
                return
            inputs = self.inputs(model, ROWS)
            expected = self.answers(model, inputs)
            for wire in (False, True):
                request = request_of(inputs, artifact.model)
                if wire:
                    request.wire = encode_request(request, artifact.model, "")
                answers = self.on_loop(model, _collected(model, request))
                require(wire or all(a.wire is None for a in answers), "an answer with `wire`")
                answers = [each if each.wire is None else unpacked(each) for each in answers]
                for each in answers:
                    self._is_ours(model, each, artifact)
                if self.comparable(model):
                    self.same_answers("forwarded", [arrays_of(a) for a in answers], expected)
            # One that keeps its place after it was closed would use them all up.
            for _ in range(model.instances + 2):
                self.on_loop(model, _closed_early(model, request_of(inputs, artifact.model)))
            self.on_loop(model, _collected(model, request_of(inputs, artifact.model)))

    def test_forwarding_can_be_cancelled(self, tmp_path: Path) -> None:
        with self._forwarding(tmp_path) as (model, artifact):
            if model is None or model.decoupled:
                return
            request = request_of(self.inputs(model, ROWS), artifact.model)

            async def begin_and_cancel(steps: int) -> int:
                # As many as may be under way: none of them may keep its place.
                tasks = [
                    asyncio.ensure_future(model.forward(request, None, _no_header))
                    for _ in range(model.instances + 2)
                ]
                for _ in range(steps):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                _, hung = await asyncio.wait(tasks, timeout=self.patience / 2)
                for task in tasks:
                    if task.done() and not task.cancelled():
                        task.exception()
                return len(hung)

            for steps in (0, 1, 3):
                hung = self.on_loop(model, begin_and_cancel(steps))
                require(hung == 0, "forward() does not end when it is cancelled")
            self._forward(model, request)

    def test_forwards_nothing_that_is_late(self, tmp_path: Path) -> None:
        with self._forwarding(tmp_path) as (model, artifact):
            if model is None:
                return
            request = request_of(self.inputs(model, ROWS), artifact.model)
            late = perf_counter() - 1.0
            try:
                if model.decoupled:
                    self.on_loop(model, _collected(model, request, late))
                else:
                    self.on_loop(model, model.forward(request, late, _no_header))
            except SluiceError:
                return
            raise AssertionError("forwarding after the deadline must raise SluiceError")

    def test_has_a_status_that_can_be_shown(self, tmp_path: Path) -> None:
        with self._forwarding(tmp_path) as (model, _):
            if model is not None:
                try:
                    json.dumps(model.status())
                except TypeError as error:
                    raise AssertionError(f"status() must be plain values: {error}") from None

    # -- helpers -------------------------------------------------------------------------

    @contextmanager
    def _forwarding(self, folder: Path) -> Iterator[tuple[ForwardingModel | None, Artifact]]:
        """The good artifact's model, if it forwards, and whose it is."""
        with self.hosted(self.artifact(folder)) as artifact:
            model = self.runtime.load(artifact)
            try:
                yield model if isinstance(model, ForwardingModel) else None, artifact
            finally:
                model.close()

    def _forward(self, model: ForwardingModel, request: InferenceRequest) -> InferenceResponse:
        return self.on_loop(model, model.forward(request, None, _no_header))

    def _is_ours(self, model: Model, answer: InferenceResponse, artifact: Artifact) -> None:
        """Raises unless it is under the artifact's names and holds what the model declares."""
        names, ours = (answer.model, answer.version), (artifact.model, artifact.version)
        require(names == ours, f"the answer is from {names}, not under our names {ours}")
        got = arrays_of(answer)
        for spec in model.outputs:
            require(model.decoupled or spec.name in got, f"output {spec.name} is missing")
            if spec.name in got:
                check_tensor(spec, got[spec.name])


def arrays_of(answer: InferenceResponse) -> Outputs:
    return {tensor.name: tensor.array for tensor in answer.outputs}


def unpacked(answer: InferenceResponse) -> InferenceResponse:
    """An answer with `wire` as one with tensors."""
    assert answer.wire is not None
    payload = bytes(answer.wire)
    message = ModelInferResponse.FromString(payload)
    return decode_response(payload, message.model_name, message.model_version, wire=False)


def _no_header(name: str) -> str | None:
    return None


async def _collected(
    model: ForwardingModel, request: InferenceRequest, deadline: float | None = None
) -> list[InferenceResponse]:
    return [each async for each in model.forward_stream(request, deadline, _no_header)]


async def _closed_early(model: ForwardingModel, request: InferenceRequest) -> None:
    answers = model.forward_stream(request, None, _no_header)
    await anext(answers, None)
    close = getattr(answers, "aclose", None)
    require(callable(close), "what forward_stream() gives needs aclose(), as a generator has")
    await close()  # type: ignore[misc]
    require(await anext(answers, None) is None, "a closed stream goes on")
