"""The server's own side: what it says of the requests, queues and batches of a model.

Read from the statistics extension (Triton's; over HTTP, else over gRPC) or from Triton's counters
in Prometheus text at ``/metrics``. A server that has neither has no side of its own here.
"""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import quote

import httpx

from loadtests.bench.calls import GrpcCalls
from loadtests.bench.plan import Target
from loadtests.bench.results import Server

TIMEOUT: Final = 5.0
COUNTERS: Final = {
    "nv_inference_request_success": "requests",
    "nv_inference_exec_count": "executions",
    "nv_inference_count": "rows",
    "nv_inference_queue_duration_us": "queue_ns",
    "nv_inference_compute_infer_duration_us": "execute_ns",
}


@dataclass(frozen=True)
class Snapshot:
    """What a server has counted so far, over the versions of a model."""

    requests: int
    """Answered well."""
    executions: int
    """Batches."""
    rows: int
    queue_ns: int
    """Summed over requests, as ``execute_ns`` is."""
    execute_ns: int
    batch_sizes: dict[int, int] = field(default_factory=dict)
    """Rows of a batch → batches; empty where the server does not say."""
    versions: dict[str, int] = field(default_factory=dict)
    """Version → requests that it answered well."""
    timed: int = 0
    """Requests that the times are sums of."""
    source: str = "statistics"


class ServerStats:
    """Reads a model's counters. What the server has is found out at the first reading that
    succeeds; later ones ask for nothing else."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._http: httpx.Client | None = None
        self._grpc: GrpcCalls | None = None
        self._ways = [self._over_http, self._metrics] if target.http else []
        if target.grpc:
            self._ways.append(self._over_grpc)

    def read(self) -> Snapshot | None:
        """The counters now; ``None`` where the server has none, or does not answer."""
        for way in self._ways:
            found = way()
            if found is not None:
                self._ways = [way]
                return found
        return None

    def close(self) -> None:
        """Ends its connections."""
        if self._http is not None:
            self._http.close()
        if self._grpc is not None:
            self._grpc.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- ways

    def _over_http(self) -> Snapshot | None:
        target = self._target
        path = f"/v2/models/{quote(target.model, safe='')}"
        if target.version:
            path += f"/versions/{quote(target.version, safe='')}"
        answer = self._get(f"{path}/stats")
        if answer is None:
            return None
        try:
            return from_statistics(answer.json()["model_stats"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def _metrics(self) -> Snapshot | None:
        answer = self._get("/metrics")
        if answer is None:
            return None
        return from_metrics(answer.text, self._target.model, self._target.version)

    def _over_grpc(self) -> Snapshot | None:
        if self._grpc is None:
            self._grpc = GrpcCalls(self._target)
        answer = self._grpc.statistics()
        return None if answer is None else from_statistics(answer)

    def _get(self, path: str) -> httpx.Response | None:
        if self._http is None:
            self._http = http_client(self._target)
        with suppress(httpx.HTTPError):
            answer = self._http.get(path)
            if answer.is_success:
                return answer
        return None


def http_client(target: Target, timeout: float = TIMEOUT) -> httpx.Client:
    """A client of the target's HTTP side, with its headers, past the environment's proxies.

    Raises `OSError` (also as `ssl.SSLError`) for authorities that cannot be read.
    """
    verify: ssl.SSLContext | bool = target.http.startswith("https://")
    if verify and target.ca_file:
        verify = ssl.create_default_context(cafile=target.ca_file)
    return httpx.Client(
        base_url=target.http,
        headers=list(target.headers),
        timeout=httpx.Timeout(timeout, connect=TIMEOUT),
        trust_env=False,
        verify=verify,
    )


# --- what servers say


def from_statistics(entries: Iterable[Mapping[str, Any]]) -> Snapshot:
    """``model_stats`` of the statistics extension, versions together. Raises `KeyError`,
    `TypeError`, `ValueError` or `AttributeError` for anything else."""
    total: Counter[str] = Counter()
    sizes: Counter[int] = Counter()
    versions: Counter[str] = Counter()
    for entry in entries:
        times = entry["inference_stats"]

        def counted(name: str, what: str, times: Mapping[str, Any] = times) -> int:
            # gRPC's JSON leaves out what never happened.
            return int(times.get(name, {}).get(what, 0))

        success = counted("success", "count")
        versions[str(entry.get("version", ""))] += success
        total["requests"] += success
        total["executions"] += int(entry.get("execution_count", 0))
        total["rows"] += int(entry.get("inference_count", 0))
        total["queue_ns"] += counted("queue", "ns")
        total["execute_ns"] += counted("compute_infer", "ns")
        total["timed"] += counted("compute_infer", "count")
        for size in entry.get("batch_stats", ()):
            count = int(size.get("compute_infer", {}).get("count", 0))
            sizes[int(size.get("batch_size", 0))] += count
    return Snapshot(
        requests=total["requests"],
        executions=total["executions"],
        rows=total["rows"],
        queue_ns=total["queue_ns"],
        execute_ns=total["execute_ns"],
        batch_sizes=dict(sizes),
        versions=dict(versions),
        timed=total["timed"],
    )


def from_metrics(page: str, model: str, version: str = "") -> Snapshot | None:
    """Triton's counters of a model in Prometheus text; ``None`` where the page has none."""
    from prometheus_client.parser import text_string_to_metric_families

    total: Counter[str] = Counter()
    versions: Counter[str] = Counter()
    try:
        # A page has lines of every model: only those that count are parsed.
        lines = [line for line in page.splitlines() if line.startswith(tuple(COUNTERS))]
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                name = COUNTERS.get(sample.name)
                its = sample.labels.get("version", "")
                if name is None or sample.labels.get("model") != model:
                    continue
                if version not in ("", its):
                    continue
                total[name] += int(sample.value * (1000 if name.endswith("_ns") else 1))
                if name == "requests":
                    versions[its] += int(sample.value)
    except ValueError:
        return None
    if "requests" not in total:
        return None
    return Snapshot(
        requests=total["requests"],
        executions=total["executions"],
        rows=total["rows"],
        queue_ns=total["queue_ns"],
        execute_ns=total["execute_ns"],
        versions=dict(versions),
        timed=total["requests"],
        source="metrics",
    )


# --- between two readings


def since(before: Snapshot, after: Snapshot) -> Snapshot:
    """The earlier reading, or nothing where the counters have begun anew."""
    if after.requests < before.requests or after.executions < before.executions:
        return Snapshot(0, 0, 0, 0, 0)
    return before


def difference(before: Snapshot, after: Snapshot) -> Server:
    """What the server did between two readings. One that has been restarted counts from zero
    again: then the later reading is taken as it is."""
    before = since(before, after)
    timed = max(after.timed - before.timed, 0)
    executions = after.executions - before.executions
    sizes = {
        str(size): count - before.batch_sizes.get(size, 0)
        for size, count in sorted(after.batch_sizes.items())
        if count > before.batch_sizes.get(size, 0)
    }
    return Server(
        source=after.source,
        requests=after.requests - before.requests,
        executions=executions,
        queue_us=max(after.queue_ns - before.queue_ns, 0) / 1e3 / max(timed, 1),
        execute_us=max(after.execute_ns - before.execute_ns, 0) / 1e3 / max(timed, 1),
        batch_rows=max(after.rows - before.rows, 0) / max(executions, 1),
        batch_sizes=sizes,
    )
