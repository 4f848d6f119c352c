"""Points of a benchmark, made up: as short as tests need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loadtests.bench.plan import Load, Protocol, Target
from loadtests.bench.results import PERCENTILES, Client, Interval, Latency, Point, Result, Server


def latency(us: float, count: int = 1000, spread: float | None = 0.02) -> Latency:
    """All percentiles are ``us`` times a factor that grows with them: 1 at the median, 2 at p99.
    ``spread``: half the width of the intervals, as a share; ``None``: there are none."""
    factor = {p: 0.5 + p / 100 if p <= 50 else 1 + (p - 50) / 49 for p in PERCENTILES}
    values = {f"{p:g}": us * factor[p] for p in PERCENTILES}

    def interval(at: float) -> Interval | None:
        return None if spread is None else Interval(at * (1 - spread), at * (1 + spread))

    return Latency(count, us, values, "", interval(values["50"]), interval(values["99"]))


def point(
    rate: float = 0.0,
    concurrency: int = 0,
    *,
    us: float = 5000.0,
    ok: int = 1000,
    errors: dict[str, int] | None = None,
    spread: float | None = 0.02,
    bottleneck: str = "",
    answered: float | None = None,
    **more: Any,
) -> Point:
    """One level whose median is ``us`` and whose 99th percentile is twice that."""
    load = Load(rate=rate, concurrency=concurrency)
    per_s = answered if answered is not None else rate or concurrency * 1e6 / us
    fields: dict[str, Any] = {
        "load": load,
        "warmup_s": 1.0,
        "steady": True,
        "seconds": 10.0,
        "sent": ok + sum((errors or {}).values()),
        "ok": ok,
        "errors": errors or {},
        "rate": per_s,
        "rate_ci": None if spread is None else Interval(per_s * (1 - spread), per_s * (1 + spread)),
        "latency": latency(us, ok, spread),
        "service": latency(us, ok, spread),
        "error_latency": None,
        "versions": {"1": ok},
        "ticks": [],
        "client": Client(0.2, 0.1, 2, 100.0, 50.0, bottleneck),
        "server": Server("statistics", ok, ok // 2, 100.0, 300.0, 2.0, {"2": ok // 2}),
    }
    return Point(**{**fields, **more})


def result(points: Sequence[Point], **more: Any) -> Result:
    """A run with these levels."""
    fields: dict[str, Any] = {
        "started": "2026-01-01T00:00:00+00:00",
        "command": "sluice bench add",
        "target": Target("add", Protocol.BINARY, "http://127.0.0.1:8080"),
        "payload": "random",
        "machine": {"cpu": "x", "cores": "2"},
        "versions": {"server": "sluicegate 1.0"},
        "points": list(points),
    }
    return Result(**{**fields, **more})
