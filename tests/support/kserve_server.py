"""A real KServe server with small models; run as ``python kserve_server.py HTTP GRPC NOTES``.

HTTP and GRPC are ports of the loopback interface; NOTES is a file that gets a line for what
tests cannot see from outside.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import uvicorn
from kserve import InferOutput, InferResponse, Model, ModelServer
from kserve.errors import InvalidInput

HTTP, GRPC = int(sys.argv[1]), int(sys.argv[2])
NOTES = Path(sys.argv[3])


def note(text: str) -> None:
    with NOTES.open("a") as file:
        file.write(text + "\n")


class Add(Model):  # type: ignore[misc]
    """``y = x + 1``. Below -1e6 the input is refused; at 1e6 it takes its time, at 2e6 it
    breaks."""

    def __init__(self, name: str, *, described: bool) -> None:
        super().__init__(name)
        self.described = described
        self.ready = True

    async def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}] if self.described else []

    async def get_output_types(self) -> list[dict[str, Any]]:
        return [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}] if self.described else []

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        x = payload.inputs[0].as_numpy()
        first = float(x.ravel()[0])
        sent = dict(headers or {})
        for name in ("traceparent", "x-team", "authorization"):
            if name in sent:
                note(f"{name}: {sent[name]}")
        if first < -1e6:
            raise InvalidInput("x is far too small")
        if first == 2e6:
            raise RuntimeError("the model broke")
        if first == 1e6:
            note("started")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                note("cancelled")
                raise
        y = InferOutput("y", list(x.shape), "FP32")
        y.set_data_from_numpy(x + np.float32(1), binary_data=False)
        return InferResponse(payload.id or "1", self.name, [y])


def only_loopback() -> None:
    """KServe listens on every interface, and cannot be told not to."""
    made = uvicorn.Config.__init__
    opened = grpc.aio.Server.add_insecure_port

    @functools.wraps(made)
    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **{**kwargs, "host": "127.0.0.1"})

    @functools.wraps(opened)
    def open_port(self: Any, address: str) -> Any:
        return opened(self, address.replace("[::]", "127.0.0.1"))

    uvicorn.Config.__init__ = make  # type: ignore[method-assign]
    grpc.aio.Server.add_insecure_port = open_port


if __name__ == "__main__":
    only_loopback()
    ModelServer(http_port=HTTP, grpc_port=GRPC, enable_docs_url=False).start(
        [Add("add", described=True), Add("bare", described=False)]
    )
