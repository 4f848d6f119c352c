"""Datatypes, tensors, requests and responses: the protocol-neutral middle of the gateway.

A `Tensor` is a name, a datatype and a shape over either received bytes or a numpy array; each
form is made from the other when somebody asks, so bytes that nobody looks into are never
copied or converted.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Sequence
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gateway.errors import InvalidRequest, printable

Buffer = bytes | bytearray | memoryview
Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Parameter = str | int | float | bool
Signature = tuple[Any, ...]
"""What must be equal for rows to share a batch: names, datatypes, inner shapes, parameters."""

MAX_RANK: Final = 32
_MAX_ELEMENTS: Final = 2**59
_U32 = struct.Struct("<I")
_NATIVE: Final = (
    dict(
        BOOL="?", INT8="b", INT16="h", INT32="i", INT64="q", UINT8="B", UINT16="H", UINT32="I",
        UINT64="Q", FP32="f", FP64="d",
    )
    if sys.byteorder == "little"
    else {}
)  # fmt: skip
"""Memory formats of the datatypes, where the machine's byte order is that of the wire."""


class Datatype:
    """One Open Inference Protocol datatype.

    `itemsize` is in bytes, 0 for BYTES, whose elements have each a length of their own.
    `any_bytes`: whatever bytes come are elements, so that their number is all there is to check.
    """

    __slots__ = ("any_bytes", "dtype", "itemsize", "kind", "name")

    def __init__(self, name: str, dtype: npt.DTypeLike, kind: str) -> None:
        self.name = name
        self.dtype = np.dtype(dtype)
        self.kind = kind
        self.itemsize = 0 if name == "BYTES" else self.dtype.itemsize
        self.any_bytes = kind not in ("bytes", "bool")

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        # There is one object of each, in every process.
        return datatype, (self.name,)


BYTES: Final = Datatype("BYTES", object, "bytes")
DATATYPES: Final[dict[str, Datatype]] = {
    d.name: d
    for d in (
        Datatype("BOOL", np.bool_, "bool"),
        Datatype("UINT8", "<u1", "int"),
        Datatype("UINT16", "<u2", "int"),
        Datatype("UINT32", "<u4", "int"),
        Datatype("UINT64", "<u8", "int"),
        Datatype("INT8", "<i1", "int"),
        Datatype("INT16", "<i2", "int"),
        Datatype("INT32", "<i4", "int"),
        Datatype("INT64", "<i8", "int"),
        Datatype("FP16", "<f2", "float"),
        Datatype("BF16", ml_dtypes.bfloat16, "float"),
        Datatype("FP32", "<f4", "float"),
        Datatype("FP64", "<f8", "float"),
        BYTES,
    )
}
_BY_DTYPE: Final = {d.dtype: d for d in DATATYPES.values()}


def datatype(name: str) -> Datatype:
    """The datatype called `name`. Raises `InvalidRequest` for an unknown one."""
    try:
        return DATATYPES[name]
    except (KeyError, TypeError):
        raise InvalidRequest(
            f"unknown datatype '{printable(name)}'; known: {', '.join(DATATYPES)}"
        ) from None


def datatype_of(array: Array) -> Datatype:
    """The datatype of a numpy array. Raises `KeyError` when the protocol has none for it."""
    if array.dtype.kind in "OSU":
        return BYTES
    return _BY_DTYPE[array.dtype.newbyteorder("<") if array.dtype.kind in "iuf" else array.dtype]


class TensorSpec:
    """Declared tensor of a model: `shape` with -1 for dimensions of any size.

    `content` is empty but for columns of MLflow's: ``column``, or what is in the elements of one:
    ``binary``, ``datetime`` (ISO 8601) or ``json``.
    """

    __slots__ = ("content", "datatype", "name", "optional", "shape")

    def __init__(
        self,
        name: str,
        datatype: Datatype,
        shape: Shape,
        *,
        optional: bool = False,
        content: str = "",
    ) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self.optional = optional
        self.content = content

    def __repr__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"


