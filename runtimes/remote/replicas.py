"""The replicas of a model on other servers: where they are, and whether they are well.

A name that has several addresses stands for a replica at each. Names are looked up again now
and then, and replicas asked every few seconds.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from random import Random
from time import perf_counter
from typing import Any, Final

from gateway.artifacts.addresses import is_metadata_host
from gateway.codecs.client_grpc import ServerMetadata
from gateway.remote_document import Location
from runtimes.remote.failures import AttemptFailed, Fate
from runtimes.remote.pool import Endpoint, Pool
from runtimes.remote.transport import Connection, Transport

log = logging.getLogger(__name__)

LOOK_UP_SECONDS: Final = 30.0
"""How often names are looked up while all is well."""
LOOK_UP_SOON: Final = 2.0
"""The same while something is not."""
LOOK_UP_TIMEOUT: Final = 5.0
SOON: Final = 0.25
"""Seconds after a failure until the replicas are asked out of turn."""
MOST_ADDRESSES: Final = 64
"""Most replicas behind one name."""

Addresses = dict[tuple[Location, str], Endpoint[Connection]]


class Replicas:
    """Fills a pool with endpoints and keeps it up to date. Owned by the event loop."""

    def __init__(
        self,
        name: str,
        transport: Transport,
        locations: Sequence[Location],
        random: Random | None = None,
    ) -> None:
        self.pool: Pool[Connection] = Pool(perf_counter, random or Random())
        self.trouble = ""
        """Why a name could not be looked up."""
        self._name = name
        self._transport = transport
        self._locations = tuple(locations)
        self._health_seconds = transport.settings.health_seconds
        self._endpoints: Addresses = {}
        self._looked_up = 0.0
        self._task: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._soon = asyncio.Event()
        self._was: dict[str, str] = {}

    # --- where they are

    async def look_up(self) -> None:
        """Looks the names up and opens or leaves endpoints accordingly."""
        self._looked_up = perf_counter()
        self.trouble = ""
        found = await asyncio.gather(*map(self._addresses, self._locations))
        wanted: Addresses = {}
        for location, addresses in zip(self._locations, found, strict=True):
            for address in addresses:
                key = (location, address)
                wanted[key] = self._endpoints.get(key) or self._open(location, address)
        left = [endpoint for key, endpoint in self._endpoints.items() if key not in wanted]
        self._endpoints = wanted
        self.pool.replace(wanted.values())
        self._learn()
        for endpoint in left:
            self._spawn(self._leave(endpoint))

    async def _addresses(self, location: Location) -> list[str]:
        """The addresses of a name; those known before where it cannot be looked up now."""
        before = [address for each, address in self._endpoints if each == location]
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(LOOK_UP_TIMEOUT):
                entries = await loop.getaddrinfo(
                    location.host, location.port, type=socket.SOCK_STREAM
                )
        except (OSError, UnicodeError) as error:
            text = getattr(error, "strerror", None) or str(error) or "it takes too long"
            self.trouble = f"'{location.host}' cannot be looked up: {text}"
            return before
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
        if any(map(is_metadata_host, addresses)):  # whoever mixes them is up to something
            self.trouble = (
                f"'{location.host}' is a link-local address or a cloud's metadata service; no "
                "model is called there"
            )
            return []
        if len({entry[0] for entry in entries}) > 1:
            # The same hosts by both protocols: IPv4 alone, as nobody says which belong together.
            addresses = [address for address in addresses if ":" not in address]
        return addresses[:MOST_ADDRESSES]

    def _open(self, location: Location, address: str) -> Endpoint[Connection]:
        shown = str(location)
        if address != location.host:
            shown += f" ({address})"
        return Endpoint(shown, self._transport.connect(location, address))

    async def _leave(self, endpoint: Endpoint[Connection]) -> None:
        """Closes the connection to an address that is not the name's any more, once idle."""
        try:
            while endpoint.outstanding:
                await asyncio.sleep(0.1)
        finally:
            await endpoint.connection.close()

    # --- whether they are well

    async def check(self) -> None:
        """Asks all replicas, and waits for their answers."""
        await asyncio.gather(*(self._check(each) for each in self.pool.endpoints))
        self._learn()
        self._report()

    async def _check(self, endpoint: Endpoint[Connection]) -> None:
        try:
            why = await endpoint.connection.ready(self.patience)
        except AttemptFailed as failure:
            self.pool.no_answer(endpoint, str(failure))
            return
        if not why and self._transport.asks and endpoint.connection.known is None:
            await self._ask(endpoint.connection)
            self._learn()
        if why:
            self.pool.not_ready(endpoint, why)
        else:
            self.pool.is_ready(endpoint)

    async def _ask(self, connection: Connection) -> None:
        """What the server says of itself. One that does not say can do nothing in particular."""
        try:
            connection.known = await connection.server(self.patience)
        except AttemptFailed as failure:
            if failure.fate in (Fate.ANSWERED, Fate.ABSENT):
                connection.known = ServerMetadata("", "", ())

    def _learn(self) -> None:
        """What one server cannot do, or has not yet said that it can, is not relied on."""
        if not self._transport.asks:
            return
        common: frozenset[str] | None = None
        for each in self.pool.endpoints:
            known = each.connection.known
            if known is None and each.missed:
                continue  # it is not there, and is asked before it gets anything
            found = frozenset(known.extensions if known is not None else ())
            common = found if common is None else common & found
        self._transport.learned(common or frozenset())

    @property
    def patience(self) -> float:
        """Seconds within which a health check must be answered."""
        return min(max(self._health_seconds, 1.0), 5.0)

    def _report(self) -> None:
        """Logs what has changed."""
        now = perf_counter()
        states = {each.url: each.state(now) for each in self.pool.endpoints}
        why = {each.url: each.why for each in self.pool.endpoints}
        for url, state in states.items():
            before = self._was.get(url, "ready")
            if state == "ready" and before != "ready":
                log.info("%s: %s is back", self._name, url)
            elif state not in ("ready", before):
                log.warning("%s: %s is %s: %s", self._name, url, state, why[url])
        self._was = states

    def watch(self) -> None:
        """Begins to look after them."""
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def look_soon(self) -> None:
        """A request has failed: do not wait for the next turn."""
        self._soon.set()

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._health_seconds):
                    await self._soon.wait()
                await asyncio.sleep(min(SOON, self._health_seconds))
            except TimeoutError:
                pass
            self._soon.clear()
            try:
                if perf_counter() - self._looked_up >= self._look_up_every():
                    await self.look_up()
                await self.check()
            except Exception:
                log.exception("%s: looking after its servers failed", self._name)

    def _look_up_every(self) -> float:
        well = self.pool.endpoints and all(each.healthy for each in self.pool.endpoints)
        return LOOK_UP_SECONDS if well else LOOK_UP_SOON

    def status(self) -> list[dict[str, Any]]:
        """Each replica as ``sluice models`` shows it."""
        now = perf_counter()
        return [
            {
                "url": each.url,
                "state": each.state(now),
                "outstanding": each.outstanding,
                "requests": each.requests,
                "failures": each.failed,
                "cause": each.why,
            }
            for each in self.pool.endpoints
        ]

    # --- the end

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        """Ends the watching and all connections."""
        tasks = [task for task in (self._task, *self._leaving) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        closing = [endpoint.connection.close() for endpoint in self._endpoints.values()]
        await asyncio.gather(*closing, return_exceptions=True)
        self.pool.replace(())
        self._endpoints = {}
