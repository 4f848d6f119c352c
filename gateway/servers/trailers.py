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
    """When to try again, as HTTP says it in seconds."""
    seconds = retry_after(error)
    return None if seconds is None else (("retry-after", str(seconds)),)