class Tensor:
    """A named tensor, row-major.

    Exactly one of `data` (little-endian bytes as on the wire; BYTES elements with a `<u32>`
    length each) and `array` must be given. Arrays made from received bytes are read-only
    views. Raises `InvalidRequest` when bytes and shape do not agree (checked on the way in
    by `check_size`, or by `array` for BYTES).
    """

    __slots__ = ("_array", "_data", "datatype", "name", "shape")

    def __init__(
        self,
        name: str,
        datatype: Datatype,
        shape: Shape,
        data: Buffer | None = None,
        array: Array | None = None,
    ) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self._data = data
        self._array = array

    def __repr__(self) -> str:
        return f"Tensor({self.name} {self.datatype} {list(self.shape)})"

    @property
    def array(self) -> Array:
        """The tensor as a numpy array of `shape`; BYTES as an object array of `bytes`."""
        array = self._array
        if array is None:
            assert self._data is not None
            if self.datatype is BYTES:
                array = decode_bytes_elements(self.name, self._data, self.shape)
            else:
                array = np.frombuffer(self._data, self.datatype.dtype).reshape(self.shape)
            self._array = array
        return array

    @property
    def packed(self) -> bool:
        """Whether `data` is there already."""
        return self._data is not None

    @property
    def data(self) -> Buffer:
        """The tensor's bytes as on the wire."""
        data = self._data
        if data is None:
            assert self._array is not None
            data = self._data = to_wire(self._array)
        return data

    def short_list(self) -> list[Any] | None:
        """The elements as plain values, row-major, if that is quicker without numpy."""
        data = self._data
        code = _NATIVE.get(self.datatype.name)
        if data is None or code is None or len(data) > 1024:
            return None
        return memoryview(data).cast("B").cast(code).tolist()  # type: ignore[call-overload, no-any-return]

    @property
    def nbytes(self) -> int:
        """Size in bytes on the wire (for BYTES arrays: of the elements and their lengths)."""
        if self._data is not None:
            return len(self._data)
        if self.datatype.itemsize:
            return element_count(self.shape) * self.datatype.itemsize
        return len(self.data)

    def check_data(self) -> None:
        """Raises `InvalidRequest` unless the bytes are a tensor of this shape and datatype."""
        if self.datatype is BYTES:
            _ = self.array
            return
        self.check_size()
        if not self.datatype.any_bytes and bytes(self.data).translate(None, b"\0\1"):
            raise InvalidRequest(f"input '{printable(self.name)}' is BOOL, but has bytes above 1")

    def check_size(self) -> None:
        """Raises `InvalidRequest` unless the bytes have the size that shape and datatype say."""
        itemsize = self.datatype.itemsize
        data = self._data
        if data is None or not itemsize:
            return
        expected = element_count(self.shape) * itemsize
        if len(data) != expected:
            raise InvalidRequest(
                f"input '{printable(self.name)}' has {len(data)} bytes, but {self.datatype} "
                f"{list(self.shape)} takes {expected}"
            )

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` along the first dimension, without copying."""
        shape = (stop - start, *self.shape[1:])
        if self._array is None and self._data is not None and self.datatype.itemsize:
            row = len(self._data) // self.shape[0]
            part = memoryview(self._data)[start * row : stop * row]
            return Tensor(self.name, self.datatype, shape, part)
        return Tensor(self.name, self.datatype, shape, array=self.array[start:stop])


def element_count(shape: Sequence[int]) -> int:
    """Number of elements of a tensor of this shape; Python integers do not overflow."""
    return math.prod(shape)


def check_shape(name: str, shape: Sequence[object]) -> Shape:
    """`shape` as a tuple of integers >= 0. Raises `InvalidRequest` otherwise."""
    if len(shape) > MAX_RANK:
        raise InvalidRequest(
            f"input '{printable(name)}' has {len(shape)} dimensions, more than {MAX_RANK}"
        )
    for dim in shape:
        if type(dim) is not int:
            raise InvalidRequest(
                f"input '{printable(name)}': shape must be a list of integers, "
                f"not {printable(list(shape))}"
            )
        if dim < 0 or dim > 2**31 - 1:
            raise InvalidRequest(
                f"input '{printable(name)}': dimension {dim} in shape {printable(list(shape))} "
                f"is not between 0 and 2147483647"
            )
    if 0 in shape and math.prod([dim or 1 for dim in shape]) > _MAX_ELEMENTS:  # type: ignore[misc]
        # Nothing to hold, and yet numpy cannot make it.
        raise InvalidRequest(
            f"input '{printable(name)}': shape {printable(list(shape))} is too large"
        )
    return tuple(shape)  # type: ignore[arg-type]


def decode_bytes_elements(name: str, data: Buffer, shape: Shape) -> Array:
    """An object array of `bytes` from length-prefixed elements (`<u32 LE length><bytes>`).

    Raises `InvalidRequest` when the data is truncated, too long, or holds another number of
    elements than `shape` says.
    """
    expected = element_count(shape)
    total = len(data)
    # Each element takes at least its length: refuse before a huge shape costs memory.
    if expected * 4 > total:
        raise InvalidRequest(
            f"input '{printable(name)}': {total} bytes cannot hold the {expected} BYTES "
            f"elements of shape {printable(list(shape))}"
        )
    elements: list[bytes] = []
    data = bytes(data)
    unpack = _U32.unpack_from
    offset = 0
    try:
        for _ in range(expected):
            start = offset + 4
            offset = start + unpack(data, offset)[0]
            elements.append(data[start:offset])
    except struct.error:
        # Here ends an element that was cut short by the end of the data.
        offset = max(offset, total + 1)
    if offset > total:
        raise InvalidRequest(
            f"input '{printable(name)}': BYTES data ends inside element {max(len(elements) - 1, 0)}"
        )
    if offset != total:
        raise InvalidRequest(
            f"input '{printable(name)}': shape {printable(list(shape))} takes {expected} BYTES "
            f"elements, but the data goes on for {total - offset} bytes behind them"
        )
    return objects(elements, shape)


def objects(elements: Sequence[bytes], shape: Shape) -> Array:
    """An object array of `shape` over `elements`; numpy must not look into them."""
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)


def as_bytes(element: object) -> bytes:
    """One BYTES element as bytes; text is UTF-8."""
    if isinstance(element, bytes):
        return element
    return str(element).encode("utf-8", "surrogateescape")


def to_wire(array: Array) -> Buffer:
    """The bytes of an array as on the wire, little-endian, without a copy where possible."""
    if array.dtype.kind in "OSU":
        parts: list[bytes] = []
        for element in array.ravel().tolist():
            raw = as_bytes(element)
            parts.append(_U32.pack(len(raw)))
            parts.append(raw)
        return b"".join(parts)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.nbytes <= 65536:
        return array.tobytes()
    contiguous = np.ascontiguousarray(array)
    return contiguous.reshape(-1).view(np.uint8).data


class InferenceRequest:
    """One decoded request, whatever protocol it came by.

    `outputs` names the requested outputs, empty for all. `signature` and `rows` describe the
    inputs for batching (first dimension = rows). `timeout_us` and `priority` come from the
    reserved parameters, 0 when absent. `wire`, where it is not `None`, is the request as a
    serialized ``ModelInferRequest`` with raw contents. `unchecked`: the bytes of BYTES and BOOL
    inputs were not looked into yet; whoever lets a runtime see them calls `check_data` first.
    """

    __slots__ = (
        "id",
        "inputs",
        "model",
        "outputs",
        "parameters",
        "priority",
        "rows",
        "signature",
        "timeout_us",
        "unchecked",
        "version",
        "wire",
    )

    def __init__(
        self,
        model: str,
        version: str,
        inputs: tuple[Tensor, ...],
        *,
        id: str = "",
        outputs: tuple[str, ...] = (),
        parameters: dict[str, Parameter] | None = None,
        signature: Signature | None = None,
        timeout_us: int = 0,
        priority: int = 0,
        wire: Buffer | None = None,
        unchecked: bool = False,
    ) -> None:
        self.model = model
        self.version = version
        self.inputs = inputs
        self.id = id
        self.outputs = outputs
        self.parameters = parameters
        self.signature = signature_of(inputs) if signature is None else signature
        self.rows = inputs[0].shape[0] if inputs and inputs[0].shape else 1
        self.timeout_us = timeout_us
        self.priority = priority
        self.wire = wire
        self.unchecked = unchecked

    def with_inputs(self, inputs: tuple[Tensor, ...]) -> InferenceRequest:
        """The same request over other tensors of the same signature, without an id."""
        return InferenceRequest(
            self.model,
            self.version,
            inputs,
            outputs=self.outputs,
            parameters=self.parameters,
            signature=self.signature,
            timeout_us=self.timeout_us,
            priority=self.priority,
            unchecked=self.unchecked,
        )

    def without_data(self) -> InferenceRequest:
        """The request without its tensors' bytes, to make others from."""
        return self.with_inputs(
            tuple(Tensor(t.name, t.datatype, t.shape, b"") for t in self.inputs)
        )

    def check_data(self) -> None:
        """Raises `InvalidRequest` unless the bytes of every input are what its shape and datatype
        say, so that a broken one harms nobody else's batch."""
        for tensor in self.inputs:
            tensor.check_data()
        self.unchecked = False

    @property
    def nbytes(self) -> int:
        """Bytes of all input tensors."""
        total = 0
        for tensor in self.inputs:
            total += tensor.nbytes
        return total


def signature_of(inputs: Sequence[Tensor]) -> Signature:
    """Names, datatypes and inner shapes, in the order given; ranks tell () from (0,)."""
    return tuple([(t.name, t.datatype.name, len(t.shape), t.shape[1:]) for t in inputs])


class InferenceResponse:
    """One answer: output tensors and who gave them.

    `route` says why this version was chosen: split, sticky, label, version or fallback. `wire`,
    where it is not `None`, is the answer as a serialized ``ModelInferResponse``; then `outputs`
    is empty, and the id is in there as well. `fresh`: nobody changes the outputs' memory any more,
    so that it may be sent from where it lies.
    """

    __slots__ = ("fresh", "id", "model", "outputs", "parameters", "route", "version", "wire")

    def __init__(
        self,
        model: str,
        version: str,
        outputs: Sequence[Tensor],
        *,
        id: str = "",
        route: str = "",
        parameters: dict[str, Parameter] | None = None,
        wire: Buffer | None = None,
        fresh: bool = False,
    ) -> None:
        self.model = model
        self.version = version
        self.outputs = outputs
        self.id = id
        self.route = route
        self.parameters = parameters
        self.wire = wire
        self.fresh = fresh
