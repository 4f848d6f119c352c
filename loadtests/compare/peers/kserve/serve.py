"""KServe's Python server with one model a file: ``kserve_models.py [OPTIONS]``.

The options are KServe's own, which it takes from the command line when it is imported.
"""

from __future__ import annotations

from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from onnx_serving import Onnx, settings


class OnnxModel(Model):
    """``x`` in, ``y`` out, by onnxruntime."""

    def __init__(self, name: str, path: str, threads: int) -> None:
        super().__init__(name)
        # Each worker is handed this object, pickled; its session is opened there anew.
        self._onnx = Onnx(path, threads)
        self.ready = True

    def predict(self, payload: InferRequest, *rest: Any, **named: Any) -> InferResponse:
        """One request; binary where binary was asked for."""
        y = self._onnx.run(payload.inputs[0].as_numpy())
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
    given = settings()
    threads = given["threads"]
    models = [OnnxModel(name, path, threads) for name, path in given["models"].items()]
    server = ModelServer(
        http_port=given["http"],
        grpc_port=given["grpc"],
        workers=given["workers"],
        enable_latency_logging=False,
    )
    server.start(models)


if __name__ == "__main__":
    main()
