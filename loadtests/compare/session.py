"""The onnxruntime session with which every side of the comparison runs a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def open_session(path: Path, threads: int) -> Any:
    """One session: the threads given within an operator, one operator at a time, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
