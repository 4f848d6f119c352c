"""One loaded PyTorch model: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from queue import SimpleQueue
from typing import Any

from gateway.errors import InferenceFailed, InvalidInput
from gateway.tensors import BYTES, Array, Parameter, TensorSpec
from runtimes.interface import Model
from runtimes.onnx_metadata import Reshape
from runtimes.torch_errors import inference_error
from runtimes.torch_options import Plan
from runtimes.torch_program import MISSING, Program
from runtimes.torch_signature import Signature
from runtimes.torch_tensors import to_numpy, to_torch

Context = Callable[[], AbstractContextManager[Any]]


class TorchModel(Model):
    """`programs`: one, shared by all instances (running it changes nothing), or one a GPU,
    handed out so that each has about as many calls."""

    platform = "pytorch_libtorch"

    def __init__(
        self,
        torch: Any,
        programs: Sequence[Program],
        signature: Signature,
        plan: Plan,
        *,
        instances: int,
        threads: int,
    ) -> None:
        metadata = signature.metadata
        self.inputs = metadata.inputs
        self.outputs = metadata.outputs
        self.batch_dimension = metadata.batch_dimension
        self.instances = instances
        self.stateful = any(program.stateful for program in programs)
        self._torch = torch
        self._programs: Sequence[Program] = programs
        self._signature = signature
        self._plan = plan
        self._threads = threads
        self._specs: dict[str, TensorSpec] = {spec.name: spec for spec in metadata.outputs}
        self._on_gpu = programs[0].device != "cpu"
        self._mapping = programs[0].arguments.mapping
        self._copied = not self._on_gpu and any(program.writes_inputs for program in programs)
        self._positions = max(signature.inputs.values(), default=-1) + 1
        self._contexts = _contexts(torch, plan, programs[0].device)
        self._own = _storages(programs)
        self._idle: SimpleQueue[tuple[Program, Any]] | None = None
        if self._on_gpu:
            self._idle = SimpleQueue()
            for index in range(instances):
                program = programs[index % len(programs)]
                # Each instance has a stream of its own, or they would wait for each other.
                self._idle.put((program, torch.cuda.Stream(program.device)))

    def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        """As the interface says; BYTES come back as object arrays of `str`."""
        torch = self._torch
        if not self._programs:
            raise InferenceFailed("the model is closed")
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        names = outputs or tuple(self._specs)
        try:
            with ExitStack() as stack:
                for context in self._contexts:
                    stack.enter_context(context())
                values = self._prepare(inputs)
                if self._idle is None:
                    return self._run(self._programs[0], values, names)
                program, stream = self._idle.get()
                try:
                    with torch.cuda.device(program.device), torch.cuda.stream(stream):
                        return self._run(program, values, names)
                finally:
                    self._idle.put((program, stream))
                    if self._plan.cache_cleaning:
                        torch.cuda.empty_cache()
        except Exception as error:
            raise inference_error(torch, error) from error

    def _prepare(self, inputs: Mapping[str, Array]) -> list[Any]:
        """Values in the order of positions, on the CPU."""
        torch, signature = self._torch, self._signature
        reshapes = signature.metadata.input_reshapes
        values: list[Any] = [MISSING] * self._positions
        keyed: dict[str, Any] = {}
        for name, array in inputs.items():
            position = signature.inputs.get(name)
            if position is None:
                raise InvalidInput(f"the model has no input '{name}'")
            if name in reshapes:
                array = _reshaped(name, array, reshapes[name])
            if name in signature.texts:
                value: Any = _texts(name, array)
            else:
                value = to_torch(torch, array, copied=self._copied)
                if self._plan.channels_last and value.dim() == 4:
                    value = value.contiguous(memory_format=torch.channels_last)
            values[position] = keyed[name] = value
        for spec in self.inputs:
            if spec.name not in inputs and not spec.optional:
                raise InvalidInput(f"input '{spec.name}' is missing")
        return [keyed] if self._mapping else values

    def _run(
        self, program: Program, values: list[Any], names: Sequence[str]
    ) -> Mapping[str, Array]:
        if self._on_gpu:
            values = [_placed(value, program.device) for value in values]
        result = program.call(values)
        flat = None if isinstance(result, dict) else _leaves(result)
        borrowed = {*self._own, *(s for s in map(_storage, _tensors(values)) if s)}
        arrays: dict[str, Array] = {}
        for name in names:
            value = self._pick(name, result, flat)
            if _storage(value) in borrowed:
                value = value.clone()  # the answer must outlive the request and the next call
            arrays[name] = self._array(name, value)
        return arrays

    def _pick(self, name: str, result: Any, flat: list[Any] | None) -> Any:
        place = self._signature.outputs.get(name)
        if place is None:
            raise InferenceFailed(f"the model has no output '{name}'")
        if isinstance(place, str):
            if flat is None and place in result:
                return result[place]
            gives = "a dict with: " + ", ".join(map(str, result)) if flat is None else "no dict"
            raise InferenceFailed(f"output '{name}' is missing: the model gives {gives}")
        if flat is None:
            flat = _leaves(result)
        if place >= len(flat):
            raise InferenceFailed(
                f"output '{name}' is declared as number {place} (from 0), but the model gives "
                f"{len(flat)}"
            )
        return flat[place]

    def _array(self, name: str, value: Any) -> Array:
        spec = self._specs[name]
        cast = self._plan.autocast != "off"
        array = to_numpy(self._torch, name, value, spec.datatype, cast=cast)
        reshape = self._signature.metadata.output_reshapes.get(name)
        try:
            if reshape is not None:
                array = array.reshape(reshape(array.shape))
            elif spec.datatype is BYTES and array.ndim != len(spec.shape):
                array = array.reshape([len(array), *([1] * (len(spec.shape) - 1))])
        except ValueError as error:
            raise InferenceFailed(
                f"output '{name}' of shape {list(array.shape)} cannot be reshaped: {error}"
            ) from None
        return array

    def close(self) -> None:
        """Gives the weights' memory back; on a GPU to the driver."""
        programs, self._programs, self._idle = self._programs, (), None
        for program in programs:
            program.release()
        if programs and self._on_gpu:
            self._torch.cuda.empty_cache()


