"""An object store, a model hub, an OCI registry or a web server as a registry.

The layout is that of a directory: ``<model>/<version>/...`` with ``model.yaml``, ``config.pbtxt``
and ``traffic.yaml`` beside the versions. One list call tells whether anything has changed; only
documents are read here, and only when their ETags change. Artifacts are fetched by who loads them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from threading import Lock
from typing import Final

from gateway.config import Config
from gateway.errors import Conflict, FetchError, RegistryError
from gateway.registries.base import Snapshot
from gateway.registries.catalogue import Catalogue
from gateway.registries.files import SETTLE_SECONDS
from gateway.registries.overlay import Overlays
from gateway.registries.polling import pause_after
from gateway.registries.remembered import Remembered, when
from gateway.registries.stores_place import StorePlace, dump, load
from gateway.registries.stores_shelves import Shelf, shelf_of
from gateway.registries.traffic import TRAFFIC_YAML, Traffic, traffic_text
from gateway.state import StateDir
from gateway.telemetry.logs import log
from gateway.threads import in_thread

LONGEST_PAUSE: Final = 60.0
"""Most seconds between two tries at a source that cannot be read, unless it is polled less often
anyway."""
UNSETTLED_PAUSE: Final = 2.0
"""Most seconds until the second look at what has changed."""


class StoreRegistry:
    """See `gateway.registries.base.Registry`."""

    def __init__(
        self,
        source: str,
        config: Config,
        state: StateDir | None,
        *,
        now: Callable[[], float] = time.monotonic,
        shelf: Shelf | None = None,
    ) -> None:
        self._shelf = shelf if shelf is not None else shelf_of(source)
        self.source = self._shelf.uri
        self._poll_seconds = config.registry.poll_seconds
        self._place = StorePlace(self._shelf)
        self._overlays = Overlays(state, self.source)
        self._catalogue = Catalogue(self._place, self._overlays, now)
        self._remembered = Remembered(state, self.source)
        self._looking = Lock()
        """One look at a time; it may hang."""
        self._lock = Lock()
        self._busy = 0.0
        """Processor time in seconds that the last look took."""
        self._writes = 0
        self._last: Snapshot | None = None
        self._stale = True
        self._hint = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.trouble = ""

    # --- reading

    def scan(self) -> Snapshot:
        """See `Registry.scan`. What is found at the first look counts as settled.

        A first look at a source that cannot be read gives what is remembered of it.
        """
        with self._looking:
            began = time.thread_time()
            try:
                return self._scan()
            finally:
                self._busy = time.thread_time() - began

    def _scan(self) -> Snapshot:
        try:
            found = self._place.look()
        except FetchError as error:
            with self._lock:
                if self._last is None and self._remember(str(error)):
                    return self._looked(settle=False)
            raise RegistryError(str(error)) from None
        with self._lock:
            if found is not None:
                self._place.take(found)
                self._remembered.changed(partial(dump, found.seen))
            else:
                self._remembered.confirm()
            changed = found is not None or self._stale or self._catalogue.unsettled
            if self._last is None or changed:
                return self._looked(settle=self._last is not None)
            return self._last

    def _looked(self, *, settle: bool) -> Snapshot:
        self._stale = False
        folders = self._place.folders(self._catalogue.ignore)
        self._last = self._catalogue.look(folders, settle=settle)
        return self._last

    def stand_in(self, why: str) -> Snapshot | None:
        """See `Elsewhere.stand_in`."""
        with self._lock:
            if self._last is None and self._remember(why):
                return self._looked(settle=False)
            return self._last

    def close(self) -> None:
        """See `Elsewhere.close`."""
        self._remembered.flush()

    def _remember(self, why: str) -> bool:
        """Starts with the last known state; False if there is none."""
        kept = self._remembered.load()
        if kept is None:
            return False
        content, saved = kept
        try:
            self._place.seen = load(content)
        except (ValueError, KeyError, TypeError):
            return False
        self.trouble = why
        log.error(
            "%s; starting with what was there on %s, until it can be read again",
            why, when(saved),
        )  # fmt: skip
        return True

    # --- watching

    async def watch(self, changed: Callable[[Snapshot], Awaitable[None]]) -> None:
        """Asks now and then; less often while the source cannot be read."""
        self._loop = asyncio.get_running_loop()
        last: Snapshot | None = None
        failures = 0
        while True:
            snapshot = await self._look()
            seconds = self._poll_seconds
            if snapshot is None:
                failures += 1
            else:
                failures = 0
                if snapshot is not last:
                    last = snapshot
                    await changed(snapshot)
                if self._catalogue.unsettled:
                    seconds = max(SETTLE_SECONDS, min(seconds, UNSETTLED_PAUSE))
            pause = pause_after(seconds, failures, LONGEST_PAUSE, self._busy)
            try:
                async with asyncio.timeout(pause):
                    await self._hint.wait()
            except TimeoutError:
                pass
            self._hint.clear()

    async def _look(self) -> Snapshot | None:
        """A new snapshot; `None`, with one line in the log, while the source cannot be read."""
        try:
            while True:
                writes = self._writes
                snapshot = await in_thread(self.scan)
                if writes == self._writes:  # else a split may be older than the one in effect
                    break
        except RegistryError as error:
            if not self.trouble:
                log.error("%s; serving goes on with what is loaded", error)
            self.trouble = str(error)
            return None
        if self.trouble:
            self.trouble = ""
            log.info("%s can be read again", self.source)
        return snapshot

    def hint(self) -> None:
        """See `Registry.hint`."""
        self._hint.set()

    def pin(self, model: str, versions: frozenset[str]) -> None:
        """See `Registry.pin`."""
        self._catalogue.pin(model, versions)
        self._stale = True

    # --- writing

    def write_traffic(self, model: str, traffic: Traffic) -> Traffic:
        """See `Registry.write_traffic`. Where the store may not be written, the split is kept in
        the state directory. Raises `Conflict` if the document was changed by others meanwhile."""
        if self._place.seen.kind == "file":
            raise RegistryError(
                f"{self.source} is a single file with one version; give the folder above "
                f"{model}/1/ to split traffic"
            )
        if not self._shelf.writable:
            self._overlay(model, traffic)
            return traffic
        try:
            self._place.write(model, traffic_text(traffic).encode())
        except FetchError as error:
            if error.changed:
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self._hint.set)
                raise Conflict(
                    f"{TRAFFIC_YAML} of '{model}' was changed in {self.source} meanwhile; it is "
                    "read again, look at the split and try once more"
                ) from None
            if not error.denied:
                raise RegistryError(f"the split cannot be stored: {error}") from None
            self._overlay(model, traffic)
            return traffic
        self._overlays.drop(model)
        self._wrote()
        return traffic

    def _overlay(self, model: str, traffic: Traffic) -> None:
        if not self._overlays.possible:
            raise RegistryError(f"{self.source} cannot be written, and there is no state_dir")
        self._overlays.put(model, self._catalogue.declared(model), traffic)
        self._wrote()

    def _wrote(self) -> None:
        self._stale = True
        self._writes += 1
