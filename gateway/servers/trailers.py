"""What goes along with a gRPC answer: who answered, or when to try again."""

from __future__ import annotations

from functools import lru_cache

from gateway.codecs.statuses import retry_after
from gateway.errors import SluiceError
from gateway.tensors import InferenceResponse

Trailers = tuple[tuple[str, str], ...]


@lru_cache(1024)
def _trailers(version: str, route: str) -> Trailers:
    return (("x-sluice-version", version), ("x-sluice-route", route))


def answer_trailers(response: InferenceResponse) -> Trailers:
    """Trailing metadata that says which version answered, and why that one."""
    return _trailers(response.version, response.route)


def error_trailers(error: SluiceError) -> Trailers | None:
    """When to try again: as HTTP says it in seconds, and as gRPC's own retries read it."""
    seconds = retry_after(error)
    if seconds is None:
        return None
    return (("retry-after", str(seconds)), ("grpc-retry-pushback-ms", str(seconds * 1000)))
