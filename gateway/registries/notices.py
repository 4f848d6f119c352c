"""The system's notices that files have changed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from gateway.registries.traffic import TRAFFIC_YAML
from gateway.telemetry.logs import log


async def notices_of(path: Path, poll_seconds: float, *, recursive: bool) -> AsyncGenerator[None]:
    """One item whenever there may be something new below `path` (a single file, if not
    `recursive`), at the latest after `poll_seconds`; also where the system gives no notices, or
    the path is gone."""
    # Not needed until everything else has started.
    from watchfiles import awatch

    told = ""
    while True:
        root = path if recursive else path.parent
        identity = identity_of(root)
        try:
            changes = awatch(
                root,
                watch_filter=lambda change, name: not own_file(name),
                debounce=200,
                step=50,
                yield_on_timeout=True,
                rust_timeout=int(poll_seconds * 1000),
                recursive=recursive,
                ignore_permission_denied=True,
            )
            async with aclosing(changes):
                async for _ in changes:
                    yield
                    if identity_of(root) != identity:
                        break  # another directory is there now
        except Exception as error:
            if identity is not None and told != str(error):  # the system has no watches left, say
                told = str(error)
                log.warning(
                    "%s cannot be watched (%s); looking every %g s", path, error, poll_seconds
                )
            await asyncio.sleep(poll_seconds)
            yield


def identity_of(path: Path) -> tuple[int, int] | None:
    """Which directory a path leads to; `None` if it leads nowhere."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def own_file(path: str) -> bool:
    """Whether it is a traffic document that is being written."""
    return os.path.basename(path).startswith(f".{TRAFFIC_YAML}.")
