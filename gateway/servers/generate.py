"""``/generate`` and ``/generate_stream``: one answer as JSON, any number as server-sent events."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from time import perf_counter
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from gateway.codecs import large
from gateway.codecs.generate_rest import (
    decode_generate,
    encode_event,
    encode_generate,
    parse_generate,
    plain_values,
)
from gateway.errors import Draining, InferenceFailed, SluiceError, Unsupported
from gateway.pipeline import Answers, AwaitableCall
from gateway.servers.http_answer import error_body
from gateway.servers.http_app import error_answer, read_body, target, until_disconnect
from gateway.servers.http_call import timeout_ms
from gateway.servers.http_state import HttpState
from gateway.servers.large_json import read_apart, read_for_model, ready, written
from gateway.telemetry.logs import log
from gateway.tensors import InferenceRequest, InferenceResponse

SILENCE: Final = 15.0
"""Seconds without an answer after which a comment is sent, so that nobody takes the stream for
dead."""
LAST_WORDS: Final = 1.0
"""Most seconds for telling a client that the gateway closes."""


class GenerateCall(AwaitableCall):
    """A call that came by one of the two."""

    __slots__ = ("_body", "_shared", "_target")
    protocol = "http"

    def __init__(
        self,
        shared: HttpState,
        model_and_version: tuple[str, str],
        body: bytes,
        headers: dict[str, str],
        arrived: float,
    ) -> None:
        super().__init__(None, arrived, None, headers)
        self._shared = shared
        self._target = model_and_version
        self._body = body

    def _set_deadline(self) -> None:
        timeout = self.headers.get("x-request-timeout-ms")
        if timeout is not None:
            self.deadline = self.arrived + timeout_ms(timeout.encode("latin-1")) / 1e3

    def answers(self) -> Answers:
        """The model's answers, as they come. Raises `SluiceError`."""
        if len(self._body) < large.LARGE_BODY:
            return self._shared.pipeline.stream(self)
        return self._answers_large()

    async def _answers_large(self) -> Answers:
        if not await ready(self._shared, self, self._read_apart):
            await self.future
        async with aclosing(self._shared.pipeline.stream(self, waited=True)) as answers:
            async for response in answers:
                yield response

    async def _read_apart(self) -> InferenceRequest:
        self._set_deadline()
        shared, body = self._shared, self._body
        values = await read_apart(
            shared, self.deadline, len(body), large.read_generate_values, shared.limits, body
        )
        # Only the version that will answer can say which keys are inputs.
        like = InferenceRequest(*self._target, (), parameters=values)
        return await read_for_model(
            shared, self, like, len(body), large.read_generate, shared.limits, *self._target, body
        )

    def decode(self) -> InferenceRequest:
        self._set_deadline()
        limits = self._shared.limits
        keys = parse_generate(self._body, limits)
        # Only the version that will answer can say which keys are inputs.
        like = InferenceRequest(*self._target, (), parameters=plain_values(keys))
        self.chosen = self._shared.pipeline.choose(self, like)
        self._body = b""
        return decode_generate(*self._target, keys, self.chosen[0].contract, limits)


class Generate:
    """The routes, over what all HTTP connections share."""

    def __init__(self, shared: HttpState) -> None:
        self._shared = shared

    def routes(self) -> list[BaseRoute]:
        return [
            Route(f"{prefix}/{name}", endpoint, methods=["POST"])
            for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
            for name, endpoint in (
                ("generate", self.generate),
                ("generate_stream", self.generate_stream),
            )
        ]

    async def _call(self, request: Request) -> GenerateCall:
        arrived = perf_counter()
        body = await read_body(request, self._shared.limits.max_message_bytes)
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in request.scope["headers"]}
        return GenerateCall(self._shared, target(request), body, headers, arrived)

    async def generate(self, request: Request) -> Response:
        """Exactly one answer."""
        call = await self._call(request)
        response, content = await until_disconnect(request, self._shared, self._only(call))
        return Response(content, 200, route_headers(response), "application/json")

    async def _only(self, call: GenerateCall) -> tuple[InferenceResponse, bytes]:
        response = await only(call.answers())
        return response, await written(self._shared, response, encode_generate)

    async def generate_stream(self, request: Request) -> Response:
        """Any number of answers."""
        return EventStream(self._shared, await self._call(request))


