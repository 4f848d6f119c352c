"""Counts, one answer at a time: a streaming model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np


class Count:
    """An asynchronous generator; many callers are served at once."""

    signature = {"inputs": {"to": ("INT32", [1])}, "outputs": {"number": ("INT32", [1])}}

    async def infer(
        self, inputs: dict[str, Any], parameters: dict[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        """Each `yield` is an answer; the parameter `pause` is in seconds."""
        for number in range(1, int(inputs["to"][0]) + 1):
            yield {"number": np.array([number], np.int32)}
            await asyncio.sleep(float(parameters.get("pause", 0.05)))
