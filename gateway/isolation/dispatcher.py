"""Sends the calls of one servable to its child, and outlives the child's crashes.

A call's tensors are written into shared memory once and stay there until it has ended, so that
what had not begun to run when a child died is sent again to the next one as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from time import perf_counter
from typing import Any, Final

from gateway.batching.answers import Answers
from gateway.batching.clock import Clock, Timer
from gateway.batching.curve import CostCurve
from gateway.batching.policy import NEVER, BatchPolicy
from gateway.call import ENDED, QUEUED, RUNNING, Call
from gateway.contract import Contract
from gateway.errors import (
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    ModelNotReady,
    QueueFull,
    SluiceError,
)
from gateway.isolation import messages as m
from gateway.isolation.arena import ArenaFull
from gateway.isolation.bounds import Bounds
from gateway.isolation.limits import isolation_of
from gateway.isolation.memory import SLOTS, WAITS_FOR_READER
from gateway.isolation.model import ChildModel
from gateway.isolation.pending import ChildAnswers, Credit, Pending
from gateway.isolation.restarts import Restarts
from gateway.isolation.watch import Watch
from gateway.model_settings import ModelSettings
from gateway.telemetry.access import access_log
from gateway.telemetry.logs import log
from gateway.telemetry.stats import ServableStats, error_name, failure_reason
from gateway.tensors import InferenceResponse

MAX_CHECKED: Final = 256
"""Signatures that are known to fit the model."""
TRIM_SECONDS: Final = 5.0
"""How often memory without use is given back to the system."""
TRACING: Final = ("traceparent", "tracestate", "x-request-id")


class ChildDispatcher:
    """See `gateway.dispatch.Dispatcher`. Queue bounds are kept here, so that nothing is copied that
    would be refused; lines and batches are in the child."""

    def __init__(
        self,
        name: str,
        model: ChildModel,
        contract: Contract,
        policy: BatchPolicy,
        clock: Clock,
        stats: ServableStats,
        settings: ModelSettings,
    ) -> None:
        self.name = name
        self.contract = contract
        self.policy = policy
        self.stats = stats
        self.now = clock.now
        self.on_broken: Callable[[str], object] | None = None
        self.instances = policy.instances
        self.elsewhere = True
        self.pending = 0
        self.curve = CostCurve()
        for rows, seconds in model.curve:
            self.curve.observe(rows, seconds)
        self._model_name, _, self._version = name.rpartition("/")
        self._model = model
        self._arena = model.arena
        self._starts = model.table.starts
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._isolation = isolation_of(settings)
        self._again = settings.idempotent and not model.stateful
        self._headers: tuple[str, ...] = ()
        if settings.remote is not None:
            self._headers = (*TRACING, *settings.remote.forward_headers)
        self._bounds = Bounds(name, policy, self.curve, self._waiting_calls)
        self._restarts = Restarts(self._isolation.max_restarts)
        self._checked: set[Any] = set()
        self._slots: dict[int, Pending] = {}
        """All that the child may still do something about, in the order of arrival."""
        self._by_call: dict[Call, Pending] = {}
        self._blocks: dict[int, Pending] = {}
        self._free_slots: list[int] = []
        self._next_slot = 0
        self._up = True
        self._broken = ""
        self._closed = False
        self._expiry_timer: Timer | None = None
        self._expiry_at = 0.0
        self._trimmer: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._adopt()

    # --- the way in

    def submit(self, call: Call) -> None:
        """Writes a call's tensors into shared memory and sends it. Raises `SluiceError`, in which
        case nothing was kept."""
        self._take(call, None)

    def stream(self, call: Call) -> AsyncGenerator[InferenceResponse]:
        """The same for decoupled models. Raises what `submit` does, and while iterated over."""
        answers = ChildAnswers(call, self)
        self._take(call, answers)
        return answers

    def _take(self, call: Call, answers: ChildAnswers | None) -> None:
        request = call.request
        contract = self.contract
        call.owner = self
        if self._broken:
            raise ModelNotReady(f"{self.name} is down: {self._broken}")
        if not contract.batched or request.signature not in self._checked:
            contract.check(request)
            if len(self._checked) < MAX_CHECKED:
                self._checked.add(request.signature)
        elif request.outputs:
            contract.check_outputs(request)
        if contract.batched:
            contract.check_rows(request)
            call.rows = request.rows
        call.size = request.nbytes
        deadline = call.deadline
        self._bounds.check(call, self.now())
        headers = None
        if self._headers:
            found = {name: call.header(name) for name in self._headers}
            headers = {name: value for name, value in found.items() if value is not None}
        slot = self._slot()
        try:
            block, size, told = m.put(self._arena, request.inputs)
        except (ArenaFull, OSError) as error:
            self._free_slots.append(slot)
            raise QueueFull(f"there is no shared memory for the request: {error}") from error
        sent = m.Sent(
            m.REQUEST, slot, block, size, told, call.arrived, deadline, request.outputs,
            request.parameters, request.timeout_us, request.priority, request.unchecked,
            False, answers is not None, headers, request.id, call.inner, self._bounds.take_away(),
        )  # fmt: skip
        if self._up:
            try:
                self._model.child.send(sent)
            except (TypeError, ValueError, OverflowError) as error:
                self._free_slots.append(slot)
                self._arena.give(block)
                raise InferenceFailed(f"the request cannot be passed on: {error}") from error
        pending = Pending(call, sent, answers)
        if answers is not None:
            answers.work = Credit(lambda count: self._give_credit(pending, count))
        self._slots[slot] = self._by_call[call] = self._blocks[block] = pending
        call.state = QUEUED
        self.pending += 1
        self._bounds.add(call)
        due = self.policy.hard_deadline(call)
        if due is not None:
            self._watch_deadline(due)

    def _slot(self) -> int:
        if self._free_slots:
            slot = self._free_slots.pop()
        elif self._next_slot < SLOTS:
            slot = self._next_slot
            self._next_slot += 1
        else:
            raise QueueFull(f"{self.name} has {SLOTS} calls in its process; send fewer at a time")
        self._starts[slot] = 0.0
        return slot

    # --- what waits and what runs

    def _waiting_calls(self) -> Iterable[Call]:
        starts = self._starts
        return [
            p.call for slot, p in self._slots.items() if not starts[slot] and p.call.state != ENDED
        ]

    @property
    def waiting(self) -> int:
        """Calls that wait, here or in the child."""
        return 0 if self._closed else len(list(self._waiting_calls()))

    @property
    def waiting_rows(self) -> int:
        """Their rows."""
        return 0 if self._closed else sum(call.rows for call in self._waiting_calls())

    def _longest_run(self) -> float:
        """Seconds for which the model has worked longest on something; 0 if nothing is to be
        expected of it. Also on what nobody waits for any more: a hang outlasts its callers."""
        starts = self._starts
        marks = [starts[slot] for slot in self._slots if starts[slot]]
        if (oldest := self._model.table.oldest()) is not None:
            marks.append(oldest)
        since = min(marks, default=WAITS_FOR_READER)
        return 0.0 if since == WAITS_FOR_READER else max(perf_counter() - since, 1e-9)

    # --- leaving early

    def cancelled(self, call: Call, *, waiting: bool) -> None:
        """Called by a call that ended by itself; its memory is kept while the child looks at it."""
        pending = self._by_call.get(call)
        self._account(call, "cancelled", "CANCELED")
        if pending is not None:
            if pending.answers is not None:
                pending.answers.finish(Cancelled("the request was cancelled"), drop=True)
            self._abandon(pending)

    def _abandon(self, pending: Pending) -> None:
        """Nobody wants the answer any more."""
        self._end(pending)
        if self._up:
            self._model.child.send((m.CANCEL, pending.sent.slot))
        else:
            self._forget(pending)

    def _watch_deadline(self, deadline: float) -> None:
        if self._expiry_timer is not None:
            if self._expiry_at <= deadline:
                return
            self._expiry_timer.cancel()
        self._expiry_at = deadline
        delay = max(deadline - self.now(), 0.0)
        self._expiry_timer = self._clock.call_later(delay, self._expire)

    def _expire(self) -> None:
        """Ends every call that is too late and not running, whatever the child does."""
        self._expiry_timer = None
        now = self.now()
        nearest = NEVER
        for pending in list(self._slots.values()):
            call = pending.call
            due = None if call.state == ENDED else self.policy.hard_deadline(call)
            if due is None:
                continue
            if due > now:
                nearest = min(nearest, due)
            elif not self._starts[pending.sent.slot]:
                error = DeadlineExceeded(
                    f"the deadline passed after {(now - call.arrived) * 1e3:.0f} ms in the queue "
                    f"of {self.name}; the request was not executed"
                )
                self._abandon(pending)
                self._fail(pending, error)
        if nearest < NEVER:
            self._watch_deadline(nearest)

    # --- the way out

    def _heard(self, message: Sequence[Any]) -> None:
        kind = message[0]
        if kind == m.ANSWERS:
            self._answers(message)
        elif kind == m.RELEASED:
            self._released(message[1])
        elif kind == m.FAILED:
            pending = self._slots[message[1]]
            self._forget(pending)
            self._fail(pending, m.error_of(message[2]))
        elif kind == m.ITEM:
            self._item(message)
        elif kind == m.END:
            pending = self._slots[message[1]]
            self._forget(pending)
            self._end(pending)
            if pending.answers is not None and not pending.answers.complete:
                pending.answers.finish()
        elif kind == m.BATCHES:
            self._batches(message[1])
        elif self._model.child.errands is not None:
            self._model.child.errands.take(message)

    def _batches(self, batches: Sequence[Any]) -> None:
        for told in batches:
            if len(told) == 3:
                self.stats.split(*told)
                continue
            self.stats.executed(*told)
            self.curve.observe(told[1], told[5])

    def _answers(self, message: Sequence[Any]) -> None:
        _, batches, block, size, answers = message
        view = self._model.child.channel.incoming.lease(block, size)
        self._batches(batches)
        stats = self.stats
        now = self.now()
        seconds = 0.0
        answered = 0
        for slot, told, parameters in answers:
            pending = self._slots[slot]
            call = pending.call
            self._forget(pending)
            self._end(pending)
            if call.state == ENDED:
                continue
            if protocol := call.protocol:
                took = now - call.arrived
                seconds += took
                answered += 1
                stats.requests[protocol, "ok"] += 1
                stats.request_seconds[protocol].observe(took)
                if access_log.share:
                    access_log.record(call, self._version, "ok", took)
            try:
                call.reply(self._response(call, view, told, parameters))
            except Exception as error:  # the others of the batch have nothing to do with it
                log.exception("unexpected error while answering")
                call.fail(InferenceFailed(f"cannot answer: {type(error).__name__}"))
        stats.success.add(answered, seconds)

    def _response(
        self, call: Call, view: memoryview, told: Sequence[Any], parameters: Any
    ) -> InferenceResponse:
        return InferenceResponse(
            self._model_name,
            self._version,
            m.tensors_of(view, told),
            id=call.request.id,
            route=call.route,
            parameters=parameters,
        )

    def _item(self, message: Sequence[Any]) -> None:
        """One answer of a stream."""
        _, slot, block, size, told, parameters = message
        pending = self._slots[slot]
        view = self._model.child.channel.incoming.lease(block, size)
        answers = pending.answers
        if answers is None or answers.complete:
            return  # nobody waits for it any more
        call = pending.call
        call.state = RUNNING
        now = self.now()
        since, answers.last = answers.last, now
        self.stats.answered(answers.count, now - (since or call.arrived), now - call.arrived)
        answers.add(self._response(call, view, told, parameters))

    def drained(self, answers: Answers) -> None:
        """The last answer of a stream was taken."""
        call = answers.call
        call.state = ENDED
        took = self.now() - call.arrived
        if protocol := call.protocol:
            self.stats.requests[protocol, "ok"] += 1
            self.stats.request_seconds[protocol].observe(took)
            self.stats.success.add(1, took)
        if access_log.share:
            access_log.record(call, self._version, "ok", took)

    def _give_credit(self, pending: Pending, count: int) -> None:
        if self._up and self._slots.get(pending.sent.slot) is pending:
            self._model.child.send((m.CREDIT, pending.sent.slot, count))

    def _fail(self, pending: Pending, error: SluiceError) -> None:
        self._end(pending)
        call = pending.call
        if call.state == ENDED:
            return
        self._account(call, error_name(error), failure_reason(error))
        if pending.answers is not None:
            call.state = ENDED
            pending.answers.finish(error)
            return
        try:
            call.fail(error)
        except Exception:  # the others have nothing to do with it
            log.exception("unexpected error while answering")

    def _account(self, call: Call, code: str, reason: str) -> None:
        took = self.now() - call.arrived
        if call.protocol:
            self.stats.failed(call.protocol, code, reason, took)
            if access_log.share:
                access_log.record(call, self._version, code, took)

    # --- slots and memory

    def _end(self, pending: Pending) -> None:
        """The call is over for its caller; it may not be for the child."""
        if not pending.over:
            pending.over = True
            self.pending -= 1
            self._bounds.remove(pending.rows, pending.size)
            del self._by_call[pending.call]

    def _forget(self, pending: Pending) -> None:
        """The child has ended the call: its slot is free, and its memory once nothing looks."""
        slot = pending.sent.slot
        del self._slots[slot]
        self._free_slots.append(slot)
        pending.forgotten = True
        if pending.answers is not None:
            pending.answers.work = None  # a cycle would keep the caller's request in memory
        if pending.released or not self._up:
            self._give_block(pending)

    def _released(self, blocks: Sequence[int]) -> None:
        errands = self._model.child.errands
        for block in blocks if errands is None else errands.released(blocks):
            pending = self._blocks[block]
            pending.released = True
            if pending.forgotten:
                self._give_block(pending)

    def _give_block(self, pending: Pending) -> None:
        block = pending.sent.block
        del self._blocks[block]
        self._arena.give(block)

    def _trim(self) -> None:
        self._trimmer = self._loop.call_later(TRIM_SECONDS, self._trim)
        if not self._up:
            return  # a child that is loading has been shown the segments
        for number in self._arena.trim():
            self._model.child.send((m.DROP, number))

    # --- crashes

    def _adopt(self) -> None:
        """Works with the child that the model has now."""
        child = self._model.child
        self._watch = Watch(
            child, self._isolation.hang_seconds, self._loop, self._longest_run,
            lambda: bool(self._slots) or self._model.table.oldest() is not None,
        )  # fmt: skip
        if self._trimmer is None:
            self._trimmer = self._loop.call_later(TRIM_SECONDS, self._trim)
        if child.dead:
            self._loop.call_soon(self._died, child.cause)
            return
        child.on_message = self._heard
        child.on_died = self._died

    def _died(self, cause: str) -> None:
        """The child is gone. What ran fails (or is tried once more), the rest waits for another."""
        if self._closed or not self._up:
            return
        self._up = False
        self._watch.cancel()
        if self._model.child.errands is not None:
            self._model.child.errands.close()
        self._restarts.crashed(cause, self._loop.time())
        log.error("%s: %s", self.name, cause)
        starts = self._starts
        ran = [p for p in self._slots.values() if starts[p.sent.slot]]
        for pending in [p for p in self._blocks.values() if p.forgotten]:
            self._give_block(pending)
        for pending in list(self._slots.values()):
            if pending.over:
                self._forget(pending)
        lost = 0
        for pending in ran:
            if pending.over:
                continue
            if self._again and not pending.retried and not pending.answered:
                pending.retried = True
                pending.sent = pending.sent._replace(alone=True)
                continue
            self._forget(pending)
            lost += 1
            words = ", a second time" if pending.retried else ""
            error = InferenceFailed(f"the process of {self.name} died while it ran this{words}")
            self._fail(pending, error)
        self._model.table.clear()
        for pending in self._slots.values():
            pending.released = False
        if self._restarts.exhausted:
            self._give_up(self._restarts.last)
            return
        log.warning(
            "%s: starting another process; %d requests were running and fail, %d wait for it",
            self.name, lost, self.pending,
        )  # fmt: skip
        self._renewing = self._loop.create_task(self._renew())

    async def _renew(self) -> None:
        """Another child, with pauses between the attempts that grow."""
        while True:
            await asyncio.sleep(self._restarts.pause())
            if self._closed:
                return
            try:
                child = await self._model.renew(self._known_costs())
            except SluiceError as error:
                cause = str(error)
            except Exception as error:
                log.exception("%s: unexpected error while starting its process", self.name)
                cause = f"{type(error).__name__}: {error}"
            else:
                break
            self._restarts.crashed(cause, self._loop.time())
            if self._restarts.exhausted:
                self._give_up(cause)
                return
            log.error("%s: %s", self.name, cause)
        self._model.child = child
        if self._closed:
            child.ask_to_close()
            return
        self._up = True
        self._restarts.count += 1
        log.info("%s runs again, in process %d", self.name, child.pid)
        self._adopt()
        if not child.dead:
            for pending in self._slots.values():
                child.send(pending.sent)
                if pending.answers is not None:
                    pending.answers.renew_credit()

    def _known_costs(self) -> list[tuple[int, float]]:
        sizes = [2**n for n in range(self.policy.max_rows.bit_length())]
        known = [(rows, self.curve.predict(rows)) for rows in sizes]
        return [(rows, seconds) for rows, seconds in known if seconds is not None]

    def _give_up(self, cause: str) -> None:
        """Nothing can be run any more: every call ends."""
        if self._broken:
            return
        self._broken = cause
        error = ModelNotReady(f"{self.name} is down: its process ended again and again")
        self._up = False
        self._watch.cancel()
        for pending in list(self._slots.values()):
            self._forget(pending)
            self._fail(pending, error)
        if self.on_broken is not None:
            self.on_broken(self._restarts.told(cause))

    # --- the rest

    def status(self) -> dict[str, Any]:
        """The child: its process id (`None` while there is none), restarts, the last crash."""
        return {
            "pid": self._model.child.pid if self._up else None,
            "restarts": self._restarts.count,
            "last_crash": self._restarts.last,
        }

    def close(self) -> None:
        """Ends the child; blocking. Nothing may be pending."""
        self._closed = True
        self._model.on_loop(self._stop)
        self._model.close()

    def _stop(self) -> None:
        for timer in (self._expiry_timer, self._trimmer, self._renewing):
            if timer is not None:
                timer.cancel()
        self._watch.cancel()
