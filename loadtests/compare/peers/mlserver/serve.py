"""MLServer's custom runtime for an ONNX file. Copied beside each ``model-settings.json``."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_serving import Onnx


class OnnxModel(MLModel):
    """``x`` in, ``y`` out, by onnxruntime."""

    async def load(self) -> bool:
        """Opens the file named in the parameters."""
        extra = self.settings.parameters.extra
        self._onnx = Onnx(extra["path"], extra["threads"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One request, or what the adaptive batching made one of."""
        y = self._onnx.run(NumpyCodec.decode_input(payload.inputs[0]))
        output = NumpyCodec.encode_output("y", y)
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])
