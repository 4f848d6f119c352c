"""One loaded ONNX model: tensors in, tensors out."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import numpy as np

from gateway.errors import InferenceFailed, InvalidInput
from gateway.tensors import BYTES, DATATYPES, Array, Parameter, objects
from runtimes.interface import Model
from runtimes.onnx_metadata import Metadata

BF16: Final = DATATYPES["BF16"]
_BF16_IN_ONNX: Final = 16

_PREFIX: Final = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_LOADING: Final = re.compile(r"^Load model from .*? failed: ?")
_PATH: Final = re.compile(r"(?<![\w'])/(?:[\w.+@-]+/)+")


def one_line(error: BaseException, folder: Path | None = None, limit: int = 400) -> str:
    """ONNX Runtime's message without its code, line breaks and the folders of this machine."""
    message = str(error) if folder is None else str(error).replace(f"{folder}/", "")
    text = _LOADING.sub("", _PREFIX.sub("", " ".join(message.split())))
    text = _PATH.sub("", text)
    text = text or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


class OnnxModel(Model):
    """`sessions`: one, shared by all instances (`run` is thread-safe and the weights are in
    memory once), or one a GPU, handed out so that each has about as many calls."""

    platform = "onnxruntime_onnx"
    fresh = True

    def __init__(
        self, ort: Any, sessions: Sequence[Any], metadata: Metadata, *, instances: int
    ) -> None:
        self.inputs = metadata.inputs
        self.outputs = metadata.outputs
        self.batch_dimension = metadata.batch_dimension
        self.instances = instances
        self._input_reshapes = metadata.input_reshapes
        self._output_reshapes = metadata.output_reshapes
        self._output_names = [spec.name for spec in metadata.outputs]
        self._strings = frozenset(s.name for s in metadata.inputs if s.datatype is BYTES)
        self._plain = not (self._strings or metadata.input_reshapes)
        self._invalid: type[Exception] = ort.capi.onnxruntime_pybind11_state.InvalidArgument
        # One object for all calls: making one each time costs 1 µs of 6.
        self._run_options = ort.RunOptions()
        self._session: Any = sessions[0]
        self._idle: SimpleQueue[Any] | None = None
        if len(sessions) > 1:
            self._idle = SimpleQueue()
            for index in range(instances):
                self._idle.put(sessions[index % len(sessions)])

    def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        """As the interface says; BYTES come back as object arrays of `str`."""
        feed = inputs if self._plain else self._prepare(inputs)
        for array in feed.values():
            if not array.flags.aligned:
                # A view of received bytes may start anywhere; kernels assume that it does not.
                feed = {name: np.require(each, None, "A") for name, each in feed.items()}
                break
        names = outputs or self._output_names
        try:
            if self._idle is None:
                values = self._run(self._session, names, feed)
            else:
                values = self._run_on_idle(self._idle, names, feed)
        except Exception as error:
            raise self._failure(error) from error
        results = dict(zip(names, values, strict=True))
        if self._output_reshapes:
            self._reshape_outputs(results)
        return results

    def _run_on_idle(
        self, idle: SimpleQueue[Any], names: Sequence[str], feed: Mapping[str, Array]
    ) -> list[Array]:
        session = idle.get()
        try:
            return self._run(session, names, feed)
        finally:
            idle.put(session)

    def _failure(self, error: Exception) -> InferenceFailed:
        if self._session is None:
            return InferenceFailed("the model is closed")
        kind = InvalidInput if isinstance(error, self._invalid) else InferenceFailed
        return kind(one_line(error))

    def _run(self, session: Any, names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        # Of the three ways to call a session this is the quickest for small models: 5 µs,
        # with IO binding 14 µs, with OrtValues 70 µs.
        values: list[Array] = session.run(names, feed, self._run_options)
        return values

    def _prepare(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs as the model takes them: other shapes, text instead of bytes."""
        feed: dict[str, Array] = {}
        for name, array in inputs.items():
            reshape = self._input_reshapes.get(name)
            if reshape is not None:
                array = array.reshape(reshape(array.shape))
            feed[name] = to_text(name, array) if name in self._strings else array
        return feed

    def _reshape_outputs(self, results: dict[str, Array]) -> None:
        for name, reshape in self._output_reshapes.items():
            array = results.get(name)
            if array is None:
                continue
            try:
                results[name] = array.reshape(reshape(array.shape))
            except ValueError as error:
                raise InferenceFailed(
                    f"output '{name}' of shape {list(array.shape)} cannot be reshaped: {error}"
                ) from None

    def close(self) -> None:
        """Drops the sessions; their memory goes with them."""
        self._session = None
        self._idle = None


class BoundOnnxModel(OnnxModel):
    """Calls through IO binding, for what `run` cannot do or does with more copies.

    That is bfloat16, which ONNX Runtime's numpy interface does not know, and GPUs. Inputs are
    bound where they lie, outputs are brought to the CPU. Text inputs cannot be bound. Untried
    on a GPU.
    """

    def __init__(
        self, ort: Any, sessions: Sequence[Any], metadata: Metadata, *, instances: int
    ) -> None:
        super().__init__(ort, sessions, metadata, instances=instances)
        self._bf16 = frozenset(s.name for s in metadata.inputs if s.datatype is BF16)

    def _run(self, session: Any, names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        binding = session.io_binding()
        kept: list[Array] = []  # a pointer does not keep its array alive
        for name, array in feed.items():
            if name in self._bf16:
                array = np.ascontiguousarray(array)
                kept.append(array)
                binding.bind_input(
                    name, "cpu", 0, _BF16_IN_ONNX, list(array.shape), array.ctypes.data
                )
            else:
                binding.bind_cpu_input(name, array)
        for name in names:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding, self._run_options)
        return [_to_numpy(value) for value in binding.get_outputs()]


def _to_numpy(value: Any) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(data, BF16.dtype).reshape(value.shape())


def to_text(name: str, array: Array) -> Array:
    """`array` with text in place of bytes: ONNX Runtime would take ``str(b'...')`` instead.

    Raises `InvalidInput` for bytes that are not UTF-8, which ONNX strings are.
    """
    elements: list[Any] = array.ravel().tolist()
    try:
        texts = [e.decode() if isinstance(e, bytes) else str(e) for e in elements]
    except UnicodeDecodeError:
        bad = next(i for i, e in enumerate(elements) if not _is_text(e))
        raise InvalidInput(
            f"input '{name}': element {bad} is not UTF-8, and this model takes text"
        ) from None
    return objects(texts, array.shape)  # type: ignore[arg-type]


def _is_text(element: object) -> bool:
    try:
        return not isinstance(element, bytes) or bool(element.decode() or True)
    except UnicodeDecodeError:
        return False
