"""Passes requests on to models that batch by themselves: other inference servers.

Nothing waits here. A request is checked against the contract, then it is a task until the
other server has answered; being cancelled, the task cancels it there. Requests under way are
bounded as waiting ones are elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

from gateway.batching.batcher import MAX_REQUEST_ROWS, as_sluice_error
from gateway.batching.clock import Clock
from gateway.batching.policy import BatchPolicy
from gateway.batching.runner import as_exception
from gateway.call import ENDED, RUNNING, Call
from gateway.contract import Contract
from gateway.errors import DeadlineExceeded, InvalidRequest, QueueFull, SluiceError
from gateway.telemetry.access import access_log
from gateway.telemetry.logs import log
from gateway.telemetry.stats import ServableStats, error_name, failure_reason
from gateway.tensors import InferenceResponse, Signature
from runtimes.interface import ForwardingModel

MAX_SIGNATURES: Final = 256
"""Most signatures that are known to fit without looking again."""
REASON: Final = "forwarded"


class Forwarder:
    """The requests of one servable that are under way to another server."""

    def __init__(
        self,
        name: str,
        model: ForwardingModel,
        contract: Contract,
        policy: BatchPolicy,
        clock: Clock,
        stats: ServableStats,
    ) -> None:
        self.name = name
        self._version = name.rpartition("/")[2]
        self.contract = contract
        self.policy = policy
        self.stats = stats
        self.instances = policy.instances
        self.elsewhere = model.elsewhere
        self.on_broken: Callable[[str], object] | None = None
        self.rows = 0
        """Rows under way."""
        self.bytes = 0
        """Bytes of input tensors under way."""
        self.waiting = 0
        self.waiting_rows = 0
        self.now = clock.now
        self._model = model
        self._forward = model.forward
        self._max_rows = model.max_batch_size or 0
        """Most rows that the server takes at once, where it says so."""
        self._create_task = asyncio.get_running_loop().create_task
        self._tasks: dict[Call, asyncio.Task[None]] = {}
        self._known: set[Signature] = set()

    @property
    def pending(self) -> int:
        """Calls under way."""
        return len(self._tasks)

    # --- the way in

    def submit(self, call: Call) -> None:
        """Sends a call on its way. It ends later, exactly once.

        Raises `InvalidRequest`, `QueueFull` or `DeadlineExceeded`, in which case nothing was
        kept.
        """
        request = call.request
        contract = self.contract
        call.owner = self
        if not contract.batched or request.signature not in self._known:
            contract.check(request)
            self._remember(request.signature)
        elif request.outputs:
            contract.check_outputs(request)
        if contract.batched:
            if len(request.inputs) > 1 or request.rows < 1:
                contract.check_rows(request)
            call.rows = request.rows
        call.size = request.nbytes
        self._check_bounds(call)
        call.state = RUNNING
        self.rows += call.rows
        self.bytes += call.size
        self._tasks[call] = self._create_task(self._run(call))

    def _remember(self, signature: Signature) -> None:
        if self.contract.batched:
            if len(self._known) >= MAX_SIGNATURES:
                self._known.clear()
            self._known.add(signature)

    def _check_bounds(self, call: Call) -> None:
        policy = self.policy
        queue = policy.queue
        most = policy.max_request_rows or MAX_REQUEST_ROWS
        if call.rows > most:
            raise InvalidRequest(
                f"the request has {call.rows} rows; model '{call.request.model}' takes at most "
                f"{most} (limits.max_rows in its model.yaml)"
            )
        if self._max_rows and call.rows > self._max_rows:
            raise InvalidRequest(
                f"the request has {call.rows} rows; model '{call.request.model}' takes at most "
                f"{self._max_rows} at once (its max_batch_size)"
            )
        count = len(self._tasks)
        if count:
            # A request of any size may be the only one; together they are bounded.
            if self.rows + call.rows > queue.max_rows:
                raise self._full(f"{queue.max_rows} rows")
            if self.bytes + call.size > queue.max_bytes:
                raise self._full(f"{queue.max_bytes} bytes")
            if queue.max_requests and count >= queue.max_requests:
                raise self._full(f"{queue.max_requests} requests")
            if policy.max_in_flight and count >= policy.max_in_flight:
                raise self._full(f"{policy.max_in_flight} requests in flight")
        policy.set_deadline(call)
        if call.deadline is not None and call.deadline <= self.now():
            raise DeadlineExceeded("the deadline passed before the request was sent on")

    def _full(self, bound: str) -> QueueFull:
        return QueueFull(
            f"as much as allowed is under way for {self.name} ({bound}); try again later or send "
            "fewer at a time"
        )

    # --- the way there and back

    async def _run(self, call: Call) -> None:
        started = self.now()
        try:
            response = await self._forward(call.request, call.deadline, call.header)
        except (Exception, asyncio.CancelledError, SystemExit) as error:
            # A call that was cancelled here has left already; else the model did it itself.
            if self._left(call):
                self._fail(call, as_sluice_error(as_exception(error)))
            return
        finished = self.now()
        if self._left(call):
            stats = self.stats
            rows = call.rows
            stats.executed(1, rows, REASON, started - call.arrived, 0.0, finished - started)
            self._answer(call, response, finished)
            stats.split(1, rows, self.now() - finished)

    def _left(self, call: Call) -> bool:
        """Takes a call off what is under way; False if it was cancelled meanwhile."""
        if self._tasks.pop(call, None) is None:
            return False
        self.rows -= call.rows
        self.bytes -= call.size
        return call.state != ENDED

    def _answer(self, call: Call, response: InferenceResponse, now: float) -> None:
        if protocol := call.protocol:
            took = now - call.arrived
            stats = self.stats
            stats.requests[protocol, "ok"] += 1
            stats.request_seconds[protocol].observe(took)
            stats.success.add(1, took)
            if access_log.share:
                access_log.record(call, self._version, "ok", took)
        response.route = call.route
        try:
            call.reply(response)
        except Exception:
            log.exception("unexpected error while answering")

    def _fail(self, call: Call, error: SluiceError) -> None:
        self._account(call, error_name(error), failure_reason(error))
        try:
            call.fail(error)
        except Exception:
            log.exception("unexpected error while answering")

    def cancelled(self, call: Call, *, waiting: bool) -> None:
        """Called by a call that ended by itself; the other server is told."""
        task = self._tasks.get(call)
        if task is not None:
            self._left(call)
            task.cancel()
        self._account(call, "cancelled", "CANCELED")

    def _account(self, call: Call, code: str, reason: str) -> None:
        if call.protocol:
            took = self.now() - call.arrived
            self.stats.failed(call.protocol, code, reason, took)
            if access_log.share:
                access_log.record(call, self._version, code, took)

    # --- the rest

    def stream(self, call: Call) -> AsyncGenerator[InferenceResponse]:
        """Decoupled models have a `Streamer`."""
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        """Nothing: the model says how its servers are."""
        return {}

    def close(self) -> None:
        """Nothing is pending, so there is nothing to give back: connections are the model's."""
