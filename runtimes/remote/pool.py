"""Which replica gets a request, and whether a failed one may be tried again. Pure: it is told
the time, and where chance comes from.

A replica that fails several times in a row is ejected for a while, longer each time; then one
request (or a health check) finds out whether it is back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from random import Random
from typing import Final, Generic, TypeVar

FAILURES: Final = 3
"""Failures in a row after which a replica is ejected."""
UNHEALTHY: Final = 2
"""Health checks without an answer after which nothing more is sent there."""
EJECTION: Final = 1.0
"""Seconds of the first ejection; doubled each time that the replica is no better."""
MAX_EJECTION: Final = 60.0
PROBE_SECONDS: Final = 5.0
"""After this long without an answer to it, another request finds out if a replica is back."""
FLOOR_RATE: Final = 10.0
"""Retries a second that are always allowed, and saved up for `FLOOR_SECONDS`."""
FLOOR_SECONDS: Final = 10.0
MAX_SAVED: Final = 1000.0
"""Most retries that requests can save up."""
FIRST_PAUSE: Final = 0.025
MAX_PAUSE: Final = 1.0
"""Seconds of the backoff."""

C = TypeVar("C")


class Endpoint(Generic[C]):
    """One replica: its connection, and what is known of it. Owned by its pool."""

    __slots__ = (
        "connection", "ejected", "ejections", "epoch", "failed", "failures", "missed",
        "outstanding", "probe", "probed", "ready", "requests", "seen", "until", "url", "why",
    )  # fmt: skip

    def __init__(self, url: str, connection: C) -> None:
        self.url = url
        self.connection = connection
        self.outstanding = 0
        """Attempts under way."""
        self.requests = 0
        self.failed = 0
        """Attempts that failed for a reason that speaks against the replica."""
        self.failures = 0
        """The same, in a row."""
        self.ejections = 0
        """Ejections since it last answered."""
        self.until = 0.0
        """When the ejection ends; 0 = it is not ejected."""
        self.epoch = 0
        """Counts ejections and probes, so that older attempts can be told from newer ones."""
        self.ejected = 0
        """The epoch of the last ejection."""
        self.probe = 0
        """The epoch of the request that is under way to find out if it is back; 0 = none is."""
        self.probed = 0.0
        """When that request began."""
        self.ready = True
        """Whether the server and its model said so when last asked."""
        self.missed = 0
        """Health checks in a row without an answer."""
        self.seen = False
        """Whether it has ever answered."""
        self.why = ""
        """The last failure."""

    @property
    def healthy(self) -> bool:
        return self.ready and self.missed < UNHEALTHY

    def state(self, now: float) -> str:
        """As ``sluice models`` shows it."""
        if self.missed >= UNHEALTHY:
            return "unreachable"
        if not self.ready:
            return "not ready"
        return "ejected" if self.until > now else "ready"


class Pool(Generic[C]):
    """The replicas of one version."""

    def __init__(self, now: Callable[[], float], random: Random) -> None:
        self.endpoints: tuple[Endpoint[C], ...] = ()
        self._now = now
        self._random = random

    def replace(self, endpoints: Iterable[Endpoint[C]]) -> None:
        """Takes a new set of replicas; those that left may still have attempts under way."""
        self.endpoints = tuple(endpoints)

    def choose(self, avoid: Collection[Endpoint[C]] = ()) -> Endpoint[C] | None:
        """The usable replica with the fewest attempts under way, rather none of `avoid`.

        Where none is usable it is the one that will be back first: an attempt fails quickly,
        and nothing says that all of them are really gone. `None` where there are none at all.
        """
        endpoints = self.endpoints
        if len(endpoints) == 1:
            return endpoints[0]
        now = self._now()
        usable = [e for e in endpoints if e.until == 0.0 and e.ready and e.missed < UNHEALTHY]
        if len(usable) < len(endpoints):
            usable += [e for e in endpoints if e.until and self._may_probe(e, now)]
        if avoid:
            usable = [e for e in usable if e not in avoid] or usable
        if usable:
            return self._least(usable)
        if not endpoints:
            return None
        others = [e for e in endpoints if e not in avoid] or endpoints
        healthy = [e for e in others if e.healthy] or others
        first = min(max(e.until, now) for e in healthy)
        return self._least([e for e in healthy if max(e.until, now) == first])

    def has_usable(self, avoid: Collection[Endpoint[C]]) -> bool:
        """Whether there is a usable replica besides those."""
        now = self._now()
        return any(
            e not in avoid and e.healthy and (e.until == 0.0 or self._may_probe(e, now))
            for e in self.endpoints
        )

    def _may_probe(self, endpoint: Endpoint[C], now: float) -> bool:
        return endpoint.healthy and endpoint.until <= now and self._unprobed(endpoint, now)

    def _unprobed(self, endpoint: Endpoint[C], now: float) -> bool:
        return not endpoint.probe or now - endpoint.probed >= PROBE_SECONDS

    def _least(self, endpoints: Collection[Endpoint[C]]) -> Endpoint[C]:
        fewest = min([e.outstanding for e in endpoints])
        best = [e for e in endpoints if e.outstanding == fewest]
        return best[0] if len(best) == 1 else self._random.choice(best)

    # --- attempts: each that was started ends once, in one of three ways

    def started(self, endpoint: Endpoint[C]) -> int:
        """An attempt begins; what this returns is to be handed back at its end."""
        endpoint.outstanding += 1
        endpoint.requests += 1
        if endpoint.until:
            now = self._now()
            if endpoint.until <= now and self._unprobed(endpoint, now):
                endpoint.epoch += 1
                endpoint.probe = endpoint.epoch
                endpoint.probed = now
        return endpoint.epoch

    def begun(self, endpoint: Endpoint[C], epoch: int) -> None:
        """The first of several answers is there: an ejected replica is back. The attempt goes
        on, and ends like any other."""
        if endpoint.until and epoch >= endpoint.ejected:
            self._back(endpoint)

    def answered(self, endpoint: Endpoint[C], epoch: int) -> None:
        """The replica did its part, whatever the answer says."""
        endpoint.outstanding -= 1
        endpoint.seen = True
        if endpoint.until:
            # What began before the ejection says nothing about now.
            if epoch >= endpoint.ejected:
                self._back(endpoint)
        elif endpoint.failures or endpoint.ejections:
            endpoint.failures = endpoint.ejections = 0
            endpoint.why = ""

    def failed(self, endpoint: Endpoint[C], epoch: int, why: str) -> None:
        """The attempt failed for a reason that speaks against the replica."""
        endpoint.outstanding -= 1
        endpoint.failed += 1
        endpoint.failures += 1
        endpoint.why = why
        if endpoint.until == 0.0:
            if endpoint.failures >= FAILURES:
                self._eject(endpoint)
        elif epoch >= endpoint.ejected and endpoint.until <= self._now():
            self._eject(endpoint)

    def dropped(self, endpoint: Endpoint[C], epoch: int) -> None:
        """The attempt ended in a way that says nothing about the replica, e.g. cancelled."""
        endpoint.outstanding -= 1
        if epoch == endpoint.probe:
            endpoint.probe = 0

    def _back(self, endpoint: Endpoint[C]) -> None:
        endpoint.until = 0.0
        endpoint.probe = endpoint.ejections = endpoint.failures = 0
        endpoint.why = ""

    def _eject(self, endpoint: Endpoint[C]) -> None:
        seconds = min(EJECTION * 2.0 ** min(endpoint.ejections, 16), MAX_EJECTION)
        endpoint.ejections += 1
        endpoint.epoch += 1
        endpoint.ejected = endpoint.epoch
        endpoint.probe = 0
        endpoint.until = self._now() + seconds

    # --- health checks

    def is_ready(self, endpoint: Endpoint[C]) -> None:
        """The server and its model say that they are ready."""
        was_away = not endpoint.healthy
        endpoint.ready = True
        endpoint.missed = 0
        endpoint.seen = True
        if endpoint.until:
            # Not yet believed, as it may say so and still refuse: one request will find out.
            endpoint.until = min(endpoint.until, self._now())
        elif was_away:
            endpoint.failures = 0
            endpoint.why = ""

    def not_ready(self, endpoint: Endpoint[C], why: str) -> None:
        """The server answers, but it or its model is not ready."""
        endpoint.ready = False
        endpoint.missed = 0
        endpoint.seen = True
        endpoint.why = why

    def no_answer(self, endpoint: Endpoint[C], why: str) -> None:
        """The health check was not answered."""
        endpoint.missed += 1
        endpoint.why = why


class RetryBudget:
    """Retries in proportion to requests: a token bucket. Besides that `FLOOR_RATE` a second."""

    def __init__(self, now: Callable[[], float], share: float) -> None:
        self._now = now
        self._share = share
        self._saved = 0.0
        self._floor = FLOOR_RATE * FLOOR_SECONDS
        self._at = now()

    def request(self) -> None:
        """One request (not a retry) is made."""
        if self._saved < MAX_SAVED:
            self._saved += self._share

    def take(self) -> bool:
        """Whether there may be a retry; if so it is counted."""
        now = self._now()
        full = FLOOR_RATE * FLOOR_SECONDS
        self._floor = min(self._floor + (now - self._at) * FLOOR_RATE, full)
        self._at = now
        if self._saved >= 1.0:
            self._saved -= 1.0
        elif self._floor >= 1.0:
            self._floor -= 1.0
        else:
            return False
        return True


def pause(retry: int, random: Random) -> float:
    """Seconds before the `retry`-th retry (from 0 on): exponential, with full jitter."""
    return random.uniform(0.0, min(FIRST_PAUSE * 2.0 ** min(retry, 16), MAX_PAUSE))
