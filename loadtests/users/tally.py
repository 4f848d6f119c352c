"""What was answered, by which version, how fast. Knows nothing of locust."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from hdrh.histogram import HdrHistogram

HIGHEST: Final = 3_600_000_000
"""µs: an hour."""
UNKNOWN: Final = ""
"""The version of an answer that does not say who gave it."""


class Key(NamedTuple):
    """Whose answers are counted together."""

    model: str
    version: str


def histogram() -> Any:
    """An empty one: 1 µs to an hour, three significant digits."""
    return HdrHistogram(1, HIGHEST, 3)


@dataclass
class Window:
    """Everything that was answered since some moment."""

    latency: Any = field(default_factory=histogram)
    failed: int = 0

    @property
    def ok(self) -> int:
        """Requests that were answered well."""
        return int(self.latency.get_total_count())

    @property
    def requests(self) -> int:
        """All of them."""
        return self.ok + self.failed

    @property
    def error_rate(self) -> float:
        """0 to 1; 0 where nothing was asked."""
        return self.failed / self.requests if self.requests else 0.0

    def at_ms(self, percentile: float) -> float | None:
        """A percentile of the latencies of what was answered well; ``None``: nothing was."""
        if not self.ok:
            return None
        return float(self.latency.get_value_at_percentile(percentile)) / 1000


class Tally:
    """Counts answers: of this process, and of workers that report theirs."""

    def __init__(self) -> None:
        self.total = Window()
        self.window = Window()
        """Since `open_window`."""
        self.versions: dict[Key, Window] = {}
        self.lateness = 0
        """Requests of a recording that left more than 100 ms after they were due."""
        self._unsent: dict[Key, Window] = {}
        self._unsent_late = 0

    def clear(self) -> None:
        """Starts again, as locust's own statistics do."""
        self.__init__()  # type: ignore[misc]

    def open_window(self) -> None:
        """`window` counts from now on."""
        self.window = Window()

    def answered(self, key: Key, milliseconds: float) -> None:
        """One request was answered well."""
        micros = min(max(round(milliseconds * 1000), 1), HIGHEST)
        for each in (self.total, self.window, self._of(key), self._unsent_of(key)):
            each.latency.record_value(micros)

    def failed(self, key: Key) -> None:
        """One request was not."""
        for each in (self.total, self.window, self._of(key), self._unsent_of(key)):
            each.failed += 1

    def late(self) -> None:
        """One request of a recording left late."""
        self.lateness += 1
        self._unsent_late += 1

    def _of(self, key: Key) -> Window:
        found = self.versions.get(key)
        if found is None:
            found = self.versions[key] = Window()
        return found

    def _unsent_of(self, key: Key) -> Window:
        found = self._unsent.get(key)
        if found is None:
            found = self._unsent[key] = Window()
        return found

    # --- from workers to the master

    def report(self) -> dict[str, Any]:
        """What came since the last report, as a message has it."""
        rows = [
            [key.model, key.version, each.failed, each.latency.encode()]
            for key, each in self._unsent.items()
        ]
        late, self._unsent, self._unsent_late = self._unsent_late, {}, 0
        return {"rows": rows, "late": late}

    def add(self, report: dict[str, Any]) -> None:
        """Counts what a worker reported."""
        self.lateness += int(report["late"])
        for model, version, failed, encoded in report["rows"]:
            latency = HdrHistogram.decode(encoded)
            for each in (self.total, self.window, self._of(Key(model, version))):
                each.failed += int(failed)
                each.latency.add(latency)


def models_of(keys: Iterable[Key]) -> list[str]:
    """Their models, each once."""
    return sorted({key.model for key in keys})
