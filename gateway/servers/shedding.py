"""When calls come faster than the event loop serves them: whether that lasts, and who may wait.

Pure: what comes and goes is told, with the time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Final

BURST: Final = 256
"""Most calls taken at once, and begun in one turn of the event loop."""
TARGET: Final = 0.02
"""Seconds that calls may wait to be begun once some are refused."""
INTERVAL: Final = 0.05
"""Seconds between two looks at whether more wait than before."""
HALF: Final = 4
"""Intervals: more must wait throughout the last ones than in any of as many before them. A burst
from clients that wait for their answers is over by then, however many they are."""
GROWTH: Final = 1.1
"""By which factor more must wait."""
CALM: Final = 1.0
"""Seconds without a refusal after which all may wait again."""
MEMORY: Final = 5.0
"""Seconds for which it is known how many have waited: clients that wait for their answers never
become more than they have been."""
RECENT: Final = 0.3
"""Weight of the last interval in the rate."""

Event = tuple[Any, ...]
"""A call as pygrpc-native gives it: kind, id, method, payload, key, (metadata, peer, time left)."""


class Overload:
    """Judges from how many wait, and how many have been begun, whether some must be refused."""

    def __init__(self) -> None:
        self.limit: int | None = None
        """Calls that may wait; `None`: any number."""
        self.rate = 0.0
        """Calls begun in a second while others waited."""
        self._last: float | None = None
        """When the last turn began, if calls had to wait in it."""
        self._busy = 0.0
        """Seconds of the interval in which calls waited."""
        self._begun = 0
        self._least = 0
        self._most = 0
        """Those that waited at the quietest and at the busiest moment of the interval."""
        self._lows: deque[int] = deque(maxlen=2 * HALF)
        self._highs: deque[tuple[float, int]] = deque()
        """The busiest moments of the intervals, with when those ended."""
        self._refused_at = 0.0

    def look(self, now: float, waiting: int, begun: int) -> None:
        """Told in each turn in which calls wait: how many do, how many were ever begun."""
        if self._last is not None:
            self._busy += now - self._last
        self._last = now
        self._least = min(self._least, waiting)
        self._most = max(self._most, waiting)
        if self._busy < INTERVAL:
            return
        rate = (begun - self._begun) / self._busy
        self.rate += (rate - self.rate) * (RECENT if self.rate else 1.0)
        may_wait = max(int(self.rate * TARGET), 1)
        if self.limit is None:
            if self._grows(now, may_wait):
                self.limit = may_wait
                self._refused_at = now
        else:
            self.limit = may_wait
            self._calm(now)
        self._busy = 0.0
        self._begun = begun
        self._least = self._most = waiting

    def _grows(self, now: float, may_wait: int) -> bool:
        """Whether more and more wait, and too many."""
        self._lows.append(self._least)
        self._highs.append((now, self._most))
        while self._highs[0][0] < now - MEMORY:
            self._highs.popleft()
        if len(self._lows) < 2 * HALF:
            return False
        lows = list(self._lows)
        before = list(self._highs)[: -2 * HALF]
        known = max((high for _, high in before), default=0)
        return min(lows[HALF:]) > max(may_wait, GROWTH * max(known, *lows[:HALF]))

    def refused(self, now: float) -> None:
        """Some had to be."""
        self._refused_at = now

    def quiet(self, now: float) -> None:
        """Told in a turn in which all that has come can be begun."""
        if self._last is not None:
            self._busy += now - self._last
            self._last = None
        self._least = 0
        self._lows.clear()
        if self.limit is not None:
            self._calm(now)

    def _calm(self, now: float) -> None:
        """Lets all wait again once nobody had to be refused for a while."""
        if now - self._refused_at > CALM:
            self.limit = None
            self._lows.clear()
            self._highs.clear()


class Backlog:
    """The calls that are not begun, in the order in which they came. In overload the newest are
    refused; of connections that have fewer waiting than others, none."""

    def __init__(self, refuse: Callable[[int], object]) -> None:
        """`refuse` tells the caller of a call's id."""
        self.flooded = False
        """Whether more comes than one burst; what comes is to be added here while that is so."""
        self.waiting = 0
        self.begun = 0
        self._new = 0
        """Calls that came since the last look and may wait."""
        self._some_refused = False
        """Since the last look."""
        self.overload = Overload()
        self._refuse = refuse
        self._bursts: deque[tuple[float, Sequence[Event]]] = deque()
        self._gone: set[int] = set()
        """Calls that were cancelled, while they waited or just before."""
        self._peers: Counter[str] | None = None
        """Connection → calls that wait; kept in overload only."""

    def add(self, now: float, calls: Sequence[Event]) -> None:
        """Takes calls that came by `now`, or refuses them."""
        limit = self.overload.limit
        taken = calls if limit is None else self._fitting(calls, limit)
        if taken:
            self._bursts.append((now, taken))
            self.waiting += len(taken)
            self._new += len(taken)
        if len(taken) < len(calls):
            self._some_refused = True
            self.overload.refused(now)

    def _fitting(self, calls: Sequence[Event], limit: int) -> list[Event]:
        peers = self._peers
        assert peers is not None
        waiting = self.waiting
        share = max(1, limit // max(1, len(peers)))
        taken = []
        for event in calls:
            peer = event[5][1]
            # Only inference is refused: whoever asks how we are must be told.
            if waiting >= limit and peers[peer] >= share and event[2] == 0:
                self._refuse(event[1])
                continue
            peers[peer] += 1
            waiting += 1
            taken.append(event)
        return taken

    def cancelled(self, call_id: int) -> None:
        """A call that is not known elsewhere need not be begun."""
        if self._bursts:
            self._gone.add(call_id)

    def next(self) -> tuple[float, Sequence[Event]]:
        """The oldest of those who wait, and when they came."""
        now, calls = self._bursts.popleft()
        self.waiting -= len(calls)
        self.begun += len(calls)
        peers = self._peers
        if peers is not None:
            for event in calls:
                peer = event[5][1]
                peers[peer] -= 1
                if not peers[peer]:
                    del peers[peer]
        if self._gone:
            calls = [event for event in calls if event[1] not in self._gone]
            if not self._bursts:
                self._gone.clear()
        return now, calls

    def look(self, now: float) -> None:
        """Once a turn, when what has come is taken."""
        overload = self.overload
        all_may = overload.limit is None
        quiet = self._new == self.waiting <= BURST and not self._some_refused
        self._new = 0
        self._some_refused = False
        if quiet:
            overload.quiet(now)
        else:
            overload.look(now, self.waiting, self.begun)
        self.flooded = not quiet or overload.limit is not None
        if overload.limit is None:
            self._peers = None
        elif all_may:
            self._refuse_newest()

    def _refuse_newest(self) -> None:
        """Now that it is known that there are too many."""
        bursts = list(self._bursts)
        self.clear()
        self._peers = Counter()
        for came, calls in bursts:
            self.add(came, calls)
        self._new = 0

    def clear(self) -> list[Event]:
        """All that wait, which will not be begun."""
        calls = [event for _, burst in self._bursts for event in burst]
        self._bursts.clear()
        self.waiting = 0
        if self._peers is not None:
            self._peers.clear()
        return calls
