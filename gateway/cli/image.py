"""A picture as a model's input tensor, as its ``image`` settings say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli.exits import USAGE, Failure
from gateway.model_settings import ImageSettings

if TYPE_CHECKING:
    from gateway.tensors import Array


def image_input(path: Path, settings: ImageSettings, spec: dict[str, Any]) -> dict[str, Any]:
    """One entry of a request's ``inputs``. `spec` is the input's metadata. Raises `Failure`."""
    pixels = prepare(path, settings)
    shape = fit(list(pixels.shape), spec["shape"], spec["name"])
    if not spec["datatype"].startswith(("FP", "BF")):
        pixels = pixels.round()
        data: list[Any] = [int(value) for value in pixels.ravel()]
    else:
        data = pixels.ravel().tolist()
    return {"name": spec["name"], "shape": shape, "datatype": spec["datatype"], "data": data}


def prepare(path: Path, settings: ImageSettings) -> Array:
    """The picture's numbers, one row, in the layout that the settings name."""
    import numpy as np

    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise Failure(
            "--image needs Pillow; type: pip install 'sluicegate[image]'", USAGE
        ) from None
    try:
        with Image.open(path) as file:
            picture = file.convert(settings.mode)
    except UnidentifiedImageError:
        raise Failure(f"{path} is no picture that Pillow can read", USAGE) from None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise Failure(f"cannot read {path}: {getattr(error, 'strerror', error)}", USAGE) from None
    picture = picture.resize((settings.width, settings.height), Image.Resampling.BOX)
    pixels = np.asarray(picture, np.float32).reshape(settings.height, settings.width, -1)
    if settings.invert:
        pixels = 255 - pixels
    pixels = pixels * np.float32(settings.scale) + np.float32(settings.offset)
    if settings.layout == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    return pixels[np.newaxis]


def fit(have: list[int], wanted: list[int], name: str) -> list[int]:
    """The shape to send: the picture's own, or the model's if it holds as many numbers."""
    if len(have) == len(wanted) and all(w in (-1, h) for h, w in zip(have, wanted, strict=True)):
        return have
    one_row = [1 if size < 0 else size for size in wanted]
    if math.prod(one_row) == math.prod(have):
        return one_row
    raise Failure(
        f"the picture gives a tensor {have}, but input '{name}' takes {wanted}; mend 'image' in "
        "the model's model.yaml",
        USAGE,
    )
