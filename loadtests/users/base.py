"""What all users of an inference server have in common."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import gevent
from locust import User, task
from locust.env import Environment
from locust.exception import StopTest

from loadtests.bench.plan import Protocol
from loadtests.errors import BenchError
from loadtests.payloads.base import Wire
from loadtests.users import hooks  # noqa: F401  # listens to locust's events
from loadtests.users.session import session_of

LATE_S = 0.1
"""A recorded request that leaves later than this is counted."""


class InferenceUser(User):  # type: ignore[misc,unused-ignore]
    """One caller, who sends the next request when the last one was answered.

    Subclass one of the users of a protocol and set what the command line does not say; what is
    given there counts for more.
    """

    abstract = True
    protocol: ClassVar[Protocol]
    model: str = ""
    model_version: str = ""
    """A version or a label; empty: the split decides."""
    grpc_host: str = ""
    data: str | Path = ""
    """A source as ``--data`` has it; empty: random values that fit the model."""
    rows: int = 1
    shapes: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    """Sizes of inputs for random values, where the model leaves them open."""
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Lowest and highest random values of inputs."""
    headers: ClassVar[Mapping[str, str]] = {}
    ca_file: str = ""
    timeout_s: float = 30.0
    usual: ClassVar[bool] = True
    """Whether it asks when the command line names nobody."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        session = session_of(environment)
        try:
            self.plan, self.requests = session.requests_of(type(self))
        except BenchError as error:
            session.refuse(error)
            # Nobody else could do better: the run ends, with this line.
            raise StopTest(str(error)) from None
        self.session = session
        self.timeout = getattr(environment.parsed_options, "timeout", 0.0) or self.timeout_s
        self._left = 0.0

    def on_start(self) -> None:
        """Waits a moment, so that users with a pace do not ask in step."""
        gevent.sleep(self.session.pace.first_wait())

    def wait_time(self) -> float:  # type: ignore[override,unused-ignore]
        """Seconds to the next request, as ``--pace`` says. A class may have its own."""
        return self.session.pace.wait(time.perf_counter() - self._left)

    @task
    def ask(self) -> None:
        """One request."""
        wire, due = self.requests.take()
        if due is not None:
            late = self.session.now() - due
            if late < 0:
                gevent.sleep(-late)
            elif late > LATE_S:
                self.session.tally.late()
        self._left = time.perf_counter()
        self.send(wire)

    def send(self, wire: Wire) -> None:
        """Sends a request, waits for the answer, and fires locust's ``request`` event."""
        raise NotImplementedError

    def told(
        self,
        version: str,
        milliseconds: float,
        length: int,
        error: Exception | None,
        response: Any = None,
    ) -> None:
        """Fires locust's ``request`` event, with the version for our own statistics."""
        self.environment.events.request.fire(
            request_type=str(self.protocol),
            name=self.plan.target.model,
            response_time=milliseconds,
            response_length=length,
            exception=error,
            response=response,
            context=context(self.plan.target.model, version),
        )


def context(model: str, version: str) -> dict[str, str]:
    """What the ``request`` event says of an answer, beside locust's own."""
    return {"sluice_model": model, "sluice_version": version}
