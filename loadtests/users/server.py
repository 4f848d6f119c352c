"""The server's own side of a run: the declared split, and how large its batches were."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from loadtests.bench.facts import look
from loadtests.bench.plan import Target
from loadtests.bench.server import ServerStats, Snapshot, difference
from loadtests.errors import BenchError
from loadtests.users.shares import Declared

FRESH_S: Final = 1.0
"""What was read less than this ago is not read again."""


class ServerSide:
    """Follows one model from the beginning of a run. `read` asks the server; nothing is raised,
    as a run goes on without knowing."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._stats: dict[str, ServerStats] = {}
        self._before: dict[str, Snapshot] = {}
        self._first: dict[str, float] | None = None
        self._last: Declared = Declared()
        self._at = 0.0

    def read(self) -> Declared:
        """What it says now, of the time since the first reading."""
        if self._first is not None and time.monotonic() - self._at < FRESH_S:
            return self._last
        try:
            facts = look(self._target)
        except BenchError as error:
            # Keeps what was known: a server that is being restarted still has its split.
            self._last = Declared(
                self._last.split,
                self._last.batches,
                self._last.moved,
                # What `sluice bench` would have to be told is left out.
                [str(error).partition("; name it")[0]],
            )
            return self._last
        split = facts.split
        if self._first is None:
            self._first = split
        versions = split or dict.fromkeys(facts.metadata.versions if facts.metadata else (), 0.0)
        batches = {}
        for version in versions:
            found = self._batch_rows(version)
            if found is not None:
                batches[version] = found
        self._last = Declared(split, batches, split != self._first, facts.notes)
        self._at = time.monotonic()
        return self._last

    def _batch_rows(self, version: str) -> float | None:
        stats = self._stats.get(version)
        if stats is None:
            target = msgspec.structs.replace(self._target, version=version)
            stats = self._stats[version] = ServerStats(target)
        now = stats.read()
        if now is None:
            return None
        before = self._before.setdefault(version, now)
        done = difference(before, now)
        return done.batch_rows if done.executions > 0 else None

    def close(self) -> None:
        """Ends its connections."""
        for stats in self._stats.values():
            stats.close()
