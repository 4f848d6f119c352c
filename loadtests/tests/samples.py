"""Results as `sluice bench` might have found them, made up: for tests of what reads them.

``result()`` is a sweep into saturation; every part of it can be replaced. The same arguments give
the same result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from hdrh.histogram import HdrHistogram

from loadtests.bench.plan import Load, Target
from loadtests.bench.results import (
    PERCENTILES,
    Client,
    Interval,
    Latency,
    Point,
    Result,
    Search,
    Server,
    Tick,
)


def histogram(values_us: Sequence[int]) -> HdrHistogram:
    """As a run would have counted them."""
    counted = HdrHistogram(1, 3_600_000_000, 3)
    for value in values_us:
        counted.record_value(max(1, min(int(value), 3_600_000_000)))
    return counted


def latency(values_us: Sequence[int], *, intervals: bool = True) -> Latency:
    """Latencies that were these µs."""
    counted = histogram(values_us)
    encoded = counted.encode().decode()
    if not len(values_us):
        return Latency(0, 0.0, {f"{p:g}": 0.0 for p in PERCENTILES}, encoded)
    found = {f"{p:g}": float(counted.get_value_at_percentile(p)) for p in PERCENTILES}
    return Latency(
        count=len(values_us),
        mean_us=float(np.mean(values_us)),
        percentiles_us=found,
        histogram=encoded,
        p50=Interval(found["50"] * 0.98, found["50"] * 1.02) if intervals else None,
        p99=Interval(found["99"] * 0.93, found["99"] * 1.08) if intervals else None,
    )


@lru_cache(maxsize=64)
def _drawn(median_us: float, spread: float, count: int, seed: int) -> tuple[int, ...]:
    drawn = np.random.default_rng(seed).lognormal(math.log(median_us), spread, count)
    return tuple(int(value) for value in np.maximum(drawn, 1))


def point(
    rate: float = 500.0,
    *,
    concurrency: int = 0,
    capacity: float = 2600.0,
    seconds: int = 12,
    warmup: int = 4,
    samples: int = 4000,
    errors: dict[str, int] | None = None,
    split: dict[str, float] | None = None,
    bottleneck: str = "",
    server: bool = True,
    **replaced: Any,
) -> Point:
    """One level: fast below ``capacity``, slow and short of the load above. ``samples``: latencies
    that are really counted; ``split``: version → share of the answers."""
    load = Load(rate=0.0 if concurrency else rate, concurrency=concurrency, seconds=seconds)
    wanted = concurrency / 0.004 if concurrency else rate
    answered = min(wanted, capacity)
    busy = min(wanted / capacity, 1.6)
    service_us = 900 + 2400 * busy**4
    due_us = service_us if busy < 1 else service_us + 400_000 * (busy - 0.97)
    seed = int(wanted) % 9973
    service = latency(_drawn(service_us, 0.35, samples, seed))
    full = latency(_drawn(due_us, 0.35 + 0.3 * busy, samples, seed + 1))
    split = {"1": 0.9, "2": 0.1} if split is None else split
    noise = np.random.default_rng(seed)
    ticks = []
    for second in range(-warmup, seconds):
        slow = 1 + 2.5 * math.exp(-(second + warmup) / 1.2)
        wave = float(noise.normal(1, 0.03))
        ok = int(answered * wave)
        ticks.append(
            Tick(
                at_s=float(second),
                seconds=1.0,
                sent=int(wanted),
                ok=ok,
                failed=sum((errors or {}).values()) // max(seconds, 1) if second >= 0 else 0,
                p50_us=full.at(50) * slow * wave,
                p99_us=full.at(99) * slow * float(noise.normal(1, 0.12)),
                versions={
                    version: int(noise.binomial(ok, share)) for version, share in split.items()
                },
                batch_rows=1 + 14 * min(busy, 1) ** 2 * wave if server else None,
                queue_us=300 * busy**3 * slow if server else None,
                execute_us=(350 + 500 * min(busy, 1)) * slow if server else None,
                client_cpu=0.1 + wanted / 6000 * wave,
            )
        )
    ok = int(answered * seconds)
    sizes = {
        str(size): int(900 * math.exp(-size * (1.6 - min(busy, 1)) / 8)) for size in range(1, 33)
    }
    made = Point(
        load=load,
        warmup_s=float(warmup),
        steady=True,
        seconds=float(seconds),
        sent=ok + sum((errors or {}).values()),
        ok=ok,
        errors=errors or {},
        rate=answered,
        rate_ci=Interval(answered * 0.985, answered * 1.013),
        latency=full if load.open else service,
        service=service,
        error_latency=latency(_drawn(700, 0.2, 50, seed)) if errors else None,
        versions={version: round(ok * share) for version, share in split.items()},
        ticks=ticks,
        client=Client(
            cpu=0.2 + wanted / 6000,
            busiest=min(0.98, 0.1 + wanted / 5000),
            cores=8,
            lag_p99_us=180 + 400 * busy,
            late_p99_us=150 + 300 * busy,
            bottleneck=bottleneck,
        ),
        server=Server(
            source="statistics",
            requests=ok,
            executions=int(ok / (1 + 14 * min(busy, 1) ** 2)),
            queue_us=300 * busy**3,
            execute_us=350 + 500 * min(busy, 1),
            batch_rows=1 + 14 * min(busy, 1) ** 2,
            batch_sizes={size: count for size, count in sizes.items() if count},
        )
        if server
        else None,
    )
    return msgspec.structs.replace(made, **replaced)


def result(points: Sequence[Point] | None = None, **replaced: Any) -> Result:
    """A run: a sweep of five rates, the last two beyond what the server can do."""
    if points is None:
        points = [point(rate) for rate in (250, 500, 1000, 2000)]
        points.append(point(3000, errors={"429": 3110, "timeout": 12}))
    made = Result(
        started="2026-11-22T07:30:00Z",
        command="sluice bench digits --rates 250,500,1000,2000,3000 --html digits.html",
        target=Target(
            model="digits",
            http="http://127.0.0.1:8000",
            grpc="127.0.0.1:8001",
            headers=(("authorization", "secret"),),
        ),
        payload="made from the model's metadata: 64 different requests of 1 row",
        machine={"cpu": "A processor @ 2.1 GHz", "cores": "8", "memory": "24 GiB"},
        versions={"sluicegate": "0.1.0", "server": "sluicegate 0.1.0", "grpcio": "1.85.1"},
        points=list(points),
        expected_split={"1": 0.9, "2": 0.1},
    )
    return msgspec.structs.replace(made, **replaced)


def searched() -> Result:
    """A run that looked for the highest rate."""
    return result(
        search=Search(
            "p99<=20ms",
            2000.0,
            [(250.0, True), (500.0, True), (1000.0, True), (2000.0, True), (3000.0, False)],
        )
    )


def failed() -> Result:
    """A run in which nothing was answered well."""
    nothing = latency([])
    return result(
        [
            msgspec.structs.replace(
                point(rate),
                ok=0,
                sent=int(rate * 12),
                rate=0.0,
                rate_ci=None,
                errors={"connection": int(rate * 12)},
                latency=nothing,
                service=nothing,
                versions={},
                ticks=[],
                server=None,
            )
            for rate in (100, 200)
        ]
    )
