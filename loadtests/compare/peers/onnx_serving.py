"""What a server of the comparison runs in its own environment: the session, parsing, answers.

Needs ``numpy``, ``onnxruntime`` and ``orjson``, nothing else of ours: the same few lines for
every server that lets us write the handler, so that no two differ in more than the server.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import orjson

Array = npt.NDArray[Any]

SETTINGS = "PEER_SETTINGS"
"""Names the JSON file that tells a server what to serve and where."""
SHAPE_HEADER = "x-shape"
"""Sizes of a raw answer, comma-separated."""
RAW = "application/octet-stream"
_DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def settings() -> dict[str, Any]:
    """The JSON file that the comparison wrote for this server."""
    found: dict[str, Any] = json.loads(Path(os.environ[SETTINGS]).read_text())
    return found


class Onnx:
    """One model file: ``x`` [N, ...] → ``y`` [N, ...], with the comparison's session options."""

    def __init__(self, path: str, threads: int) -> None:
        self._opened = (path, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            path, sess_options=options, providers=["CPUExecutionProvider"]
        )
        (x,) = self._session.get_inputs()
        self.dtype = np.dtype(_DTYPES[x.type])
        self.row_shape = tuple(int(size) for size in x.shape[1:])
        self._row_bytes = self.dtype.itemsize * math.prod(self.row_shape)

    def __reduce__(self) -> tuple[type[Onnx], tuple[str, int]]:
        """Sessions cannot be pickled: another process opens the file again."""
        return Onnx, self._opened

    def from_json(self, body: bytes | dict[str, Any]) -> Array:
        """The rows of an Open Inference Protocol request, as text or parsed."""
        document = orjson.loads(body) if isinstance(body, bytes) else body
        (tensor,) = document["inputs"]
        return np.array(tensor["data"], self.dtype).reshape(tensor["shape"])

    def from_raw(self, body: bytes | bytearray | memoryview) -> Array:
        """Rows sent as nothing but their bytes. Raises `ValueError` for half a row."""
        if not len(body) or len(body) % self._row_bytes:
            raise ValueError(f"{len(body)} bytes are not rows of {self._row_bytes} bytes")
        return np.frombuffer(body, self.dtype).reshape(-1, *self.row_shape)

    def run(self, x: Array) -> Array:
        """One call of the session."""
        answer: Array = self._session.run(["y"], {"x": x})[0]
        return answer

    def run_all(self, parts: Sequence[Array]) -> list[Array]:
        """All requests of a batch in one call, then each its own rows."""
        if len(parts) == 1:
            return [self.run(parts[0])]
        y = self.run(np.concatenate(parts))
        ends = np.cumsum([len(part) for part in parts])
        return [y[end - len(part) : end] for part, end in zip(parts, ends, strict=True)]


def to_json(name: str, y: Array) -> bytes:
    """An Open Inference Protocol answer."""
    output = {"name": "y", "datatype": "FP32", "shape": y.shape, "data": y.ravel()}
    return orjson.dumps(
        {"model_name": name, "outputs": [output]}, option=orjson.OPT_SERIALIZE_NUMPY
    )


def shape_text(y: Array) -> str:
    """The value of `SHAPE_HEADER`."""
    return ",".join(map(str, y.shape))
