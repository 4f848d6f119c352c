"""The first look at all sources: at the same time, and no longer than makes sense."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.errors import RegistryError
from gateway.registries.base import Elsewhere, Registry, Snapshot
from gateway.registries.deployments import DeploymentsRegistry
from gateway.registries.directory import DirectoryRegistry
from gateway.telemetry.logs import log
from gateway.threads import in_thread

PATIENCE: Final = 5.0
"""Seconds that a source has to answer before the gateway starts without its answer."""


@dataclass
class FirstLook:
    """What is known of a source when the gateway starts."""

    registry: Registry
    snapshot: Snapshot
    late: asyncio.Task[Snapshot] | None = None
    """The look, where it still goes on."""

    async def answer(self) -> Snapshot | None:
        """What the late look finds, once it does; `None` where it finds nothing. What went wrong
        is for the next look to say."""
        if self.late is None:
            return None
        try:
            return await self.late
        except RegistryError:
            return None
        finally:
            self.late.cancel()
            self.late = None


async def first_looks(
    registries: Sequence[Registry], *, watched: bool, patience: float = PATIENCE
) -> list[FirstLook]:
    """Looks at all sources at the same time.

    One that is elsewhere and does not answer within `patience` seconds starts with what is
    remembered of it; one of which nothing is remembered starts empty if it is `watched`, and is
    waited for if it is not. Raises what the looks raise in that time.
    """
    looks = [asyncio.ensure_future(in_thread(registry.scan)) for registry in registries]
    try:
        elsewhere = [
            look for look, registry in zip(looks, registries, strict=True) if is_elsewhere(registry)
        ]
        if elsewhere:
            done, _ = await asyncio.wait(
                elsewhere, timeout=patience, return_when=asyncio.FIRST_EXCEPTION
            )
            for look in done:
                look.result()
        return [
            await _first(registry, look, watched=watched)
            for registry, look in zip(registries, looks, strict=True)
        ]
    except BaseException:
        for look in looks:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)
        raise


async def _first(registry: Registry, look: asyncio.Task[Snapshot], *, watched: bool) -> FirstLook:
    if look.done() or not is_elsewhere(registry):
        return FirstLook(registry, await look)
    why = f"{registry.source} does not answer"
    if isinstance(registry, Elsewhere):
        snapshot = await in_thread(registry.stand_in, why)
        if snapshot is not None:
            return FirstLook(registry, snapshot, look)
    if not watched:
        return FirstLook(registry, await look)
    registry.trouble = why
    log.error("%s; starting without its models, until it does", why)
    return FirstLook(registry, {}, look)


def is_elsewhere(registry: Registry) -> bool:
    """Whether it is not of this machine."""
    return not isinstance(registry, DirectoryRegistry | DeploymentsRegistry)
