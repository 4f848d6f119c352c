"""Long answers made a piece at a time, so that nobody else waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Any, Final, TypeVar

import orjson
from starlette.responses import Response

T = TypeVar("T")
SLICE: Final = 0.001
"""Seconds at a time, while the event loop has little else to do."""
LONGEST_SLICE: Final = 0.005
SHARE: Final = 4
"""Others have had this many times as long; without it a loop that is busy for 10 ms in each turn
would take longer over the answer than whoever asked waits for it."""


async def in_turns(steps: Iterator[T], clock: Callable[[], float] = perf_counter) -> list[T]:
    """Everything that `steps` gives, with the event loop's other work in between."""
    found: list[T] = []
    length = SLICE
    while True:
        end = clock() + length
        for step in steps:
            found.append(step)
            if clock() >= end:
                break
        else:
            return found
        gone = clock()
        await asyncio.sleep(0)
        length = min(max((clock() - gone) / SHARE, SLICE), LONGEST_SLICE)


async def answer_list(name: str, items: Iterable[Any]) -> Response:
    """A JSON answer: an object with one list, whose items are made when it is their turn."""
    parts = await in_turns(orjson.dumps(item) for item in items)
    body = b'{"%b":[%b]}' % (name.encode(), b",".join(parts))
    return Response(body, media_type="application/json")
