"""Requests that wait until an on-demand model is loaded.

Loaded models cost nothing here: a call comes only after routing found that nothing is loaded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from gateway.call import NEW, QUEUED, Call
from gateway.config import LifecycleConfig
from gateway.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    NotLoaded,
    Overloaded,
    SluiceError,
)

if TYPE_CHECKING:
    from gateway.tensors import InferenceRequest

LONGEST_RETRY: Final = 60.0
"""Most seconds that a caller is told to wait before trying again."""

Again = Callable[[SluiceError | None], object]
"""What to do with a call whose waiting is over: end it with the error, or serve it again."""


class Loading(Protocol):
    """What loads models: `gateway.lifecycle.on_demand.OnDemand`."""

    def want(self, model: str, version: str, *, urgent: bool) -> SluiceError | None:
        """Somebody asks for a model that is not loaded: loads it, unless that has just failed.
        The error is for whoever asks."""

    def outlook(self, model: str, version: str) -> SluiceError | bool:
        """True where asking again makes sense now, False while it is loading; the error where it
        could not be loaded."""


class Waiter:
    """One call that waits."""

    __slots__ = ("again", "call", "model", "timer", "version")

    def __init__(self, call: Call, model: str, version: str, again: Again) -> None:
        self.call = call
        self.model = model
        self.version = version
        self.again = again
        self.timer: asyncio.TimerHandle | None = None


class InnerQuestion(Call):
    """A model asks about another one, perhaps while it is loading."""

    __slots__ = ()
    inner = True


class Demand:
    """Owned by the event loop; the owner of its calls (see `gateway.call.Owner`).

    `usual_seconds` says how long a load takes, as a guess.
    """

    elsewhere = False

    def __init__(
        self, loading: Loading, usual_seconds: Callable[[], float], config: LifecycleConfig
    ) -> None:
        self.waited = 0
        """Calls that had to wait so far."""
        self._loading = loading
        self._usual_seconds = usual_seconds
        self._wait = config.on_demand_wait
        self._most = config.on_demand_waiting
        self._models: dict[str, dict[Call, Waiter]] = {}
        self._waiting: dict[Call, Waiter] = {}
        self._closed = False

    @property
    def waiting(self) -> int:
        """Calls that wait now."""
        return len(self._waiting)

    def wait(self, call: Call, error: NotLoaded, again: Again) -> None:
        """Has the model loaded and keeps the call until it is; `again` is called once, then or
        when it will not be. Raises `SluiceError`, in which case nothing is kept."""
        if self._closed:
            raise Draining
        failure = self._loading.want(error.model, error.version, urgent=call.inner)
        if failure is not None:
            raise failure
        # It counts from when the request arrived, however often it has to wait.
        left = call.arrived + self._wait - time.perf_counter()
        if left <= 0:
            raise self._not_in_time(error.model, waited=self._wait > 0)
        if len(self._waiting) >= self._most:
            refusal = Overloaded(
                f"model '{error.model}' is being loaded, and {len(self._waiting)} requests wait "
                "already, the most that lifecycle.on_demand_waiting allows",
                self.retry_after,
            )
            raise refusal
        deadline = deadline_of(call)
        if deadline is not None:
            left = min(left, deadline - time.perf_counter())
            if left <= 0:
                raise late(error.model)
        waiter = Waiter(call, error.model, error.version, again)
        waiter.timer = asyncio.get_running_loop().call_later(left, self._timed_out, waiter)
        call.state = QUEUED
        call.owner = self
        self._waiting[call] = waiter
        self._models.setdefault(error.model, {})[call] = waiter
        self.waited += 1

    def cancelled(self, call: Call, *, waiting: bool) -> None:
        """See `gateway.call.Owner`."""
        waiter = self._waiting.get(call)
        if waiter is not None:
            self._remove(waiter)
            waiter.again(Cancelled("the caller went away"))

    def changed(self, model: str) -> None:
        """Something about a model is another than before: who waits for it may go on."""
        waiters = self._models.get(model)
        if not waiters:
            return
        outlooks: dict[str, SluiceError | bool] = {}
        for waiter in list(waiters.values()):
            if waiter.call not in self._waiting:
                continue
            version = waiter.version
            if version not in outlooks:
                outlooks[version] = self._loading.outlook(model, version)
            outlook = outlooks[version]
            if outlook is not False:
                self._release(waiter, None if outlook is True else outlook)

    async def loaded(self, error: NotLoaded, *, inner: bool = False) -> None:
        """As `wait`, for questions that are no requests; `inner`: a model asks. Raises
        `SluiceError`."""
        call = (InnerQuestion if inner else Call)(time.perf_counter())
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def again(failure: SluiceError | None) -> None:
            if done.done():
                return
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)

        self.wait(call, error, again)
        try:
            await done
        finally:
            waiter = self._waiting.get(call)
            if waiter is not None:
                self._remove(waiter)

    def close(self) -> None:
        """Ends all that wait."""
        self._closed = True
        for waiter in list(self._waiting.values()):
            if waiter.call in self._waiting:
                self._release(waiter, Draining())

    @property
    def retry_after(self) -> float:
        """Seconds after which trying again makes sense."""
        return min(max(self._usual_seconds(), 1.0), LONGEST_RETRY)

    def _release(self, waiter: Waiter, error: SluiceError | None) -> None:
        self._remove(waiter)
        waiter.call.state = NEW
        waiter.call.owner = None
        waiter.again(error)

    def _remove(self, waiter: Waiter) -> None:
        if waiter.timer is not None:
            waiter.timer.cancel()
        del self._waiting[waiter.call]
        waiters = self._models[waiter.model]
        del waiters[waiter.call]
        if not waiters:
            del self._models[waiter.model]

    def _timed_out(self, waiter: Waiter) -> None:
        deadline = deadline_of(waiter.call)
        passed = deadline is not None and deadline <= time.perf_counter() + 0.001
        error = late(waiter.model) if passed else self._not_in_time(waiter.model, waited=True)
        self._release(waiter, error)

    def _not_in_time(self, model: str, *, waited: bool) -> NotLoaded:
        after = f" after {self._wait:g} s (lifecycle.on_demand_wait)" if waited else ""
        error = NotLoaded(f"model '{model}' is loaded on demand and not loaded yet{after}", model)
        error.retry_after = self.retry_after
        return error


def late(model: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"the deadline passed while model '{model}' was being loaded")


def deadline_of(call: Call) -> float | None:
    """When the caller has no more use for an answer, in seconds of `time.perf_counter`."""
    deadline = call.deadline
    request: InferenceRequest | None = getattr(call, "request", None)
    if request is not None and request.timeout_us:
        own = call.arrived + request.timeout_us / 1e6
        deadline = own if deadline is None else min(deadline, own)
    return deadline
