"""Ties users, statistics and thresholds to locust's events, in every kind of process.

Importing it is enough.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import gevent
import locust
import locust.runners
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtests.errors import BenchError
from loadtests.users import options as ours
from loadtests.users import web
from loadtests.users.session import REFUSED, UNABLE, Session, session_of, sessions
from loadtests.users.tally import UNKNOWN, Key

logger = logging.getLogger(__name__)
events: Any = locust.events

# Seconds between a worker's reports; three of them would be long for a step to saturation.
locust.runners.WORKER_REPORT_INTERVAL = 1.0
# It tells of every question to the server, which is asked once a second.
logging.getLogger("httpx").setLevel(logging.WARNING)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _options(parser: Any, **_: Any) -> None:
    ours.add_options(parser)


@events.init.add_listener  # type: ignore[untyped-decorator]
def _init(environment: Environment, **_: Any) -> None:
    session = session_of(environment)
    runner = environment.runner
    hooks: Any = environment.events
    hooks.request.add_listener(_counts(session))
    hooks.reset_stats.add_listener(session.tally.clear)
    if isinstance(runner, WorkerRunner):
        hooks.report_to_master.add_listener(_reports(session))
    else:
        try:
            _arrange(session)
        except BenchError as error:
            # Not an exception: locust would print where it came from and go on.
            print(f"locust: {error}", file=sys.stderr)
            sys.exit(UNABLE)
        if isinstance(runner, MasterRunner):
            hooks.worker_report.add_listener(_adds(session))
            runner.register_message(REFUSED, _refused(session))
    if environment.web_ui is not None:
        web.extend(environment, session)


def _arrange(session: Session) -> None:
    """User classes, shape and thresholds as the command line says; and, where a run is about to
    start, whether there is anything to ask. Raises `BenchError`."""
    from loadtests.users.shapes import shape_of

    environment = session.environment
    options = session.options
    session.read_options()
    if options.user_mix:
        if options.user_classes:
            raise BenchError(
                f"--user-mix and the class {options.user_classes[0]} at the end say both who is to "
                "ask; give one of them"
            )
        classes = {cls.__name__: cls for cls in environment.user_classes}
        mix = ours.mix_of(options.user_mix, classes)
        for name, weight in mix.items():
            classes[name].weight = weight
        environment.user_classes = [classes[name] for name in mix]
    elif not options.user_classes:
        # Of our own locustfile, which has one of each kind, the simplest.
        chosen = [cls for cls in environment.user_classes if getattr(cls, "usual", True)]
        environment.user_classes = chosen or environment.user_classes
    if options.shape:
        environment.shape_class = shape_of(options.shape, environment)
        environment.shape_class.runner = environment.runner
        # Locust's own default, one user a second, would flatten every shape.
        options.spawn_rate = options.spawn_rate or 100.0
    if session.pace.kind != "closed":
        for cls in environment.user_classes:
            _paced(cls)
    if options.headless or options.autostart:
        for cls in environment.user_classes:
            if hasattr(cls, "protocol"):
                session.requests_of(cls)


def _paced(cls: Any) -> None:
    from loadtests.users.base import InferenceUser

    if issubclass(cls, InferenceUser) and cls.wait_time is not InferenceUser.wait_time:
        raise BenchError(f"--pace: {cls.__name__} has a wait_time of its own; take one of them out")


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _start(environment: Environment, **_: Any) -> None:
    runner = environment.runner
    if isinstance(runner, MasterRunner):
        # Workers get the options, and with them their parts of a recording.
        workers = sorted(client.id for client in runner.clients.all)
        session_of(environment).options.sluice_ranks = {each: n for n, each in enumerate(workers)}
    session_of(environment).started()


@events.test_stop.add_listener  # type: ignore[untyped-decorator]
def _stop(environment: Environment, **_: Any) -> None:
    session_of(environment).stopped()


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _judge(environment: Environment, **_: Any) -> None:
    if not isinstance(environment.runner, WorkerRunner):
        session_of(environment).judge()


@events.quit.add_listener  # type: ignore[untyped-decorator]
def _show(exit_code: int, **_: Any) -> None:
    for environment, session in sessions():
        if not isinstance(environment.runner, WorkerRunner):
            if not getattr(environment.parsed_options, "json", False):
                session.show()
            session.close()


def _counts(session: Session) -> Any:
    def count(
        name: str,
        response_time: float | None,
        exception: BaseException | None = None,
        context: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        said = context or {}
        key = Key(said.get("sluice_model", name), said.get("sluice_version", UNKNOWN))
        if exception is not None or response_time is None:
            session.tally.failed(key)
        else:
            session.tally.answered(key, response_time)

    return count


def _reports(session: Session) -> Any:
    def report(client_id: str, data: dict[str, Any]) -> None:
        data["sluice"] = session.tally.report()

    return report


def _adds(session: Session) -> Any:
    def add(client_id: str, data: dict[str, Any]) -> None:
        if "sluice" in data:
            session.tally.add(data["sluice"])

    return add


def _refused(session: Session) -> Any:
    def refused(environment: Environment, msg: Any, **_: Any) -> None:
        if not session.refused:
            session.refused = str(msg.data["text"])
            environment.process_exit_code = UNABLE
            logger.error("a worker cannot go on: %s", session.refused)
        runner = environment.runner
        if runner is not None and session.options.headless:
            gevent.spawn(runner.quit)

    return refused
