"""What a benchmark found: the document that is written as JSON, drawn, and compared.

Times are in microseconds where a name ends in ``_us``, seconds where it ends in ``_s``. In an open
loop a latency counts from the moment at which the request was *due*, so that a server (or a client)
that falls behind is not flattered by the requests it kept from being sent: "coordinated omission"
(Gil Tene). Histograms are HdrHistograms, 1 µs to one hour, three significant digits, in the
compressed V2 encoding, base64: other HdrHistogram tools read them. Without the package hdrhistogram
they are left out.

A percentile is a number whatever it rests on: `Point.known` says how much it is worth.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from loadtests.bench.plan import Load, Target

FORMAT: Final = "sluicegate-bench/1"
PERCENTILES: Final = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 100.0)


FEWEST_BEYOND: Final = 10
"""Requests beyond a percentile, below which it says little."""
Known = Literal["well", "few", "at least"]
"""A percentile: well known; of `few` requests beyond it; known only from below, since the requests
there were not answered."""

OVERRUN: Final = "overrun"
TIMEOUT: Final = "timeout"
CONNECTION: Final = "connection"
"""It was lost, or there was none: a server that is dead must not look better than a slow one."""
UNANSWERED: Final = (OVERRUN, TIMEOUT, CONNECTION)
"""What had no answer; nobody knows when there would have been one."""


class Interval(msgspec.Struct, frozen=True):
    """95 % confidence: both ends."""

    low: float
    high: float


class Latency(msgspec.Struct, frozen=True):
    """Latencies of the requests that were answered well; see `Point.latency` for what else."""

    count: int
    mean_us: float
    percentiles_us: dict[str, float]
    """``"50"``, ``"99"``, ``"99.9"``, ``"100"`` (the largest), ...: see `PERCENTILES`."""
    histogram: str
    """Empty where the client had no hdrhistogram."""
    p50: Interval | None = None
    """In µs; ``None`` where the run was too short to say (`loadtests.bench.confidence`)."""
    p99: Interval | None = None

    def at(self, percentile: float) -> float:
        """µs at a percentile of `PERCENTILES`."""
        return self.percentiles_us[f"{percentile:g}"]

    def few(self, percentile: float) -> bool:
        """Whether fewer than `FEWEST_BEYOND` requests lie beyond a percentile. The largest is what
        it is."""
        beyond = (100 - percentile) / 100 * self.count
        return percentile < 100 and beyond < FEWEST_BEYOND * (1 - 1e-9)


class Client(msgspec.Struct, frozen=True):
    """How the load generator itself fared."""

    cpu: float
    """Cores that its processes used, on average."""
    busiest: float
    """Cores that the busiest of its threads used: near 1, it could not send more."""
    cores: int
    """Cores of the machine that it may use."""
    lag_p99_us: float
    """How late its event loop ran timers, 99th percentile."""
    late_p99_us: float
    """Open loop: how long after they were due requests left, 99th percentile."""
    bottleneck: str = ""
    """Why its figures say more about the client than about the server; empty: they do not."""


class Server(msgspec.Struct, frozen=True):
    """What the server says of the same time. Means over the requests of the model."""

    source: str
    """``statistics`` (the statistics extension) or ``metrics`` (Prometheus text)."""
    requests: int
    executions: int
    queue_us: float
    execute_us: float
    batch_rows: float
    """Rows of a batch, on average."""
    batch_sizes: dict[str, int] = {}
    """Rows of a batch → how many batches of that many rows were executed."""


class Tick(msgspec.Struct, frozen=True):
    """One second or so of a run."""

    at_s: float
    """When it began, from the beginning of the measurement; negative in the warm-up."""
    seconds: float
    sent: int
    ok: int
    failed: int
    p50_us: float | None
    """``None``: nothing was answered."""
    p99_us: float | None
    versions: dict[str, int] = {}
    batch_rows: float | None = None
    """``None``: the server does not say, or executed nothing."""
    queue_us: float | None = None
    execute_us: float | None = None
    client_cpu: float = 0.0
    unanswered: int = 0
    """Of those that failed, requests without an answer: they are in the percentiles, with the
    timeout. In those of the progress they are not."""

    def at_least(self, percentile: float) -> bool:
        """Whether a latency is only known from below."""
        return _unanswered_at(percentile, self.ok + self.unanswered, self.unanswered)


class Point(msgspec.Struct, frozen=True):
    """One level of load, measured."""

    load: Load
    warmup_s: float
    steady: bool
    """Whether the warm-up ended because latencies had settled, or was given."""
    seconds: float
    sent: int
    ok: int
    errors: dict[str, int]
    """What went wrong → how often: ``429``, ``RESOURCE_EXHAUSTED``, ``timeout``, ``connection``,
    ``overrun``, ..."""
    rate: float
    """Requests/s that were answered well, by when they were answered."""
    rate_ci: Interval | None
    latency: Latency
    """From when a request was due (open loop) or issued (closed loop; the wait for a connection is
    part of it). Requests that were not answered (`Point.unanswered`) count with the timeout."""
    service: Latency
    """From when it left; of those answered well."""
    error_latency: Latency | None
    """Of those that were answered with an error."""
    versions: dict[str, int]
    """Version → answers; empty where the server does not say which."""
    ticks: list[Tick]
    client: Client
    server: Server | None = None
    silent_s: float = 0.0
    """Seconds, in stretches of one and more, in which not one good answer came although many were
    to be expected."""

    @property
    def unanswered(self) -> int:
        """Requests without an answer: timeouts, lost connections, and those that were not even sent
        (overruns)."""
        return sum(self.errors.get(kind, 0) for kind in UNANSWERED)

    def at_least(self, percentile: float) -> bool:
        """Whether the latency at a percentile is only known to be the timeout or more."""
        return _unanswered_at(percentile, self.latency.count, self.unanswered)

    def known(self, percentile: float) -> Known:
        """What the latency at a percentile is worth."""
        if self.at_least(percentile):
            return "at least"
        return "few" if self.latency.few(percentile) else "well"

    @property
    def failed(self) -> int:
        """Requests that were not answered well."""
        return sum(self.errors.values())

    @property
    def error_rate(self) -> float:
        """Share of the requests that failed, 0 to 1."""
        return self.failed / max(self.sent, 1)


def _unanswered_at(percentile: float, count: int, unanswered: int) -> bool:
    """Whether a percentile of so many latencies is that of a request without an answer."""
    # Less than the error of the product.
    rank = percentile * count / 100 - 1e-9 * count
    return unanswered > 0 and rank > count - unanswered


class Search(msgspec.Struct, frozen=True):
    """The highest load that meets an objective, and the loads that were tried."""

    objective: str
    """As given: ``p99<=20ms``."""
    best: float | None
    """Requests/s (or concurrency); ``None``: even the lowest did not meet it, or the search was not
    `finished`."""
    tried: list[tuple[float, bool]]
    finished: bool = True
    """Whether it was not interrupted."""


class Result(msgspec.Struct, frozen=True):
    """A whole run of ``sluice bench``."""

    started: str
    """UTC, ISO 8601."""
    command: str
    """What was typed."""
    target: Target
    payload: str
    """Where the requests came from, in words."""
    machine: dict[str, str]
    versions: dict[str, str]
    """Of the server, of the client and its libraries."""
    points: list[Point]
    search: Search | None = None
    expected_split: dict[str, float] = {}
    """Version → share (0 to 1) that the server's routing declares; empty: not known."""
    notes: list[str] = []
    keys: str = ""
    """Routing keys that were sent, in words; empty: none."""
    format: str = FORMAT


def dump(result: Result) -> bytes:
    """The JSON document. Tokens in the target's headers are left out."""
    headers = tuple((name, "...") for name, _ in result.target.headers)
    target = msgspec.structs.replace(result.target, headers=headers)
    document = msgspec.json.encode(msgspec.structs.replace(result, target=target))
    return msgspec.json.format(document, indent=1)


def load(document: bytes) -> Result:
    """Reads what `dump` wrote. Raises `ValueError` for anything else, saying what it is."""
    try:
        found = msgspec.json.decode(document, type=Result)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a result of `sluice bench`: {error}") from None
    if found.format != FORMAT:
        raise ValueError(f"format {found.format!r} is not {FORMAT!r}; measure again")
    return found
