"""What one locust process knows of its run: requests, counts, thresholds."""

from __future__ import annotations

import logging
import time
from typing import Any
from weakref import WeakKeyDictionary

import gevent.lock
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtests.bench.plan import Target
from loadtests.errors import BenchError
from loadtests.users import options as ours
from loadtests.users.pace import Pace, Replay
from loadtests.users.plans import Plan, Prepared, plan_of, prepare
from loadtests.users.server import ServerSide
from loadtests.users.shares import Declared, Row, rows_of, table
from loadtests.users.tally import Tally
from loadtests.users.thresholds import Thresholds

logger = logging.getLogger(__name__)
# Where locust prints its own tables.
console = logging.getLogger("locust.stats_logger")


REFUSED = "sluice-refused"
"""Message of a worker that cannot do what it is told."""
UNABLE = 2
"""Exit code when nothing could be measured."""


class Requests:
    """The requests of one user class, taken in turn by all its users of this process."""

    def __init__(self, prepared: Prepared, replay: Replay | None) -> None:
        self._wires = prepared.wires
        self._replay = replay
        self._next = 0

    def take(self) -> tuple[Any, float | None]:
        """The next request, and when it is due in seconds of the run (``None``: now)."""
        if self._replay is not None:
            return self._replay.take()
        wire = self._wires[self._next % len(self._wires)]
        self._next += 1
        return wire, None


class Session:
    """What one locust process knows of its run."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.tally = Tally()
        self.pace = Pace()
        self.thresholds = Thresholds()
        self.refused = ""
        self.judged: list[tuple[bool, str]] = []
        self._server: dict[str, ServerSide] = {}
        self._prepared: dict[Plan, Prepared] = {}
        self._requests: dict[Plan, Requests] = {}
        self._lock = gevent.lock.RLock()
        self._began = 0.0
        self._ended = 0.0

    # --- before and during a run

    def read_options(self) -> None:
        """Raises `BenchError` for options that make no sense."""
        options = self.options
        self.pace = ours.pace_of(options)
        self.thresholds = ours.thresholds_of(options)
        ours.headers_of(options)

    def started(self) -> None:
        """A run begins."""
        self.tally.clear()
        self._requests.clear()
        if self._ended:
            # Not the first run of this process: the server and the files may be others now.
            self._prepared.clear()
            self.close()
            self._server.clear()
        self.refused = ""
        self.judged = []
        self._began, self._ended = time.monotonic(), 0.0
        try:
            self.read_options()
            for target in self.targets():
                self._followed(target).read()
        except BenchError as error:
            # Users say it again when they come, and end the run.
            logger.error("%s", error)

    def stopped(self) -> None:
        """A run is over."""
        self._ended = time.monotonic()

    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    @property
    def options(self) -> Any:
        """What the command line, the web form or the master said."""
        return self.environment.parsed_options

    @property
    def seconds(self) -> float:
        """How long the run lasts, or lasted."""
        return (self._ended or time.monotonic()) - self._began if self._began else 0.0

    def requests_of(self, cls: Any) -> tuple[Plan, Requests]:
        """What instances of a user class send. Raises `BenchError`."""
        environment = self.environment
        plan = plan_of(cls, self.options, environment.host or cls.host or "")
        # The first user asks the server; others that come meanwhile wait for it.
        with self._lock:
            if plan not in self._prepared:
                self._prepared[plan] = prepare(plan)
                logger.info("%s: %s", cls.__name__, self._prepared[plan].words)
            if plan not in self._requests:
                prepared = self._prepared[plan]
                replay = None
                if self.pace.kind == "recorded":
                    replay = Replay(prepared.wires, *self._part())
                self._requests[plan] = Requests(prepared, replay)
            return plan, self._requests[plan]

    def _part(self) -> tuple[int, int]:
        """Which part of a recording is this process's, and of how many."""
        runner = self.environment.runner
        ranks = getattr(self.environment.parsed_options, "sluice_ranks", None)
        if isinstance(runner, WorkerRunner) and ranks:
            return ranks.get(runner.client_id, 0), len(ranks)
        return 0, 1

    def refuse(self, error: BenchError | str) -> None:
        """A user cannot do what it is told: the run is not worth anything."""
        if self.refused:
            return
        self.refused = str(error)
        self.environment.process_exit_code = UNABLE
        runner = self.environment.runner
        if isinstance(runner, WorkerRunner):
            runner.send_message(REFUSED, {"text": self.refused})

    # --- what came of it

    def targets(self) -> list[Target]:
        """The models that are asked, each once."""
        environment = self.environment
        found: dict[str, Target] = {}
        for cls in environment.user_classes:
            if not hasattr(cls, "protocol"):
                continue
            host = environment.host or cls.host or ""
            try:
                target = plan_of(cls, self.options, host).target
            except BenchError:
                continue
            found.setdefault(target.model, target)
        return list(found.values())

    def _followed(self, target: Target) -> ServerSide:
        return self._server.setdefault(target.model, ServerSide(target))

    def declared(self) -> dict[str, Declared]:
        """Model → what the server says of it."""
        return {model: side.read() for model, side in self._server.items()}

    def rows(self) -> list[Row]:
        """The versions."""
        return rows_of(self.tally.versions, self.declared())

    def judge(self) -> None:
        """Holds the run against its thresholds, and sets locust's exit code."""
        if self.refused or not self.thresholds.any:
            return
        self.judged = self.thresholds.judge(self.tally.total, self.rows(), self.seconds)
        kept = all(good for good, _ in self.judged)
        self.environment.process_exit_code = 0 if kept else 1

    def show(self) -> None:
        """Prints the table, what a shape found, and the thresholds."""
        declared = self.declared()
        rows = rows_of(self.tally.versions, declared)
        lines = ["Versions", *table(rows)] if rows else []
        lines += [f"note: {note}" for says in declared.values() for note in says.notes]
        if self.tally.lateness:
            lines.append(
                f"note: {self.tally.lateness} requests of the recording left more than 100 ms "
                "late; there are too few users for its pace"
            )
        saturation = getattr(self.environment.shape_class, "saturation", None)
        if saturation is not None and saturation.steps:
            lines += ["", "Steps to saturation", *saturation.lines()]
        if self.judged:
            lines += ["", "Thresholds"]
            lines += [f"{'PASS' if good else 'FAIL'}  {text}" for good, text in self.judged]
        if lines:
            for line in lines:
                console.info(line)
            console.info("")

    def close(self) -> None:
        """Ends connections."""
        for side in self._server.values():
            side.close()


_SESSIONS: WeakKeyDictionary[Environment, Session] = WeakKeyDictionary()


def session_of(environment: Environment) -> Session:
    """The session of a locust process."""
    found = _SESSIONS.get(environment)
    if found is None:
        found = _SESSIONS[environment] = Session(environment)
    return found


def sessions() -> list[tuple[Environment, Session]]:
    """All of them, by locust's environments."""
    return list(_SESSIONS.items())
