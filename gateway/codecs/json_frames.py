"""What stays the same around the numbers of one client's JSON requests.

A client sends the same JSON again and again with other numbers in ``data``. The text in front of
that list and behind it is looked up; only the list itself is parsed. Text that is equal, with
a list in between that is valid by itself, has the same structure as the body it was seen in.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from gateway.codecs.json_data import has_booleans, tensor_from_json
from gateway.tensors import Buffer, InferenceRequest

MAX_FRAMES: Final = 512
MAX_TEXT: Final = 4096
"""Longest text kept, in bytes, on either side of the list."""

_KEY: Final = b'"data"'
_MARK: Final = "\0a mark that stands for the list\0"


class Frame:
    """The texts around the only input's data, and the request that they make."""

    __slots__ = ("answer", "request", "suffix")

    def __init__(self, suffix: bytes, request: InferenceRequest, answer: Any) -> None:
        self.suffix = suffix
        self.request = request
        self.answer = answer


class JsonFrames:
    """The frames seen so far, bounded. For bodies with one input and no id."""

    def __init__(self, max_depth: int) -> None:
        self._max_depth = max_depth
        self._frames: dict[tuple[str, str, bytes], Frame] = {}

    def request(
        self, model: str, version: str, body: Buffer
    ) -> tuple[InferenceRequest, Any] | None:
        """The request and the form of its answer, if the frame is known and its list in order."""
        if type(body) is not bytes:
            return None
        start = _start(body)
        frame = self._frames.get((model, version, body[:start])) if start > 0 else None
        if frame is None or not body.endswith(frame.suffix):
            return None
        text = body[start : len(body) - len(frame.suffix)]
        if text.count(b"[") > self._max_depth - 3:
            return None
        try:
            data = orjson.loads(text)
        except orjson.JSONDecodeError:
            return None  # the slow way says what is wrong
        like = frame.request
        spec = like.inputs[0]
        tensor = tensor_from_json(
            spec.name, spec.datatype, spec.shape, data, booleans=has_booleans(text)
        )
        return like.with_inputs((tensor,)), frame.answer

    def remember(
        self, body: Buffer, tree: dict[str, Any], request: InferenceRequest, answer: Any
    ) -> None:
        """Keeps the frame of a body that was parsed into `tree` and then into `request`."""
        inputs = tree.get("inputs")
        if type(body) is not bytes or request.id or not inputs or len(inputs) != 1:
            return
        start = _start(body)
        data = inputs[0].get("data")
        if not 0 < start <= MAX_TEXT or type(data) is not list:
            return
        stop = _stop(body, start)
        suffix = body[stop:]
        if len(suffix) > MAX_TEXT or not _stands_around(body[:start], suffix, tree):
            return
        if len(self._frames) >= MAX_FRAMES:
            self._frames.pop(next(iter(self._frames)))
        key = (request.model, request.version, body[:start])
        self._frames[key] = Frame(suffix, request.without_data(), answer)


def _start(body: bytes) -> int:
    """Where the first ``data`` list begins, as far as plain search tells; -1 if nowhere."""
    key = body.find(_KEY)
    return body.find(b"[", key, key + 16) if key >= 0 else -1


def _stop(body: bytes, start: int) -> int:
    """Where a list of numbers that begins at `start` ends, by its brackets."""
    depth = 0
    at = start
    while True:
        close = body.find(b"]", at)
        if close < 0:
            return len(body)
        depth += body.count(b"[", at, close) - 1
        at = close + 1
        if depth <= 0:
            return at


def _stands_around(prefix: bytes, suffix: bytes, tree: dict[str, Any]) -> bool:
    """Whether the list between the two texts is the only input's ``data`` and nothing else."""
    try:
        marked = orjson.loads(prefix + orjson.dumps(_MARK) + suffix)
    except orjson.JSONDecodeError:
        return False
    want = {**tree, "inputs": [{**tree["inputs"][0], "data": _MARK}]}
    return bool(marked == want)
