"""Sends many requests and counts who answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import httpx
import orjson

from gateway.cli.client import quoted, reason, unreachable


@dataclass
class Outcome:
    """What came back."""

    model: str
    first: dict[str, Any] | None = None
    route: str = ""
    """Why the first answer's version was chosen."""
    versions: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def answered(self) -> int:
        return self.versions.total()

    @property
    def failed(self) -> int:
        return self.errors.total()

    def quantile_ms(self, quantile: float) -> float | None:
        """A latency of the requests that were answered, in milliseconds."""
        if not self.latencies:
            return None
        ordered = sorted(self.latencies)
        return ordered[min(int(quantile * len(ordered)), len(ordered) - 1)] * 1e3


@dataclass(frozen=True)
class Plan:
    """What to send, where, how often, and how many at the same time."""

    url: str
    model: str
    body: dict[str, Any]
    count: int = 1
    concurrency: int = 1
    version: str = ""
    key: str = ""
    timeout: float = 30.0

    @property
    def path(self) -> str:
        version = f"/versions/{quoted(self.version)}" if self.version else ""
        return f"/v2/models/{quoted(self.model)}{version}/infer"


async def send(plan: Plan) -> Outcome:
    """Sends `plan.count` requests. Raises `Failure` when nobody answers the first one."""
    outcome = Outcome(plan.model)
    body = orjson.dumps(plan.body)
    headers = {"content-type": "application/json"}
    if plan.key:
        headers["x-sluice-key"] = plan.key
    limits = httpx.Limits(max_connections=plan.concurrency)
    async with httpx.AsyncClient(
        base_url=plan.url, headers=headers, timeout=plan.timeout, limits=limits, trust_env=False
    ) as client:
        left = iter(range(plan.count))

        async def worker() -> None:
            for _ in left:
                await one(client, plan, body, outcome)

        started = perf_counter()
        if next(left, None) is not None:
            await one(client, plan, body, outcome, first=True)
            await asyncio.gather(*(worker() for _ in range(plan.concurrency)))
        outcome.seconds = perf_counter() - started
    return outcome


async def one(
    client: httpx.AsyncClient, plan: Plan, body: bytes, outcome: Outcome, *, first: bool = False
) -> None:
    """Sends one request and counts its answer."""
    started = perf_counter()
    try:
        answer = await client.post(plan.path, content=body)
    except httpx.HTTPError as error:
        if first:
            raise unreachable(plan.url, error) from None
        outcome.errors[f"no answer: {reason(error)}"] += 1
        return
    took = perf_counter() - started
    try:
        tree = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        tree = None
    if not answer.is_success or not isinstance(tree, dict):
        text = tree.get("error") if isinstance(tree, dict) else None
        outcome.errors[f"{answer.status_code}: {text or 'no JSON in the answer'}"] += 1
        return
    if outcome.first is None:
        outcome.first = tree
        outcome.route = answer.headers.get("x-sluice-route", "")
    outcome.versions[str(tree.get("model_version", ""))] += 1
    outcome.latencies.append(took)
