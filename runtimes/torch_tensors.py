"""Tensors between numpy and PyTorch, without copying where that is possible."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from gateway.errors import InferenceFailed
from gateway.tensors import DATATYPES, Array, Datatype, objects

BF16: Final = DATATYPES["BF16"]
TORCH_NAMES: Final = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16",
    "BF16": "bfloat16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
"""The protocol's datatypes and PyTorch's; PyTorch has no tensors of text."""
OIP_NAMES: Final = {torch: oip for oip, torch in TORCH_NAMES.items()}


def to_torch(torch: Any, array: Array, *, copied: bool) -> Any:
    """A tensor over `array`'s memory, or over a copy of it.

    `copied`: the model may write into its inputs, which are the received bytes.
    """
    bfloat16 = array.dtype == BF16.dtype
    if bfloat16:
        array = array.view(np.int16)
    if copied:
        array = np.array(array, order="C")
    elif not (array.flags.aligned and array.flags.c_contiguous):
        # A view of received bytes may start anywhere; kernels assume that it does not.
        array = np.require(array, None, ("A", "C", "W"))
    if array.flags.writeable:
        tensor = torch.from_numpy(array)
    else:
        try:
            tensor = torch.from_dlpack(array)  # from_numpy warns of read-only arrays
        except (BufferError, RuntimeError):  # a PyTorch before 2.9 cannot take them
            tensor = torch.from_numpy(np.array(array))
    return tensor.view(torch.bfloat16) if bfloat16 else tensor


def to_numpy(torch: Any, name: str, value: Any, datatype: Datatype, *, cast: bool) -> Array:
    """An output as an array of the declared `datatype`.

    `cast`: another floating-point type is converted (autocast gives what it computed in).
    Raises `InferenceFailed` for what is not declared so.
    """
    if datatype.name == "BYTES":
        return _text(name, value)
    if not isinstance(value, torch.Tensor):
        raise InferenceFailed(
            f"output '{name}' is declared {datatype}, but the model gives a {type(value).__name__}"
        )
    wanted = TORCH_NAMES[datatype.name]
    found = str(value.dtype).removeprefix("torch.")
    if found != wanted:
        if not (cast and value.is_floating_point() and datatype.kind == "float"):
            raise InferenceFailed(
                f"output '{name}' is declared {datatype}, but the model gives "
                f"{OIP_NAMES.get(found, found)}; correct its datatype in the declared signature"
            )
        value = value.to(getattr(torch, wanted))
    if value.layout is not torch.strided:
        raise InferenceFailed(f"output '{name}' is sparse; end the model with .to_dense()")
    if datatype is BF16:
        bits: Array = value.contiguous().view(torch.int16).numpy(force=True)
        return bits.view(BF16.dtype)
    array: Array = value.contiguous().numpy(force=True)
    return array


def _text(name: str, value: Any) -> Array:
    if isinstance(value, str):
        value = [value]
    if not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise InferenceFailed(
            f"output '{name}' is declared BYTES, but the model gives no list of text"
        )
    return objects(value, (len(value),))
