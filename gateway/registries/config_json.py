"""Triton's ``ModelConfig`` as JSON, as a load request brings it."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf import json_format, text_format

from gateway.codecs.messages import POOL, ModelConfig
from gateway.errors import InvalidModelSettings, printable
from gateway.registries.config_pbtxt import parse_config_pbtxt, plain

LONGEST = 1024 * 1024
"""Most characters of a configuration."""


def config_text(document: str, model: str) -> str:
    """The JSON `document` in the form of a ``config.pbtxt``, for `parse_config_pbtxt`.

    Raises `InvalidModelSettings` for what is no model configuration, and for a field that is
    not known or not supported.
    """
    if len(document) > LONGEST:
        raise InvalidModelSettings(f"config: it is longer than {LONGEST} characters")
    try:
        tree: Any = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise InvalidModelSettings(f"config: it is not JSON: {printable(error, 200)}") from None
    if not isinstance(tree, dict):
        raise InvalidModelSettings(
            f"config: it must be a JSON object, not {type(tree).__name__}, such as "
            '{"max_batch_size": 8}'
        )
    try:
        message = json_format.ParseDict(tree, ModelConfig(), descriptor_pool=POOL)
    except (json_format.ParseError, ValueError, TypeError, RecursionError) as error:
        text = plain(str(error).split("\n", 1)[0])
        raise InvalidModelSettings(f"config: {printable(text, 300)}") from None
    text = text_format.MessageToString(message, descriptor_pool=POOL)
    if tree.get("max_batch_size", tree.get("maxBatchSize")) == 0:
        # Protobuf forgets a zero, and here it says "never batch".
        text = f"max_batch_size: 0\n{text}"
    text = text or "# nothing\n"  # an empty text would be no configuration
    parse_config_pbtxt(text, model, file="config")
    return text
