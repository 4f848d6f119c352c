"""Weights in the safetensors format: a length, a JSON header, then the tensors' bytes."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, Final

from gateway.errors import ModelLoadError, printable

_TYPES: Final = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
    "U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16",
    "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip
_MOST_HEADER: Final = 100 * 2**20


def read_safetensors(torch: Any, path: Path) -> dict[str, Any]:
    """Tensors by name, in memory of their own. Raises `ModelLoadError` for a damaged file."""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _MOST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(stream.read(length))
            data = bytearray(stream.read())
        header.pop("__metadata__", None)
        return {name: _tensor(torch, entry, data) for name, entry in header.items()}
    except OSError as error:
        raise ModelLoadError(f"'{path.name}' cannot be read: {error.strerror}") from None
    except Exception as error:
        why = printable(" ".join(str(error).split()))
        raise ModelLoadError(
            f"'{path.name}' is no safetensors file, or it is damaged ({why}); copy it again"
        ) from None


def _tensor(torch: Any, entry: dict[str, Any], data: bytearray) -> Any:
    shape = entry["shape"]
    start, stop = entry["data_offsets"]
    dtype = getattr(torch, _TYPES[entry["dtype"]])
    count = math.prod(shape)
    if not 0 <= start <= stop <= len(data) or stop - start != count * dtype.itemsize:
        raise ValueError("a tensor lies outside of the file")
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=torch.uint8)[start:stop].clone().view(dtype).reshape(shape)
