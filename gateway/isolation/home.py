"""In the child: the gateway as the model sees it. Calls of other models go over the channel."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from gateway.errors import InferenceFailed
from gateway.isolation import messages as m
from gateway.isolation.arena import Arena
from gateway.isolation.channel import Channel
from gateway.tensors import InferenceRequest, InferenceResponse
from runtimes.interface import Description

Taker = Callable[[Any, Exception | None, bool], object]
"""Gets what was answered, or the error, and whether nothing more comes."""


class Home:
    """`runtimes.interface.Host` in a child."""

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: Channel, arena: Arena) -> None:
        self.loop = loop
        self._channel = channel
        self._arena = arena
        self._numbers = itertools.count()
        self._takers: dict[int, Taker] = {}

    def call(self, request: InferenceRequest) -> Future[InferenceResponse]:
        """See `Host.call`."""
        future: Future[InferenceResponse] = Future()
        number = next(self._numbers)

        def take(told: Any, error: Exception | None, last: bool) -> None:
            if not future.set_running_or_notify_cancel():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(self._response(told))

        def ended(future: Future[InferenceResponse]) -> None:
            if future.cancelled():
                self.loop.call_soon_threadsafe(self._cancel, number)

        future.add_done_callback(ended)
        self.loop.call_soon_threadsafe(self._send, number, request, take, False)
        return future

    def stream(self, request: InferenceRequest) -> Iterator[InferenceResponse]:
        """See `Host.stream`."""
        came: SimpleQueue[tuple[Any, Exception | None, bool]] = SimpleQueue()
        number = next(self._numbers)

        def take(told: Any, error: Exception | None, last: bool) -> None:
            came.put((told, error, last))

        self.loop.call_soon_threadsafe(self._send, number, request, take, True)
        last = False
        try:
            while not last:
                told, error, last = came.get()
                if error is not None:
                    raise error
                if told is not None:
                    yield self._response(told)
                    self.loop.call_soon_threadsafe(self._say, (m.HOME_CREDIT, number, 1))
        finally:
            if not last:
                self.loop.call_soon_threadsafe(self._cancel, number)

    def describe(self, model: str, version: str = "") -> Description:
        """See `Host.describe`."""
        future: Future[Any] = Future()
        number = next(self._numbers)

        def take(told: Any, error: Exception | None, last: bool) -> None:
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(told)

        def ask() -> None:
            self._takers[number] = take
            self._say((m.HOME_DESCRIBE, number, model, version))

        self.loop.call_soon_threadsafe(ask)
        inputs, outputs = future.result()
        return Description(m.specs_of(inputs), m.specs_of(outputs))

    # --- on the loop

    def _send(self, number: int, request: InferenceRequest, take: Taker, stream: bool) -> None:
        body = None
        try:
            body = m.put(self._arena, request.inputs)
            self._channel.send(
                (
                    m.HOME_CALL, number, stream, request.model, request.version, request.outputs,
                    request.parameters, request.timeout_us, request.priority, body,
                )
            )  # fmt: skip
        except Exception as error:
            if body is not None:
                self._arena.give(body[0])
            take(None, InferenceFailed(f"the call cannot be sent: {error}"), True)
            return
        self._takers[number] = take

    def _say(self, message: tuple[Any, ...]) -> None:
        self._channel.send(message)

    def _cancel(self, number: int) -> None:
        if number in self._takers:
            self._say((m.HOME_CANCEL, number))

    def answer(self, message: Sequence[Any]) -> None:
        """A `HOME_ANSWER`."""
        _, number, told, error, last = message
        take = self._takers.pop(number) if last else self._takers[number]
        if told is not None and len(told) == 4:
            # Leased now: what nobody takes is given back as well.
            *head, (block, size, tensors) = told
            view = self._channel.incoming.lease(block, size)
            told = (*head, m.tensors_of(view, tensors))
        take(told, None if error is None else m.error_of(error), last)

    def _response(self, told: Sequence[Any]) -> InferenceResponse:
        model, version, parameters, outputs = told
        return InferenceResponse(model, version, outputs, parameters=parameters)
