"""Requests before they have a protocol (`Sample`), and as bytes (`Wire`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.tensors import Parameter, Tensor


@dataclass(frozen=True)
class Sample:
    """One request: named tensors and what goes with them."""

    inputs: tuple[Tensor, ...]
    parameters: dict[str, Parameter] = field(default_factory=dict)
    headers: tuple[tuple[str, str], ...] = ()
    """Sent with this request only, as ``x-sluice-key``."""
    at_s: float | None = None
    """When it was recorded, in seconds from the first of its recording."""
    outputs: tuple[str, ...] = ()
    """The outputs it asks for; empty: all."""


@dataclass(frozen=True)
class Wire:
    """One request, ready to be sent any number of times.

    HTTP: POST to ``path`` with ``headers`` (no length, no host) and ``body``. gRPC: ``body`` is the
    ``ModelInferRequest``, without the five bytes of gRPC's framing; ``headers`` are metadata.
    """

    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    at_s: float | None = None
