"""LitServe: one `LitAPI` a model, all of them in one `LitServer`."""

# No `from __future__ import annotations`: LitServe hands these annotations to FastAPI as they are.
from typing import Annotated, Any

import litserve
from fastapi import Body, Response
from onnx_serving import RAW, SHAPE_HEADER, Onnx, settings, shape_text, to_json


class OnnxAPI(litserve.LitAPI):
    """JSON (Open Inference Protocol) or raw rows, by the content type; answers in kind."""

    def __init__(self, name: str, path: str, threads: int, **options: Any) -> None:
        super().__init__(api_path=f"/{name}", **options)
        self._file = (name, path, threads)

    def setup(self, device: str) -> None:
        """In the worker's process."""
        self._name, path, threads = self._file
        self._onnx = Onnx(path, threads)

    def decode_request(self, request: Annotated[Any, Body()]) -> tuple[bool, Any]:
        """FastAPI has parsed JSON already; other bodies come as bytes."""
        if isinstance(request, bytes):
            return True, self._onnx.from_raw(request)
        return False, self._onnx.from_json(request)

    def batch(self, inputs: list[tuple[bool, Any]]) -> list[tuple[bool, Any]]:
        """`predict` joins the rows itself: requests of several rows must come apart again."""
        return inputs

    def predict(self, inputs: list[tuple[bool, Any]]) -> list[tuple[bool, Any]]:
        """One call for the batch."""
        answers = self._onnx.run_all([rows for _, rows in inputs])
        return [(raw, y) for (raw, _), y in zip(inputs, answers, strict=True)]

    def unbatch(self, output: list[tuple[bool, Any]]) -> list[tuple[bool, Any]]:
        """One answer a request."""
        return output

    def encode_response(self, output: tuple[bool, Any]) -> Response:
        """A whole response, so that FastAPI does not walk through the numbers."""
        raw, y = output
        if raw:
            return Response(y.tobytes(), media_type=RAW, headers={SHAPE_HEADER: shape_text(y)})
        return Response(to_json(self._name, y), media_type="application/json")


def main() -> None:
    """Serves until told to stop."""
    given = settings()
    apis = [
        OnnxAPI(
            name,
            path,
            given["threads"],
            max_batch_size=given["max_batch_size"],
            batch_timeout=given["batch_timeout"],
        )
        for name, path in given["models"].items()
    ]
    server = litserve.LitServer(
        apis,
        accelerator="cpu",
        workers_per_device=given["workers_per_device"],
        fast_queue=True,
        timeout=60,
    )
    server.run(
        host="127.0.0.1",
        port=given["port"],
        num_api_servers=given["num_api_servers"],
        generate_client_file=False,
        pretty_logs=False,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
