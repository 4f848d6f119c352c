"""MLServer's custom runtime for an ONNX file. Copied beside each ``model-settings.json``."""

from __future__ import annotations

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """``x`` in, ``y`` out, by onnxruntime."""

    async def load(self) -> bool:
        """Opens the file named in the parameters."""
        extra = self.settings.parameters.extra
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = extra["threads"]
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            extra["path"], sess_options=options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One request, or what the adaptive batching made one of."""
        x = NumpyCodec.decode_input(payload.inputs[0])
        (y,) = self._session.run(["y"], {"x": x})
        output = NumpyCodec.encode_output("y", y)
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])
