"""Adds a number to each value: the smallest model there is, batched like any other."""

from __future__ import annotations

from typing import Any

import numpy as np


class Add:
    """`options: {number: ...}` in model.yaml says what is added."""

    signature = {"inputs": {"x": ("FP32", [-1, 4])}, "outputs": {"y": ("FP32", [-1, 4])}}

    def load(self, context: Any) -> None:
        """Called once, with what the gateway has to say."""
        self.number = np.float32(context.options.get("number", 1))
        context.log.info("%s adds %g", context.model, self.number)

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The rows of several callers at once."""
        return {"y": inputs["x"] + self.number}
