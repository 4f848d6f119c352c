"""Recorded traffic: ``.jsonl`` (one request a line) and ``.har`` 1.2 (from a proxy or a browser).

A line: ``{"at_s": 0.25, "model": "digits", "body": {...}, "headers": {"x-sluice-key": "u1"}}``.
``body`` is a request body of any protocol, or ``body_base64`` its bytes, with
``inference-header-content-length`` among the headers where tensors are binary. ``at_s`` and
``headers`` may be left out, ``model`` where there is only one.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import orjson

from gateway.codecs.client_grpc import ModelMetadata
from gateway.codecs.client_rest import HEADER_LENGTH
from gateway.errors import printable
from loadtests.errors import BenchError
from loadtests.payloads.arrays import MOST
from loadtests.payloads.base import Sample
from loadtests.payloads.bodies import parse, sample_of_body
from loadtests.payloads.encode import MODEL_HEADER

_KEYS: Final = ("at_s", "model", "body", "body_base64", "headers")
_OWN: Final = frozenset(
    {
        "content-type", "content-length", "content-encoding", "transfer-encoding", "host",
        "connection", HEADER_LENGTH, MODEL_HEADER,
    }
)  # fmt: skip
"""Headers that the protocol of the load test sets itself."""
_PATH: Final = re.compile(
    r"/v2/models/(?P<v2>[^/]+)(?:/versions/[^/]+)?/infer|/v1/models/(?P<v1>[^/:]+):predict"
    r"|/models/(?P<mlflow>[^/]+)(?:/versions/[^/]+)?/invocations|(?P<only>/invocations)"
)
_PASSED_ON: Final = ("x-forwarded-", "x-real-ip")
Recorded = tuple[str, dict[str, Any]]
"""The model that was asked (empty: not said), and the request as a line of a ``.jsonl``."""


def of_jsonl(text: bytes, metadata: ModelMetadata | None, source: str) -> tuple[list[Sample], int]:
    """The requests for the model, in the order of their times, and how many were left out.

    Raises `BenchError` with the number of the line.
    """
    return _chosen(_lines(text, source), metadata, source)


def of_har(text: bytes, metadata: ModelMetadata | None, source: str) -> tuple[list[Sample], int]:
    """The inference requests for the model in an HTTP archive, and how many entries were left out:
    those of other models, and what is no inference. Raises `BenchError`."""
    tree = parse(text, source)
    log = tree.get("log") if isinstance(tree, dict) else None
    entries = log.get("entries") if isinstance(log, dict) else None
    if not isinstance(entries, list):
        raise BenchError(f"{source} is no HTTP archive: it has no log.entries")
    return _chosen(_entries(entries, source), metadata, source)


# --- one request


def _lines(text: bytes, source: str) -> Iterator[tuple[str, Recorded]]:
    """Where each request stands, and the request."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            where = f"{source}, line {number}"
            tree = _line(parse(line, where), where)
            yield where, (tree.get("model", ""), tree)


def _entries(entries: list[Any], source: str) -> Iterator[tuple[str, Recorded | None]]:
    """Where each entry stands, and its request; ``None`` for what is no inference."""
    for number, entry in enumerate(entries):
        where = f"{source}, entry {number}"
        try:
            found = _entry(entry)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BenchError(
                f"{where} is not as HTTP archives 1.2 have it: {type(error).__name__} "
                f"{printable(error)}"
            ) from None
        yield where, found


