"""TorchServe's handler: one call for the batch that the frontend has formed."""

from __future__ import annotations

from typing import Any

from onnx_serving import RAW, SHAPE_HEADER, Onnx, shape_text, to_json
from ts.torch_handler.base_handler import BaseHandler


class OnnxHandler(BaseHandler):
    """JSON (Open Inference Protocol) or raw rows, by the content type; answers in kind."""

    def initialize(self, context: Any) -> None:
        """Opens the session. The file and its threads are in ``model-config.yaml``."""
        ours = context.model_yaml_config["onnx"]
        self._name = context.model_name
        self._onnx = Onnx(ours["path"], ours["threads"])
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """TorchServe has parsed JSON already (into a dict); other bodies come as bytes."""
        bodies = [request.get("body") or request["data"] for request in data]
        plain = [isinstance(body, dict) for body in bodies]
        rows = [
            self._onnx.from_json(body) if is_json else self._onnx.from_raw(body)
            for body, is_json in zip(bodies, plain, strict=True)
        ]
        answers = []
        for number, y in enumerate(self._onnx.run_all(rows)):
            # Without the word the status line ends after the number, which h2load does not count.
            context.set_response_status(200, "OK", number)
            if plain[number]:
                context.set_response_content_type(number, "application/json")
                answers.append(to_json(self._name, y))
            else:
                context.set_response_content_type(number, RAW)
                context.set_response_header(number, SHAPE_HEADER, shape_text(y))
                answers.append(y.tobytes())
        return answers
