"""Around `digits`: a drawing made of characters in, a word out."""

from __future__ import annotations

from typing import Any

import numpy as np

# Beside this file, for this model alone.
from words import WORDS  # type: ignore[import-not-found]


class DigitsText:
    """A transformer: the gateway calls the predictor between the two methods."""

    predictor = "digits"
    signature = {
        "inputs": {"drawing": ("BYTES", [-1])},
        "outputs": {"word": ("BYTES", [-1]), "sure": ("FP32", [-1])},
    }

    def preprocess(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Eight lines of eight characters: ``#`` is full, ``+`` is half, anything else empty."""
        images = [self._image(drawing.decode()) for drawing in inputs["drawing"]]
        return {"image": np.stack(images)}

    @staticmethod
    def _image(drawing: str) -> Any:
        values = {"#": 16.0, "+": 8.0}
        lines = (drawing.split("\n") + [""] * 8)[:8]
        pixels = [[values.get(each, 0.0) for each in line.ljust(8)[:8]] for line in lines]
        return np.array([pixels], np.float32)

    def postprocess(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """The most likely word, and how likely it is."""
        words = np.array([WORDS[label] for label in outputs["label"]], dtype=object)
        return {"word": words, "sure": outputs["probabilities"].max(axis=1)}
