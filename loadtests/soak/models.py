"""The models of the soak. Version N of each adds N, so that every answer says who gave it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from loadtests.onnx_files import adding, save

PYTHON: Final = """\
import {module}

import numpy as np


class Plus:
    signature = {{"inputs": {{"x": ("FP32", [-1, 4])}}, "outputs": {{"y": ("FP32", [-1, 4])}}}}

    {keyword}def infer(self, inputs):
        {pause}
        return {{"y": inputs["x"] + np.float32({number})}}
"""
COUNT: Final = """\
import asyncio

import numpy as np


class Count:
    signature = {{"inputs": {{"to": ("INT32", [1])}}, "outputs": {{"number": ("INT32", [1])}}}}

    async def infer(self, inputs):
        for number in range(1, int(inputs["to"][0]) + 1):
            yield {{"number": np.array([number + 1000 * {number}], np.int32)}}
            await asyncio.sleep(0.002)
"""
BATCH: Final = 16
"""Rows, so requests too, that the isolated model runs at once."""
SETTINGS: Final = {
    "add": "",
    # Killed every half minute: by default, so many crashes without a minute of peace are too many.
    "plus": f"max_batch_size: {BATCH}\nisolation: {{max_restarts: 1000000}}\n",
    "waits": "",
    "count": "decoupled: true\n",
}
"""Model → its ``model.yaml``."""


class Directory:
    """The gateway's source, and what is done to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for model, settings in SETTINGS.items():
            (folder / model).mkdir(parents=True)
            (folder / model / "model.yaml").write_text(settings)
            self.publish(model, 1)

    def publish(self, model: str, version: int) -> None:
        """Puts a version there, whole from the first moment on."""
        half = self.folder.parent / "half" / model / str(version)
        half.mkdir(parents=True)
        if model == "add":
            save(adding(version), half / "model.onnx")
        elif model == "count":
            (half / "model.py").write_text(COUNT.format(number=version))
        else:
            words = {"module": "time", "keyword": "", "pause": "time.sleep(0.004)"}
            if model == "waits":
                pause = "await asyncio.sleep(0.02)"
                words = {"module": "asyncio", "keyword": "async ", "pause": pause}
            (half / "model.py").write_text(PYTHON.format(number=version, **words))
        half.rename(self.folder / model / str(version))

    def publish_broken(self, model: str, version: int) -> None:
        """A version that cannot be loaded."""
        target = self.folder / model / str(version)
        target.mkdir()
        name = "model.onnx" if model == "add" else "model.py"
        (target / name).write_bytes(b"\x08\x07this is no model (")

    def withdraw(self, model: str, version: int) -> None:
        """Takes a version away."""
        shutil.rmtree(self.folder / model / str(version))
