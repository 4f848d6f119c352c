"""What is to be sent: where to, how fast, for how long."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Protocol(StrEnum):
    """How a request is put on the wire."""

    GRPC = "grpc"
    """``ModelInfer``, raw tensors."""
    STREAM = "stream"
    """``ModelStreamInfer``: each request on one of the streams, answered by its final response."""
    BINARY = "binary"
    """HTTP, Open Inference Protocol, tensors as bytes behind a JSON head, both ways."""
    JSON = "json"
    """HTTP, Open Inference Protocol, plain JSON both ways."""
    V1 = "v1"
    """HTTP, KServe's ``:predict``."""
    INVOCATIONS = "invocations"
    """HTTP, MLflow's ``/invocations``."""

    @property
    def http(self) -> bool:
        """Whether it goes over HTTP/1.1."""
        return self not in (Protocol.GRPC, Protocol.STREAM)


class Target(msgspec.Struct, frozen=True):
    """A model on a server."""

    model: str
    protocol: Protocol = Protocol.GRPC
    http: str = ""
    """Base address, ``http://host:port``; also where the statistics are read."""
    grpc: str = ""
    """``host:port``."""
    version: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    """Sent with every request (gRPC: as metadata); a token, say."""
    ca_file: str = ""
    """Certificates of the authority that the server's is checked against; TLS for ``grpc``."""


class Load(msgspec.Struct, frozen=True):
    """One level of load. Either ``rate`` (open loop) or ``concurrency`` (closed loop) is set."""

    rate: float = 0.0
    """Requests a second, sent at times chosen before, whether or not answers come."""
    arrivals: str = "poisson"
    """``poisson`` (independent callers) or ``constant`` (equal distances). Open loop only."""
    concurrency: int = 0
    """Requests in flight: the next one leaves when one is answered."""
    connections: int = 0
    """Connections; 0: one per request in flight over HTTP/1.1, four at most over gRPC."""
    seconds: float = 10.0
    """How long is measured, after the warm-up."""
    warmup_s: float | None = None
    """Seconds before that; ``None``: until latencies have settled (`loadtests.bench.warmup`)."""
    timeout_s: float = 30.0
    """A request that has no answer by then, counted from when it was due, has failed."""
    max_in_flight: int = 10_000
    """Open loop: requests that are due while so many wait are counted as failed (``overrun``)."""
    processes: int = 1
    """Processes that send; the load is divided between them."""
    seed: int = 1

    @property
    def open(self) -> bool:
        """Whether the times of the requests are set beforehand."""
        return self.rate > 0

    @property
    def name(self) -> str:
        """``500/s`` or ``c16``."""
        return f"{self.rate:g}/s" if self.open else f"c{self.concurrency}"
