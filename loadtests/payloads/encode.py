"""Samples to bytes, by protocol."""

from __future__ import annotations

from loadtests.bench.plan import Target
from loadtests.payloads.base import Sample, Wire


def encode(sample: Sample, target: Target) -> Wire:
    """The request as the protocol of ``target`` has it. Raises `BenchError` for what it cannot say
    (V1 and ``/invocations`` have rows of values, and no FP16)."""
    raise NotImplementedError
