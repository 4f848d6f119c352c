"""Large tensors are copied into one batch only where the model gains more by it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from gateway.batching.batcher import JOIN_SECONDS, RETRY_JOINING, Batcher
from gateway.batching.curve import CostCurve

ROW = 4 << 20
COPY = ROW * JOIN_SECONDS


def curve(one: float, eight: float, samples: int = 8) -> CostCurve:
    found = CostCurve()
    for _ in range(samples):
        found.observe(1, one)
        found.observe(8, eight)
    return found


def refusals(found: CostCurve, times: int, rows: int = 8) -> int:
    """How often a line of so many calls, of one row each, is not joined."""
    batcher = cast(Any, SimpleNamespace(curve=found, _apart=0))
    line = cast(Any, SimpleNamespace(rows=rows, calls=[SimpleNamespace(size=ROW, rows=1)]))
    return sum(Batcher._not_worth_joining(batcher, line, 64) for _ in range(times))


def test_saved_is_what_one_batch_takes_less() -> None:
    saved = curve(1.0, 3.0).saved(8)
    assert saved is not None
    assert abs(saved - 5.0) < 1e-9
    assert curve(1.0, 3.0).saved(64) is None, "never seen"
    assert CostCurve().saved(8) is None
    assert curve(1.0, 3.0, samples=1).saved(8) is None, "the first ones were cold"


def test_what_gains_by_batches_is_joined() -> None:
    assert refusals(curve(10 * COPY, 12 * COPY), 100) == 0


def test_what_gains_less_than_copying_takes_is_not_but_now_and_then() -> None:
    times = 3 * RETRY_JOINING
    assert refusals(curve(COPY, 8 * COPY), times) == times - 3
    assert refusals(curve(COPY, 12 * COPY), times) == times - 3, "batches may even be slower"


def test_what_is_not_known_is_tried() -> None:
    assert refusals(CostCurve(), 100) == 0
    assert refusals(curve(COPY, 8 * COPY), 100, rows=40) == 0
