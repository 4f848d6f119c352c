"""``pb_utils.Tensor``, its datatypes, and how BYTES are written."""

from __future__ import annotations

import struct
from typing import Any, Final

import ml_dtypes
import numpy as np

from gateway.tensors import BYTES, DATATYPES, Array
from gateway.tensors import Tensor as OurTensor
from runtimes.python.pb.errors import TritonModelException

NUMBERS: Final = {
    "BOOL": 1, "UINT8": 2, "UINT16": 3, "UINT32": 4, "UINT64": 5, "INT8": 6, "INT16": 7,
    "INT32": 8, "INT64": 9, "FP16": 10, "FP32": 11, "FP64": 12, "BYTES": 13, "BF16": 14,
}  # fmt: skip
"""Datatype → Triton's number for it."""
NAMES: Final = {number: name for name, number in NUMBERS.items()}
CPU: Final = 1
"""DLPack's number for host memory."""


def scalar_type(name: str) -> Any:
    """The numpy type of a datatype."""
    return np.object_ if name == "BYTES" else DATATYPES[name].dtype.type


TRITON_STRING_TO_NUMPY: Final[dict[str, Any]] = {
    f"TYPE_{'STRING' if name == 'BYTES' else name}": bool if name == "BOOL" else scalar_type(name)
    for name in NUMBERS
    if name != "BF16"
}


def triton_to_numpy_type(data_type: int) -> Any:
    """The numpy type of Triton's number; `None` for one that does not exist."""
    name = NAMES.get(int(data_type))
    return None if name is None or name == "BF16" else scalar_type(name)


def numpy_to_triton_type(data_type: Any) -> int | None:
    """Triton's number of a numpy type; `None` for one that Triton does not have."""
    dtype = np.dtype(data_type)
    if dtype.kind in "OS":
        return NUMBERS["BYTES"]
    found = (n for n, kind in DATATYPES.items() if n != "BYTES" and kind.dtype == dtype)
    name = next(found, None)
    return None if name is None else NUMBERS[name]


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """The numpy type of a name such as ``TYPE_FP32``. Raises `KeyError`."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def serialize_byte_tensor(input_tensor: Array) -> Any:
    """Elements one behind the other, each after its length (4 bytes, little-endian).

    `()` for an empty tensor, `None` for one that is no BYTES, as in Triton.
    """
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype.kind not in "OS":
        return None
    parts: list[bytes] = []
    for element in input_tensor.ravel().tolist():
        raw = element if isinstance(element, bytes) else str(element).encode()
        parts += (struct.pack("<I", len(raw)), raw)
    return b"".join(parts)


def deserialize_bytes_tensor(encoded_tensor: bytes) -> Array:
    """The other way: a flat object array of `bytes`. Raises `struct.error` for broken data."""
    elements: list[bytes] = []
    offset = 0
    while offset < len(encoded_tensor):
        (length,) = struct.unpack_from("<I", encoded_tensor, offset)
        (raw,) = struct.unpack_from(f"<{length}s", encoded_tensor, offset + 4)
        elements.append(raw)
        offset += 4 + length
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array


class Tensor:
    """A name and an array; always in host memory."""

    def __init__(self, name: str, numpy_array: Array) -> None:
        if not isinstance(numpy_array, np.ndarray):
            raise TypeError(f"Tensor '{name}' takes a numpy array, not {type(numpy_array)}")
        number = numpy_to_triton_type(numpy_array.dtype)
        if number is None:
            hint = "; make it .astype(object)" if numpy_array.dtype.kind == "U" else ""
            raise TritonModelException(
                f"tensor '{name}' is {numpy_array.dtype}, which Triton has no datatype for{hint}"
            )
        self._name = name
        self._number = number
        self._array = numpy_array

    def name(self) -> str:
        """The tensor's name."""
        return self._name

    def triton_dtype(self) -> int:
        """Triton's number of the datatype."""
        return self._number

    def shape(self) -> list[int]:
        """Sizes of the dimensions."""
        return list(self._array.shape)

    def is_cpu(self) -> bool:
        """Always: outputs of other models come in host memory too."""
        return True

    def as_numpy(self) -> Array:
        """The array; models may write into it."""
        if not self._array.flags.writeable:
            self._array = self._array.copy()
        return self._array

    def to_dlpack(self) -> Any:
        """A DLPack capsule over the array."""
        return self.__dlpack__()

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        if self._array.dtype.kind == "O":
            raise TritonModelException("DLPack has no BYTES; use as_numpy()")
        array = self.as_numpy()
        try:
            return array.__dlpack__(**options)
        except TypeError:  # a numpy that knows fewer options
            return array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CPU, 0)

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:
        """A tensor over whatever speaks DLPack, or a capsule; GPU tensors are copied here."""
        return Tensor(name, array_from_dlpack(name, tensor))

    @staticmethod
    def of(tensor: OurTensor) -> Tensor:
        """One of a request's, or of another model's answer."""
        return Tensor(tensor.name, tensor.array)

    def ours(self) -> OurTensor:
        """For a request to another model."""
        kind = DATATYPES[NAMES[self._number]]
        array = self._array
        if kind is BYTES and array.dtype.kind != "O":
            array = array.astype(object)
        elif kind is not BYTES:
            array = np.ascontiguousarray(array).reshape(array.shape)
        return OurTensor(self._name, kind, array.shape, array=array)


class _Capsule:
    """A bare capsule in the form that numpy takes."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **options: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CPU, 0)


def array_from_dlpack(name: str, tensor: Any) -> Array:
    """Raises `TritonModelException` for what has no numpy counterpart."""
    if type(tensor).__name__ == "PyCapsule":
        tensor = _Capsule(tensor)
    elif not hasattr(tensor, "__dlpack__") or not hasattr(tensor, "__dlpack_device__"):
        raise TritonModelException(
            f"tensor '{name}': {type(tensor).__name__} is neither a DLPack capsule nor has it "
            "__dlpack__ and __dlpack_device__"
        )
    try:
        if int(tensor.__dlpack_device__()[0]) != CPU:
            return _from_gpu(tensor)
        return np.from_dlpack(tensor)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TritonModelException(
            f"tensor '{name}' cannot be taken over by DLPack: {error}"
        ) from error


def _from_gpu(tensor: Any) -> Array:
    """A copy in host memory; untried on a GPU."""
    import torch

    found: Any = torch.utils.dlpack.from_dlpack(tensor).cpu()
    if found.dtype is torch.bfloat16:
        return np.asarray(found.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.asarray(found.numpy())
