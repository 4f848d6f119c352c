"""KServe's Python server with one model a file: ``serve.py SETTINGS [OPTIONS]``.

Runs in KServe's environment. The settings are JSON: ports, workers, threads, and the files. The
options are KServe's own, which it takes from the command line when it is imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class OnnxModel(Model):
    """``x`` in, ``y`` out, by onnxruntime."""

    def __init__(self, name: str, path: str, threads: int) -> None:
        super().__init__(name)
        self._path = path
        self._threads = threads

    def load(self) -> bool:
        """Opens the file; each worker does that for itself."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            self._path, sess_options=options, providers=["CPUExecutionProvider"]
        )
        self.ready = True
        return self.ready

    def predict(self, payload: InferRequest, *rest: Any, **named: Any) -> InferResponse:
        """One request; binary where binary was asked for."""
        (y,) = self._session.run(["y"], {"x": payload.inputs[0].as_numpy()})
        output = InferOutput("y", list(y.shape), "FP32")
        output.set_data_from_numpy(y, binary_data=True)  # text is made of it where text is wanted
        return InferResponse(
            response_id=payload.id or "",
            model_name=self.name,
            infer_outputs=[output],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


def main() -> None:
    """Serves until ended."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    models = []
    for name, path in settings["models"].items():
        model = OnnxModel(name, path, settings["threads"])
        model.load()
        models.append(model)
    server = ModelServer(
        http_port=settings["http"],
        grpc_port=settings["grpc"],
        workers=settings["workers"],
        enable_latency_logging=False,
    )
    server.start(models)


if __name__ == "__main__":
    main()
