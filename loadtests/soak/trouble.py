"""What is done to the gateway while it serves."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from gateway.cli.client import GatewayClient
from loadtests.errors import BenchError
from loadtests.soak.callers import Callers
from loadtests.soak.models import BATCH, Directory
from loadtests.soak.results import Event

PATIENCE_S = 60.0
MOST_EVENTS = 10_000
MOST_PROBLEMS = 50


class Trouble:
    """Makes it, at random moments, and keeps a list of what was done when."""

    def __init__(self, url: str, directory: Directory, callers: Callers, seed: int) -> None:
        self._client = GatewayClient(url)
        self._directory = directory
        self._callers = callers
        self._random = random.Random(seed)
        self._began = time.monotonic()
        self._serving = {"add": 1, "plus": 1, "waits": 1, "count": 1}
        self._newest = dict(self._serving)
        self._broken = 100_000
        self._stop = asyncio.Event()
        self.events: list[Event] = []
        """The first `MOST_EVENTS`."""
        self.problems: list[str] = []
        """What did not do what it should, the first `MOST_PROBLEMS`."""

    def all(self, pace: float) -> list[Awaitable[None]]:
        """Each kind of trouble, over and over; ``pace`` 1 is a few of each a minute."""
        return [
            self._again(25 / pace, self.swap),
            self._again(30 / pace, self.kill),
            self._again(45 / pace, self.broken_version),
            self._again(20 / pace, self.burst),
            self._again(20 / pace, self.storm),
        ]

    def end(self) -> None:
        """No more of it: who waits for a turn stops now, who is at work finishes."""
        self._stop.set()

    async def _again(self, every_s: float, what: Callable[[], Awaitable[None]]) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._random.uniform(0.5, 1.5) * every_s):
                    await self._stop.wait()
            if self._stop.is_set():
                return
            try:
                await what()
            except Exception as error:  # goes to the verdicts; the soak goes on
                self.problem(f"{getattr(what, '__name__', 'trouble')}: {error or repr(error)}")

    def problem(self, text: str) -> None:
        """Notes that something did not do what it should."""
        if len(self.problems) < MOST_PROBLEMS:
            at = time.monotonic() - self._began
            self.problems.append(f"{at:.1f} s, {' '.join(text.split())[:300]}")

    def _note(self, kind: str, detail: str) -> None:
        if len(self.events) < MOST_EVENTS:
            self.events.append(Event(time.monotonic() - self._began, kind, detail))

    async def _model(self, name: str) -> dict[str, object]:
        return await asyncio.to_thread(self._client.model, name)

    async def _version(self, model: str, version: int) -> dict[str, object]:
        found = await self._model(model)
        versions = found["versions"]
        assert isinstance(versions, list)
        for each in versions:
            if each["version"] == str(version):
                return dict(each)
        return {"state": "absent"}

    async def _until(self, model: str, version: int, states: Iterable[str]) -> None:
        wanted, until = tuple(states), time.monotonic() + PATIENCE_S
        while (state := (await self._version(model, version))["state"]) not in wanted:
            if time.monotonic() > until:
                raise BenchError(f"{model} {version} is {state} after {PATIENCE_S:g} s")
            await asyncio.sleep(0.1)

    async def swap(self) -> None:
        """A new version: a tenth of the traffic, then all of it; the old one is taken away."""
        model = self._random.choice(list(self._serving))
        old, new = self._serving[model], self._newest[model] + 1
        self._newest[model] = new
        weights = {str(old): 90, str(new): 10}
        await self._change(model, "split", {"weights": {str(old): 1}}, "PUT")
        await asyncio.to_thread(self._directory.publish, model, new)
        await self._until(model, new, ("ready",))
        await self._change(model, "split", {"weights": weights, "stable": str(old)}, "PUT")
        await asyncio.sleep(self._random.uniform(0.5, 3))
        await self._change(model, "promote", {"version": str(new)}, "POST")
        self._serving[model] = new
        await asyncio.sleep(self._random.uniform(0, 1))
        await asyncio.to_thread(self._directory.withdraw, model, old)
        self._note("swap", f"{model} {old} to {new}")
        await self._until(model, old, ("absent", "unloaded"))
        self._callers.withdrawn(model, old)

    async def _change(self, model: str, what: str, body: dict[str, object], method: str) -> None:
        await asyncio.to_thread(self._client.change, model, what, "soak", body, method=method)

    async def kill(self) -> None:
        """SIGKILL for the process of the isolated model."""
        pid = (await self._version("plus", self._serving["plus"])).get("pid")
        if not isinstance(pid, int):  # it is being started again
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self._callers.killed(BATCH)
            self._note("runtime killed", f"plus, process {pid}")

    async def broken_version(self) -> None:
        """A version that cannot be loaded appears, fails, and is taken away."""
        model = self._random.choice(("add", "waits"))
        self._broken += 1
        version = self._broken
        self._note("broken version", model)
        await asyncio.to_thread(self._directory.publish_broken, model, version)
        await self._until(model, version, ("failed",))
        await asyncio.to_thread(self._directory.withdraw, model, version)
        await self._until(model, version, ("absent", "unloaded"))

    async def burst(self) -> None:
        """Hundreds of requests in one moment."""
        self._note("burst", "500 requests")
        await self._callers.burst(500)

    async def storm(self) -> None:
        """Hundreds of connections in one moment."""
        self._note("connections", "200 at once")
        await self._callers.storm(200)

    def close(self) -> None:
        """Ends the client."""
        self._client.__exit__(None, None, None)
