"""The thread that brings entries into the database, whatever happens to it meanwhile.

queue → (database away: journal) → database. An entry is in one of the three until the database
has said that it has it; there it is once, however often it was sent.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final
from uuid import uuid4

from gateway.history.base import CRASH, SERVED, STOP, Change, Served
from gateway.history.documents import Row, row_of
from gateway.history.journal import Journal, adopt, new_journal
from gateway.history.past import when
from gateway.history.store import Away, Broken, Store, Unusable, open_file, set_aside
from gateway.telemetry.logs import log

BATCH: Final = 500
FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 30.0
SIGN_OF_LIFE: Final = 10.0
"""Seconds between two of them: so exactly is known when a gateway crashed."""
MOST_IN_MEMORY: Final = 10_000
"""Entries kept while neither database nor journal takes them."""
CLOSE_SECONDS: Final = 8.0


class Writer:
    """Owns the journal and all writing. `add` and `close` are for the event loop's thread.

    `folder` is where journals are (`None`: nowhere), `file` the sqlite file where it is our own,
    which may be set aside when it is damaged.
    """

    def __init__(
        self, store: Store, gateway: str, folder: Path | None, file: Path | None, started: float
    ) -> None:
        self.store = store
        self.trouble = ""
        """Why the database does not take entries now; empty: it does."""
        self._gateway = gateway
        self._file = file
        self._started = started
        self._journal: Journal | None = None
        self._crashed: list[Journal] = []
        self._alive: set[str] = set()
        self._folder = folder
        if folder is not None:
            self._journal = new_journal(folder)
        self.run = self._journal.run if self._journal is not None else uuid4().hex
        self._noted = False
        self._queue: SimpleQueue[Row | None] = SimpleQueue()
        self._waiting: list[Row] = []
        self._latest: dict[str, Row] = {}
        """By model its latest entry, and the start: a new file begins with them."""
        self._pause = 0.0
        self._lost = 0
        self._sent = 0
        self._taken = 0
        self._written = threading.Condition()
        self._done = 0
        self._thread = threading.Thread(target=self._work, name="sluice-history", daemon=True)
        self._thread.start()

    def add(self, change: Change) -> None:
        """Takes an entry; never waits."""
        self._sent += 1
        self._queue.put(row_of(change))

    def wait_written(self, seconds: float) -> None:
        """Waits until what was added is in the database, unless that is away; for a thread."""
        sent = self._sent
        with self._written:
            self._written.wait_for(lambda: self._done >= sent or bool(self.trouble), seconds)

    def close(self) -> None:
        """Brings the rest into the database, or at least into the journal; for a thread."""
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            # It hangs in the database's driver, and does not touch the journal there.
            rest = [row for row in self._drain() if row is not None]
            log.warning("history: %s does not answer; left to the next start", self.store.name)
            if self._journal is not None and rest:
                with suppress(OSError):
                    self._journal.append(rest)
        else:
            self.store.close()

    # --- the thread

    def _work(self) -> None:
        going = True
        next_try = 0.0
        while going:
            now = time.monotonic()
            going = self._take(max(0.0, min(SIGN_OF_LIFE, next_try - now) if self.trouble else 0.0))
            if self._journal is not None:
                with suppress(OSError):
                    self._journal.live()
            if self.trouble and going and time.monotonic() < next_try:
                self._keep()
                continue
            if self._try():
                self._pause = 0.0
            else:
                self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
                next_try = time.monotonic() + self._pause
        if self._journal is not None:
            with suppress(OSError):
                self._journal.close(delete=self._journal.empty)
        for journal in self._crashed:
            journal.close(delete=False)
        if self._waiting:
            log.error("history: %d entries are lost", len(self._waiting))

    def _take(self, seconds: float) -> bool:
        """Takes what is in the queue, after waiting for it; False at the end."""
        idle = not self.trouble and not self._waiting and self._noted
        with suppress(Empty):
            first = self._queue.get(timeout=SIGN_OF_LIFE if idle else max(seconds, 0.001))
            rows = [first, *self._drain()]
            new = [row for row in rows if row is not None]
            self._waiting += new
            self._taken += len(new)
            self._latest.update((row["model"], row) for row in new if row["action"] != STOP)
            return None not in rows
        return True

    def _drain(self) -> Iterator[Row | None]:
        with suppress(Empty):
            while True:
                yield self._queue.get_nowait()

    def _try(self) -> bool:
        """Brings everything into the database, if it lets us."""
        if self._file is None:
            self._keep()  # a driver may hang, and the process be killed meanwhile
        try:
            try:
                self._bring()
            except (Broken, Unusable) as error:
                if self._file is None or not (isinstance(error, Broken) or barred(self._file)):
                    raise
                self._begin_anew(self._file)
                self._bring()
        except (Away, Broken, Unusable, OSError) as error:
            self._keep()
            self._complain(str(error))
            return False
        if self.trouble:
            log.info("history: %s takes entries again; nothing is lost", self.store.name)
        with self._written:
            self.trouble = ""
            self._done = self._taken
            self._written.notify_all()
        return True

    def _bring(self) -> None:
        if not self._noted:
            self._adopt()
            for journal in self._crashed:
                self._add(journal.rows())
            self._note_crashes()
            self._noted = True
        while self._crashed:
            self._crashed.pop().close(delete=True)
        if self._journal is not None and not self._journal.empty:
            self._add(self._journal.rows())
            self._journal.clear()
        self._add(self._waiting)
        self._waiting.clear()

    def _add(self, rows: Sequence[Row]) -> None:
        for start in range(0, len(rows), BATCH):
            self.store.add(rows[start : start + BATCH])

    def _adopt(self) -> None:
        """Looks only now which runs live: the database may have been away for long."""
        if self._folder is not None:
            crashed, alive = adopt(self._folder)
            self._alive = alive - {journal.run for journal in self._crashed}
            self._crashed += crashed

    def _note_crashes(self) -> None:
        """Writes down which runs ended without saying so: those whose journals nobody holds, and
        earlier ones of our own name."""
        signs = {journal.run: journal.alive_at for journal in self._crashed}
        rows = []
        for run in self.store.open_runs():
            name = run["run"]
            if name == self.run or name in self._alive:
                continue
            if name not in signs and run["gateway"] != self._gateway:
                continue
            since = max(float(run["last"]), signs.get(name, 0.0))
            at = max(self._started, since)
            text = f"ended without a stop after {when(since)}, as the next start found"
            crash = Change("", CRASH, self._gateway, text, Served(), Served(), at)
            rows.append(row_of(crash) | {"gateway": run["gateway"], "run": name, "seq": -1})
            rows[-1]["since"] = since
            log.warning("history: %s %s", run["gateway"], text)
        self._add(rows)

    def _begin_anew(self, file: Path) -> None:
        self.store.close()
        with suppress(FileNotFoundError):
            set_aside(file)
        self.store = open_file(file)
        self._waiting[:0] = sorted(self._latest.values(), key=lambda row: int(row["seq"]))

    def _keep(self) -> None:
        """Moves what waits from memory into the journal."""
        if not self._waiting:
            return
        if self._journal is not None:
            with suppress(OSError):
                self._journal.append(self._waiting)
                self._waiting.clear()
                return
        while len(self._waiting) > MOST_IN_MEMORY:
            served = (i for i, row in enumerate(self._waiting) if row["action"] == SERVED)
            oldest = next(served, None)
            if oldest is None:
                return  # what people did is never dropped
            del self._waiting[oldest]
            self._lost += 1
            if self._lost == 1:
                log.error("history: neither database nor disk take entries; the oldest are lost")

    def _complain(self, text: str) -> None:
        if not self.trouble:
            on_disk = self._journal is not None and not self._waiting
            kept = "in the state directory" if on_disk else "in memory"
            log.warning(
                "history: %s does not take entries (%s); they are kept %s until it does",
                self.store.name, text, kept,
            )  # fmt: skip
        with self._written:
            self.trouble = text
            self._written.notify_all()


def barred(file: Path) -> bool:
    """Whether something is there that cannot be used as a file."""
    return file.exists() and not (file.is_file() and os.access(file, os.R_OK | os.W_OK))
