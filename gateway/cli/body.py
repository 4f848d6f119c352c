"""The body of the requests that `sluice infer` sends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli.exits import USAGE, Failure

if TYPE_CHECKING:
    from gateway.cli.client import GatewayClient

EXAMPLE = '\'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}\''


def body_of_input(text: str) -> dict[str, Any]:
    """A request body from a file's name, ``-`` (standard input) or JSON itself."""
    where = "--input"
    if text == "-":
        content = sys.stdin.read()
        where = "standard input"
    elif text.lstrip().startswith(("{", "[")):
        content = text
    else:
        where = text
        try:
            content = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            cause = getattr(error, "strerror", None) or "it is not text"
            raise Failure(
                f"cannot read {text}: {cause}; --input takes a file, '-' or JSON", USAGE
            ) from None
    try:
        tree = json.loads(content)
    except ValueError as error:
        raise Failure(f"{where} is not JSON: {error}", USAGE) from None
    if not isinstance(tree, dict) or "inputs" not in tree:
        raise Failure(f"{where} is no inference request, such as {EXAMPLE}", USAGE)
    return tree


def body_of_image(gateway: GatewayClient, model: str, path: Path) -> dict[str, Any]:
    """A request body with one picture, as the model's ``image`` settings say."""
    import msgspec

    from gateway.cli.image import image_input
    from gateway.model_settings import ImageSettings

    status = gateway.model(model)
    if status["image"] is None:
        raise Failure(
            f"model '{model}' does not say how a picture becomes a tensor; give --input, or add "
            "'image' to its model.yaml",
            USAGE,
        )
    settings = msgspec.convert(status["image"], ImageSettings)
    specs = {spec["name"]: spec for spec in status["inputs"]}
    if not specs:
        raise Failure(f"model '{model}' is {status['state']}; see 'sluice models'")
    if settings.input not in specs:
        raise Failure(
            f"model '{model}' has no input '{settings.input}'; it has: {', '.join(specs)}; mend "
            "'image' in its model.yaml",
            USAGE,
        )
    return {"inputs": [image_input(path, settings, specs[settings.input])]}
