"""What all HTTP connections share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

from gateway.apart.processes import CodecProcesses
from gateway.codecs.oip_rest import RestCodec
from gateway.config import Config
from gateway.facts import Facts
from gateway.pipeline import Pipeline

if TYPE_CHECKING:
    from gateway.servers.http_call import Exchange

Target: TypeAlias = "tuple[type[Exchange], tuple[str, str]] | None"
"""Protocol, model and version that a request target asks; `None` for what is no inference."""


class HttpState:
    """Owned by the event loop."""

    __slots__ = (
        "apart", "body_bytes", "closing", "codec", "config", "facts", "limits", "pipeline",
        "room_bytes", "streams", "targets",
    )  # fmt: skip

    def __init__(self, config: Config, pipeline: Pipeline, codec: RestCodec, facts: Facts) -> None:
        self.config = config
        self.limits = config.limits
        self.pipeline = pipeline
        self.codec = codec
        self.apart = CodecProcesses()
        """Where large JSON is read and written."""
        self.facts = facts
        self.targets: dict[bytes, Target] = {}
        """What request targets ask for, as far as they are known."""
        self.body_bytes = 0
        """Bytes of bodies received and not yet answered, over all connections."""
        self.room_bytes = 0
        """Bytes for which bodies that are being received have memory, whether it is used or not."""
        self.closing = False
        self.streams: set[asyncio.Task[Any]] = set()
        """What waits for a model; being cancelled, it tells its caller and ends."""