def _line(tree: Any, where: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise BenchError(f"{where} is no object with a 'body'")
    for key in tree:
        if key not in _KEYS:
            raise BenchError(f"{where} has an unknown key '{key}'; known: {', '.join(_KEYS)}")
    if ("body" in tree) == ("body_base64" in tree):
        raise BenchError(f"{where} must have one of 'body' and 'body_base64'")
    at = tree.get("at_s", 0.0)
    if isinstance(at, bool) or not isinstance(at, int | float) or at < 0:
        raise BenchError(f"{where}: 'at_s' must be a number of seconds, not {printable(at)}")
    if not isinstance(tree.get("model", ""), str):
        raise BenchError(f"{where}: 'model' must be text")
    headers = tree.get("headers", {})
    if not isinstance(headers, dict) or not all(isinstance(v, str) for v in headers.values()):
        raise BenchError(f"{where}: 'headers' must be an object of names and text")
    for name in headers:
        # This one says how body_base64 is to be read.
        wanted = name.lower() in (HEADER_LENGTH, "content-type") and "body_base64" in tree
        if name.lower() in _OWN and not wanted:
            raise BenchError(f"{where}: header '{name}' follows from the protocol; leave it out")
    return tree


def _sample(line: Mapping[str, Any], metadata: ModelMetadata | None, where: str) -> Sample:
    headers = {name.lower(): value for name, value in line.get("headers", {}).items()}
    if "body_base64" in line:
        try:
            body = base64.b64decode(line["body_base64"], validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise BenchError(f"{where}: 'body_base64' is no base64") from None
    elif isinstance(line["body"], str):
        body = line["body"].encode("utf-8", "surrogateescape")
    else:
        body = orjson.dumps(line["body"])
    length = headers.get(HEADER_LENGTH)
    if length is not None and not length.isdecimal():
        raise BenchError(f"{where}: {HEADER_LENGTH} is {printable(length)}, which is no number")
    return sample_of_body(
        body,
        metadata,
        where,
        head_length=int(length) if length is not None else None,
        media_type=headers.get("content-type", "application/json").partition(";")[0].strip(),
        headers=tuple((name, value) for name, value in headers.items() if name not in _OWN),
        at_s=float(line["at_s"]) if "at_s" in line else None,
    )


def _entry(entry: dict[str, Any]) -> Recorded | None:
    """Model and line of an entry; ``None`` for what is no inference."""
    request = entry["request"]
    path = _PATH.fullmatch(urlsplit(request["url"]).path)
    if request["method"] != "POST" or path is None or "postData" not in request:
        return None
    sent = {each["name"].lower(): each["value"] for each in request["headers"]}
    model = path["v2"] or path["v1"] or path["mlflow"] or ""
    model = unquote(model) if model else sent.get(MODEL_HEADER, "")
    # Tokens and cookies stay where they were; what is ours to read begins with x-.
    kept = {
        name: value
        for name, value in sent.items()
        if (name.startswith("x-") and not name.startswith(_PASSED_ON) and name not in _OWN)
        or name in (HEADER_LENGTH, "content-type")
    }
    posted = request["postData"]
    began = datetime.fromisoformat(entry["startedDateTime"].replace("Z", "+00:00"))
    line: dict[str, Any] = {"at_s": began.timestamp(), "headers": kept}
    if posted.get("encoding") == "base64":
        line["body_base64"] = posted["text"]
    elif HEADER_LENGTH in kept:
        # Text that stands for bytes, one character each, as browsers write them.
        line["body_base64"] = base64.b64encode(posted["text"].encode("latin-1")).decode()
    else:
        line["body"] = posted["text"]
    return model, line


# --- all of them


def _chosen(
    recorded: Iterable[tuple[str, Recorded | None]], metadata: ModelMetadata | None, source: str
) -> tuple[list[Sample], int]:
    """The requests for the model, and how many others there were."""
    samples: list[Sample] = []
    models: set[str] = set()
    others = 0
    for where, found in recorded:
        if found is None:
            others += 1
            continue
        model, line = found
        another = metadata is not None and model not in ("", metadata.name)
        if another or len(samples) < MOST:
            models.add(model)
        if another or len(samples) >= MOST:
            others += 1
        else:
            samples.append(_sample(line, metadata, where))
    _check(samples, models, metadata, source)
    return _ordered(samples), others


def _check(
    samples: list[Sample], models: set[str], metadata: ModelMetadata | None, source: str
) -> None:
    listed = ", ".join(sorted(printable(model) for model in models if model))
    if not samples:
        asked = f" for model '{printable(metadata.name)}'" if metadata is not None else ""
        found = f"; it has requests for: {listed}" if listed else ""
        raise BenchError(f"{source} has no inference request{asked}{found}")
    if metadata is None and len(models) > 1:
        raise BenchError(f"{source} has requests for several models ({listed}); name one")
    timed = sum(sample.at_s is not None for sample in samples)
    if timed not in (0, len(samples)):
        raise BenchError(
            f"{source}: {timed} of {len(samples)} requests have an 'at_s'; give it to all or none"
        )


def _ordered(samples: list[Sample]) -> list[Sample]:
    """In the order of their times, counted from the first."""
    if samples[0].at_s is None:
        return samples
    samples = sorted(samples, key=lambda sample: sample.at_s or 0.0)
    first = samples[0].at_s or 0.0
    return [replace(sample, at_s=round((sample.at_s or 0.0) - first, 6)) for sample in samples]