async def only(answers: Answers) -> InferenceResponse:
    """The single answer of a model. Raises `Unsupported` for none and for more."""
    found: InferenceResponse | None = None
    async with aclosing(answers):
        async for response in answers:
            if found is not None:
                raise not_one("more than 1")
            found = response
    if found is None:
        raise not_one("none")
    return found


def not_one(count: str) -> Unsupported:
    # Triton's clients look for words of this sentence.
    return Unsupported(
        f"generate expects model to produce exactly 1 response, but it gave {count}; use "
        "generate_stream, which takes any number"
    )


def route_headers(response: InferenceResponse) -> dict[str, str]:
    """Which version answered, and why that one."""
    return {"x-sluice-version": response.version, "x-sluice-route": response.route}


class EventStream(Response):
    """Sends the answers of a call as events, until they end or the client is gone.

    What goes wrong before the first answer has a status of its own; later it is the last event,
    with ``error``.
    """

    def __init__(self, shared: HttpState, call: GenerateCall) -> None:
        self._shared = shared
        self._pipeline = shared.pipeline
        self._streams = shared.streams
        self._call = call
        self._begun = False
        """Whether the head is sent, and with it the status."""
        self._sent_at = 0.0
        self._comments: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        admission = self._pipeline.admission
        admission.in_flight += 1
        me = asyncio.current_task()
        assert me is not None
        self._streams.add(me)
        work = asyncio.ensure_future(self._serve(scope, receive, send))
        # The request is whole: what comes now is the client's leaving.
        gone = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # The port closes. The client hears of it, if it listens, and the task just ends.
            await stopped(work)
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS):
                    await self._fail(scope, receive, send, Draining())
        finally:
            gone.cancel()
            try:
                await stopped(work)
            finally:
                self._streams.discard(me)
                admission.in_flight -= 1

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._call.answers()) as answers:
                first = await anext(answers, None)
                await self._begin(send, first)
                if first is not None:
                    await self._answer(send, first)
                async for response in answers:
                    await self._answer(send, response)
            await self._end(send)
        except SluiceError as error:
            await self._fail(scope, receive, send, error)
        except Exception as error:
            log.exception("unexpected error in a stream of events")
            failure = InferenceFailed(f"internal error: {type(error).__name__}")
            await self._fail(scope, receive, send, failure)
        finally:
            self._no_comments()

    async def _begin(self, send: Send, first: InferenceResponse | None) -> None:
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            # nginx would collect the events otherwise
            "x-accel-buffering": "no",
        }
        if first is not None:
            headers |= route_headers(first)
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        self._begun = True
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        self._sent_at = perf_counter()
        self._comments = asyncio.ensure_future(self._comment(send))

    async def _answer(self, send: Send, response: InferenceResponse) -> None:
        await self._event(send, await written(self._shared, response, encode_generate))

    async def _event(self, send: Send, data: bytes) -> None:
        await self._body(send, encode_event(data))

    async def _body(self, send: Send, data: bytes) -> None:
        # Waits for as long as the client does not read, and so does the model in the end.
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._sent_at = perf_counter()

    async def _end(self, send: Send) -> None:
        self._no_comments()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _fail(self, scope: Scope, receive: Receive, send: Send, error: SluiceError) -> None:
        if not self._begun:
            await error_answer(error)(scope, receive, send)
            return
        self._no_comments()
        await self._event(send, error_body(error))
        await self._end(send)

    async def _comment(self, send: Send) -> None:
        """Sends a comment, which clients skip, into long silence."""
        while True:
            await asyncio.sleep(max(self._sent_at + SILENCE - perf_counter(), 0.0))
            if perf_counter() - self._sent_at >= SILENCE:
                await self._body(send, b":\n\n")

    def _no_comments(self) -> None:
        if self._comments is not None:
            self._comments.cancel()


async def stopped(work: asyncio.Future[None]) -> None:
    """Cancels it and waits for its end."""
    work.cancel()
    with suppress(asyncio.CancelledError):
        await work
