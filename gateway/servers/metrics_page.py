"""``/metrics`` over HTTP: the page is made between other work, once for all who ask meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from functools import partial
from typing import Final
from weakref import WeakSet

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.servers.piecewise import in_turns
from gateway.telemetry.metrics import CONTENT_TYPE

Pieces = Callable[[list[bytes]], Generator[None]]
MOST_PAGES: Final = 4
"""Pages in memory, those among them that somebody is slow to read."""
PATIENCE: Final = 60.0
"""Seconds in which a page must be read."""


class Page:
    """The text, in parts."""

    __slots__ = ("__weakref__", "parts")

    def __init__(self) -> None:
        self.parts: list[bytes] = []


class _Build:
    """A page that is being made, or will be when the one `before` it is done."""

    def __init__(self, pieces: Pieces, page: Page, before: asyncio.Task[Page] | None) -> None:
        self.askers = 0
        self.closed = False
        """Too late to join: it may not show what happened before somebody asked."""
        self.task = asyncio.get_running_loop().create_task(self._run(pieces, page, before))

    async def _run(self, pieces: Pieces, page: Page, before: asyncio.Task[Page] | None) -> Page:
        if before is not None:
            await asyncio.wait((before,))
            del before  # and the page that it made
        self.closed = True
        with closing(pieces(page.parts)) as steps:
            await in_turns(steps)
        return page


class PageResponse(Response):
    """Sends a page part by part, as fast as it is read."""

    def __init__(self, page: Page) -> None:
        super().__init__(media_type=CONTENT_TYPE)
        self.headers["content-length"] = str(sum(map(len, page.parts)))
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await send(start)
                if scope["method"] != "HEAD":
                    for part in self._page.parts:
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b""})


class MetricsPage:
    """The page for all ports. `pieces` appends the text to a list, in short steps."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._last: _Build | None = None
        self._pages: WeakSet[Page] = WeakSet()

    def route(self) -> Route:
        return Route("/metrics", self._asked)

    async def _asked(self, request: Request) -> Response:
        async for _ in request.stream():
            pass  # what comes now is that the client goes away
        making = asyncio.ensure_future(self.page())
        gone = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait((making, gone), return_when=asyncio.FIRST_COMPLETED)
            if not making.done():
                return Response(status_code=499)  # nobody reads it
            page = making.result()
        finally:
            making.cancel()
            gone.cancel()
        if page is None:
            return Response(
                f"{MOST_PAGES} pages of metrics wait for clients to read them; try again later",
                429,
                {"Retry-After": "1"},
                "text/plain",
            )
        return PageResponse(page)

    def _made(self, page: Page, task: asyncio.Task[Page]) -> None:
        if task.cancelled() or task.exception() is not None:
            # An error may know the page for as long as somebody knows the error.
            page.parts.clear()
            self._pages.discard(page)

    async def page(self) -> Page | None:
        """A page that is begun after this call, for all who have called until then; `None` where
        too many are in memory."""
        build = self._last
        if build is None or build.closed:
            if len(self._pages) >= MOST_PAGES:
                return None
            page = Page()
            self._pages.add(page)
            before = build.task if build is not None and not build.task.done() else None
            build = self._last = _Build(self._pieces, page, before)
            build.task.add_done_callback(partial(self._made, page))
            del page
        build.askers += 1
        try:
            return await asyncio.shield(build.task)
        finally:
            build.askers -= 1
            if not build.askers:
                build.closed = True
                build.task.cancel()
                if self._last is build and build.task.done():
                    self._last = None
