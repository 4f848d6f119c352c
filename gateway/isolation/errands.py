"""What a model in a child asks of the gateway: calls of other models."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gateway.errors import Cancelled, InferenceFailed, ModelNotReady, SluiceError
from gateway.isolation import messages as m
from gateway.isolation.arena import Arena, ArenaFull
from gateway.telemetry.logs import log
from gateway.tensors import InferenceRequest, InferenceResponse

if TYPE_CHECKING:
    from gateway.host import PipelineHost
    from gateway.isolation.process import ChildProcess


class Errands:
    """The calls that one child has under way; they end with it."""

    def __init__(self, child: ChildProcess, arena: Arena, host: PipelineHost | None) -> None:
        self._child = child
        self._arena = arena
        self._host = host
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._credits: dict[int, asyncio.Semaphore] = {}
        self._lent: set[int] = set()
        self._closed = False

    def take(self, message: Sequence[Any]) -> None:
        """A message of the child's that has to do with its calls."""
        kind = message[0]
        if kind == m.HOME_CALL:
            self._call(message)
        elif kind == m.HOME_CANCEL:
            if (running := self._tasks.get(message[1])) is not None:
                running.cancel()
        elif kind == m.HOME_CREDIT:
            if (credit := self._credits.get(message[1])) is not None:
                for _ in range(message[2]):
                    credit.release()
        elif kind == m.HOME_DESCRIBE:
            self._describe(*message[1:])
        elif kind == m.RELEASED:
            self.released(message[1])

    def _call(self, message: Sequence[Any]) -> None:
        _, number, stream, model, version, outputs, parameters, timeout, priority, body = message
        # Leased here: a task that is cancelled at once never begins.
        view = self._child.channel.incoming.lease(body[0], body[1])
        request = InferenceRequest(
            model,
            version,
            m.tensors_of(view, body[2]),
            outputs=tuple(outputs),
            parameters=parameters,
            timeout_us=timeout,
            priority=priority,
            unchecked=True,
        )
        task = asyncio.get_running_loop().create_task(self._run(number, request, stream=stream))
        self._tasks[number] = task

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.pop(number, None)
            if task.cancelled():
                self._fail(number, Cancelled("the call was cancelled"))

        task.add_done_callback(ended)

    def released(self, blocks: Sequence[int]) -> list[int]:
        """Takes back the answers that the child is done with; returns the blocks that are none."""
        others = []
        for block in blocks:
            if block in self._lent:
                self._lent.discard(block)
                self._arena.give(block)
            else:
                others.append(block)
        return others

    def _describe(self, number: int, model: str, version: str) -> None:
        try:
            if self._host is None:
                raise ModelNotReady(f"model '{model}' is not here: no gateway runs")
            found = self._host.describe(model, version)
        except SluiceError as error:
            self._fail(number, error)
        else:
            specs = m.tell_specs(found.inputs), m.tell_specs(found.outputs)
            self._say((m.HOME_ANSWER, number, specs, None, True))

    async def _run(self, number: int, request: InferenceRequest, *, stream: bool) -> None:
        model = request.model
        try:
            host = self._host
            if host is None:
                raise InferenceFailed(f"model '{model}' was called, but no gateway runs here")
            if not stream:
                self._answer(number, await host.infer(request), last=True)
                return
            credit = self._credits[number] = asyncio.Semaphore(m.CREDITS)
            answers = host.answers(request)
            try:
                await credit.acquire()
                async for response in answers:
                    self._answer(number, response, last=False)
                    await credit.acquire()
            finally:
                await answers.aclose()
            self._say((m.HOME_ANSWER, number, None, None, True))
        except asyncio.CancelledError:
            self._fail(number, Cancelled("the call was cancelled"))
        except SluiceError as error:
            self._fail(number, error)
        except Exception as error:
            log.exception("%s: a call of model '%s' failed", self._child.label, model)
            self._fail(number, InferenceFailed(f"internal error: {type(error).__name__}"))
        finally:
            self._credits.pop(number, None)

    def _answer(self, number: int, response: InferenceResponse, *, last: bool) -> None:
        try:
            block, size, told = m.put(self._arena, response.outputs)
        except (ArenaFull, OSError) as error:
            raise InferenceFailed(f"no shared memory for the answer: {error}") from error
        self._lent.add(block)
        body = (block, size, told)
        head = (response.model, response.version, response.parameters)
        try:
            self._say((m.HOME_ANSWER, number, (*head, body), None, last))
        except Exception:
            self.released([block])
            raise

    def _fail(self, number: int, error: SluiceError) -> None:
        self._say((m.HOME_ANSWER, number, None, m.tell_error(error), True))

    def _say(self, message: tuple[Any, ...]) -> None:
        if not self._closed:
            self._child.send(message)

    def close(self) -> None:
        """The child is gone: so are its calls."""
        if self._closed:
            return
        self._closed = True
        for task in list(self._tasks.values()):
            task.cancel()
        for block in self._lent:
            self._arena.give(block)
        self._lent.clear()
