"""How far a download is: a bar in a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from gateway.artifacts.base import Told
from gateway.errors import FetchError
from gateway.telemetry.logs import log

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_SECONDS: Final = 10.0
"""Time between two log lines of one download."""
BAR_SECONDS: Final = 0.5
"""A download that takes less has no bar."""


class Shown(Protocol):
    """One download as somebody sees it."""

    def update(self, here: int, total: int) -> None:
        """Bytes that are here, and that there will be (-1 = not known)."""

    def close(self) -> None:
        """It has ended, well or not."""


class Transfer:
    """The files of one version on their way. `hear` is for any thread, the rest for one."""

    def __init__(
        self,
        uri: str,
        files: int,
        total: int,
        told: Told,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.over = threading.Event()
        """Set when it makes no sense any more."""
        self.here = 0
        self._total = total
        self._told = told
        self._uri = uri
        self._now = now
        self._started = now()
        self._counting = threading.Lock()
        log.info("fetching %s: %s, %s", uri, amount(files, "file"), megabytes(total))
        self._shown: Shown = Bar(uri, now) if sys.stderr.isatty() else Lines(uri, now)

    def hear(self, more: int) -> None:
        """So many bytes more are here. Raises `FetchError` once it is over."""
        with self._counting:
            self.here += more
        if self.over.is_set():
            raise FetchError(f"{self._uri}: another of its files could not be fetched", final=True)

    def tell(self) -> None:
        """Passes on how far it is; raises what the one told raises."""
        self._shown.update(self.here, self._total)
        self._told(self.here, self._total)

    def done(self) -> None:
        """Everything is here."""
        took = max(self._now() - self._started, 1e-6)
        self._told(self.here, self.here)
        log.info(
            "fetched %s: %s in %.2f s, %.1f MB/s",
            self._uri, megabytes(self.here), took, self.here / 1e6 / took,
        )  # fmt: skip

    def close(self) -> None:
        self._shown.close()


class Lines:
    """A log line every ten seconds."""

    def __init__(self, uri: str, now: Callable[[], float]) -> None:
        self._uri = uri
        self._now = now
        self._next = now() + LINE_SECONDS

    def update(self, here: int, total: int) -> None:
        """See `Shown.update`."""
        if self._now() >= self._next:
            self._next = self._now() + LINE_SECONDS
            part = f"{here / total:.0%} of {megabytes(total)}" if total > 0 else megabytes(here)
            log.info("fetching %s: %s", self._uri, part)

    def close(self) -> None:
        """See `Shown.close`."""


class Bar:
    """A line of the terminal that moves."""

    def __init__(self, uri: str, now: Callable[[], float]) -> None:
        self._uri = uri
        self._now = now
        self._from = now() + BAR_SECONDS
        self._task: TaskID | None = None

    def update(self, here: int, total: int) -> None:
        """See `Shown.update`."""
        if self._task is None:
            if self._now() < self._from:
                return
            self._task = SCREEN.add(self._uri)
        SCREEN.update(self._task, here, total)

    def close(self) -> None:
        """See `Shown.close`."""
        if self._task is not None:
            SCREEN.remove(self._task)
            self._task = None


class Screen:
    """The terminal's bars, of which there can be several at a time; log lines go above them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._tasks: set[TaskID] = set()
        self._streams: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def add(self, uri: str) -> TaskID:
        """A new bar."""
        with self._lock:
            progress = self._progress or self._start()
            task = progress.add_task(uri, total=None)
            self._tasks.add(task)
            return task

    def update(self, task: TaskID, here: int, total: int) -> None:
        """Moves a bar."""
        progress = self._progress
        if progress is not None:
            progress.update(task, completed=here, total=total if total >= 0 else None)

    def remove(self, task: TaskID) -> None:
        """Takes a bar away."""
        with self._lock:
            if self._progress is None:
                return
            self._progress.remove_task(task)
            self._tasks.discard(task)
            if not self._tasks:
                self._stop()

    def _start(self) -> Progress:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            ProgressColumn,
            Task,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )  # fmt: skip
        from rich.text import Text

        class Uri(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(task.description[-48:])

        own = [
            handler
            for handler in logging.getLogger().handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
        ]
        progress = self._progress = Progress(
            Uri(), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
            console=Console(file=sys.stderr, force_terminal=True), transient=True,
        )  # fmt: skip
        self._streams = [(handler, handler.stream) for handler in own]
        progress.start()
        # It has put something in the place of stderr that writes above the bars.
        for handler, _ in self._streams:
            handler.setStream(sys.stderr)
        return progress

    def _stop(self) -> None:
        assert self._progress is not None
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._progress.stop()
        self._progress = None


SCREEN: Final = Screen()


def megabytes(size: int) -> str:
    return "size not known" if size < 0 else f"{size / 1e6:.1f} MB"


def amount(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
