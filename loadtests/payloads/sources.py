"""Where samples come from."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.codecs.client_grpc import ModelMetadata
from loadtests.payloads.base import Sample


def open_payloads(
    source: str,
    metadata: ModelMetadata | None,
    *,
    rows: int = 1,
    shapes: dict[str, tuple[int, ...]] | None = None,
    count: int = 64,
    seed: int = 1,
) -> tuple[Sequence[Sample], str]:
    """Samples, and where they came from in words.

    ``source``: empty (random values for the model's own metadata; ``rows`` for the first symbolic
    dimension, ``shapes`` for the others), a file (``.json`` request body, ``.npz``, ``.npy``), a
    recording (``.jsonl``, ``.har``), a table (``.csv``, ``.parquet``) or a data set (``sklearn:digits``).
    Raises `BenchError` for a source that does not fit the model, naming tensor and shape.
    """
    raise NotImplementedError
