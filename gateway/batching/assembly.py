"""Rows of several requests into one batch, and the answers back to their callers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gateway.call import Call
from gateway.errors import InferenceFailed, WrongRows
from gateway.tensors import BYTES, Array, Datatype, InferenceResponse, Tensor, TensorSpec
from runtimes.interface import Answer


def assemble(calls: Sequence[Call], rows: int) -> dict[str, Array]:
    """The input arrays of one batch. A batch of one is passed on as it came, not copied."""
    first = calls[0].request.inputs
    if len(calls) == 1:
        return {tensor.name: tensor.array for tensor in first}
    batch: dict[str, Array] = {}
    for index, tensor in enumerate(first):
        datatype = tensor.datatype
        if datatype is BYTES:
            parts = [call.request.inputs[index].array for call in calls]
            batch[tensor.name] = np.concatenate(parts)
        else:
            # Joining bytes costs a tenth of concatenating small arrays.
            joined = b"".join([call.request.inputs[index].data for call in calls])
            array = np.frombuffer(joined, datatype.dtype)
            batch[tensor.name] = array.reshape((rows, *tensor.shape[1:]))
    return batch


def wanted_outputs(calls: Sequence[Call]) -> tuple[str, ...]:
    """The outputs that the batch must give, empty for all."""
    wanted = calls[0].request.outputs
    for call in calls:
        if call.request.outputs != wanted:
            names: dict[str, None] = {}
            for each in calls:
                if not each.request.outputs:
                    return ()
                names.update(dict.fromkeys(each.request.outputs))
            return tuple(names)
    return wanted


def check_rows(outputs: Mapping[str, Array], rows: int) -> None:
    """Raises `WrongRows` unless every output has `rows` rows."""
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != rows:
            shape = list(array.shape)
            raise WrongRows(
                f"the model returned output '{name}' of shape {shape} for a batch of {rows} rows; "
                f"set 'max_batch_size: 0' if its first dimension is not a batch"
            )


class Splitter:
    """Hands the rows of a batch's outputs back, each caller exactly its own."""

    __slots__ = ("_datatypes", "_fresh", "_model", "_version")

    def __init__(
        self, model: str, version: str, outputs: Sequence[TensorSpec], *, fresh: bool = False
    ) -> None:
        self._model = model
        self._version = version
        self._fresh = fresh
        self._datatypes: dict[str, Datatype] = {o.name: o.datatype for o in outputs}

    def split(self, calls: Sequence[Call], outputs: Mapping[str, Array]) -> list[InferenceResponse]:
        """One response a call, in the order of `calls`."""
        if len(calls) == 1:
            tensors = [
                Tensor(name, self._datatype(name, array), array.shape, array=array)
                for name, array in outputs.items()
            ]
            response = self._response(calls[0], tensors)
            # Rows of a shared batch are copied, or one slow reader would keep all of it in memory.
            response.fresh = self._fresh
            if type(outputs) is Answer and outputs.parameters:
                response.parameters = dict(outputs.parameters)
            return [response]
        columns = [self._column(name, array, calls) for name, array in outputs.items()]
        return [
            self._response(call, tensors)
            for call, tensors in zip(calls, zip(*columns, strict=True), strict=True)
        ]

    def _datatype(self, name: str, array: Array) -> Datatype:
        """The declared datatype of an output. Raises `InferenceFailed` for another one."""
        datatype = self._datatypes.get(name)
        if datatype is None:
            raise InferenceFailed(f"the model returned output '{name}', which it does not declare")
        if array.dtype != datatype.dtype and not (datatype is BYTES and array.dtype.kind in "SU"):
            raise InferenceFailed(
                f"the model returned output '{name}' as {array.dtype}, but declares it {datatype}"
            )
        return datatype

    def _column(self, name: str, array: Array, calls: Sequence[Call]) -> list[Tensor]:
        """One output cut into the rows of each call."""
        datatype = self._datatype(name, array)
        inner = array.shape[1:]
        start = 0
        column: list[Tensor] = []
        if datatype is BYTES:
            for call in calls:
                stop = start + call.rows
                part = array[start:stop]
                column.append(Tensor(name, datatype, part.shape, array=part))
                start = stop
            return column
        data: bytes | memoryview
        if array.nbytes <= 65536:
            data = array.tobytes()
        else:
            flat = np.ascontiguousarray(array).reshape(-1)
            data = flat.view(np.uint8).data
        row = len(data) // array.shape[0]
        one = (1, *inner)
        for call in calls:
            count = call.rows
            stop = start + count * row
            shape = one if count == 1 else (count, *inner)
            column.append(Tensor(name, datatype, shape, data[start:stop]))
            start = stop
        return column

    def _response(self, call: Call, tensors: Sequence[Tensor]) -> InferenceResponse:
        request = call.request
        wanted = request.outputs
        if wanted:
            named = {tensor.name: tensor for tensor in tensors}
            try:
                tensors = [named[name] for name in wanted]
            except KeyError as missing:
                raise InferenceFailed(f"the model gave no output {missing}") from None
        return InferenceResponse(self._model, self._version, tensors, id=request.id)


def join_slices(parts: Sequence[InferenceResponse]) -> list[Tensor]:
    """The outputs of one oversized request, from the answers to its slices in order."""
    tensors: list[Tensor] = []
    for column in zip(*(part.outputs for part in parts), strict=True):
        array = np.concatenate([tensor.array for tensor in column])
        tensors.append(Tensor(column[0].name, column[0].datatype, array.shape, array=array))
    return tensors