def _contexts(torch: Any, plan: Plan, device: str) -> tuple[Context, ...]:
    """What is in force while the model runs."""
    contexts: list[Context] = [torch.inference_mode if plan.inference_mode else torch.no_grad]
    if plan.autocast != "off":
        kind = torch.bfloat16 if plan.autocast == "bf16" else torch.float16
        type_of = device.partition(":")[0]
        contexts.append(lambda: torch.autocast(type_of, dtype=kind))
    if not plan.optimized_execution:
        contexts.append(lambda: torch.jit.optimized_execution(False))
    return tuple(contexts)


def _reshaped(name: str, array: Array, reshape: Reshape) -> Array:
    try:
        return array.reshape(reshape(array.shape))
    except ValueError as error:
        raise InvalidInput(
            f"input '{name}' of shape {list(array.shape)} cannot be reshaped: {error}"
        ) from None


def _texts(name: str, array: Array) -> list[str]:
    try:
        return [e.decode() if isinstance(e, bytes) else str(e) for e in array.ravel().tolist()]
    except UnicodeDecodeError:
        raise InvalidInput(f"input '{name}' is not UTF-8, and this model takes text") from None


def _placed(value: Any, device: str) -> Any:
    if isinstance(value, dict):
        return {key: _placed(each, device) for key, each in value.items()}
    return value.to(device) if hasattr(value, "to") else value


def _leaves(result: Any) -> list[Any]:
    """What ``forward()`` gave, flat; a list of text is one value."""
    if isinstance(result, (tuple, list)):
        if result and isinstance(result[0], str):
            return [result]
        return [leaf for each in result for leaf in _leaves(each)]
    if isinstance(result, dict):
        return [leaf for each in result.values() for leaf in _leaves(each)]
    return [result]


def _tensors(values: Sequence[Any]) -> list[Any]:
    return [t for v in values for t in (v.values() if isinstance(v, dict) else (v,))]


def _storage(value: Any) -> int:
    """Where a tensor's memory starts; 0 for what has none."""
    try:
        return int(value.untyped_storage().data_ptr())
    except (AttributeError, RuntimeError, NotImplementedError):
        return 0


def _storages(programs: Sequence[Program]) -> frozenset[int]:
    """Memory of the weights, which an output may be a view of."""
    modules = [program.module for program in programs if program.module is not None]
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return frozenset(filter(None, map(_storage, tensors)))
