"""Everything that can be said about how one model is served, in one typed document.

Two front doors fill it in: ``model.yaml`` (our own) and Triton's ``config.pbtxt``. Nothing
behind this module knows which of the two a setting came from.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PositiveInt = Annotated[int, Meta(ge=1)]
NaturalInt = Annotated[int, Meta(ge=0)]


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every document a person writes: immutable, and unknown keys are refused."""


class TensorSettings(Document, frozen=True, kw_only=True):
    """Declared input or output of a model.

    ``dims`` are without the batch dimension when ``max_batch_size`` is above 0, as in
    Triton; -1 is a dimension of any size. ``reshape`` is what the runtime gets (input) or
    gives (output) where that differs from what clients see, again without the batch
    dimension.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    optional: bool = False
    labels: str | None = None
    """Path of a label file inside the model's folder (outputs only), one label a line."""


class QueueSettings(Document, frozen=True, kw_only=True):
    """Bounds and time limit of the requests that wait for one servable."""

    max_requests: NaturalInt = 0
    """Most requests that may wait; 0 = no bound in requests (rows and bytes still bound)."""
    max_rows: PositiveInt = 8192
    """Most rows that may wait for one servable."""
    max_bytes: PositiveInt = 256 * 1024 * 1024
    """Most bytes of input tensors that may wait for one servable."""
    timeout_us: NaturalInt = 0
    """Longest wait in the queue in microseconds; 0 = the request's own deadline alone."""
    timeout_action: Literal["reject", "delay"] = "reject"
    """What happens at ``timeout_us``: answer 504, or go on at the end of the queue."""
    allow_timeout_override: bool = True
    """Whether a request's own ``timeout`` may shorten ``timeout_us``."""
    overload_wait_us: NaturalInt | None = None
    """Longest expected wait of a new request, in microseconds, while more comes than can be done;
    others are refused. ``None`` = a little more than a batch takes; 0 = refuse nobody for that."""


class PriorityQueueSettings(Document, frozen=True, kw_only=True):
    """What differs from ``queue`` for one priority level; ``None`` keeps the queue's own value."""

    max_requests: NaturalInt | None = None
    timeout_us: NaturalInt | None = None
    timeout_action: Literal["reject", "delay"] | None = None
    allow_timeout_override: bool | None = None


class BatchingSettings(Document, frozen=True, kw_only=True):
    """How requests of one servable are put together."""

    enabled: bool = True
    preferred_sizes: tuple[PositiveInt, ...] = ()
    """Sizes in rows to close a batch at; only matters together with ``max_delay_us``."""
    max_delay_us: NaturalInt = 0
    """Longest time a batch is held open for more rows while the runtime is idle. 0 never waits."""
    preserve_ordering: bool = False
    """Answer requests in the order they came in (batches run one after the other)."""
    priority_levels: NaturalInt = 0
    """Number of levels, 1 the most urgent; 0 = requests carry no priority."""
    default_priority: NaturalInt = 0
    """Level of a request that names none; 0 = the middle level."""
    priority_ageing_us: PositiveInt = 100_000
    """How much later, a level, more urgent requests may come and still go first."""
    queue: QueueSettings = QueueSettings()
    priority_queues: dict[int, PriorityQueueSettings] = {}
    """Per level: what differs from ``queue`` for it."""


class WarmupInput(Document, frozen=True, kw_only=True):
    """One tensor of a warm-up request."""

    datatype: str
    dims: tuple[int, ...]
    source: Literal["zero", "random"] = "random"
    file: str | None = None
    """Raw little-endian bytes in ``<model>/warmup/<file>``; wins over ``source``."""


class WarmupSettings(Document, frozen=True, kw_only=True):
    """A request that is run before a version is published."""

    name: str = ""
    batch_size: NaturalInt = 1
    """Rows put in front of ``dims``; 0 = none."""
    inputs: dict[str, WarmupInput]
    count: NaturalInt = 1


class VersionPolicy(Document, frozen=True, kw_only=True):
    """Which of the versions found are served: the newest ``latest``, all, or those listed.

    Versions that a split or a label names are served besides.
    """

    latest: PositiveInt | None = None
    all: bool = False
    specific: tuple[PositiveInt, ...] = ()


class LimitSettings(Document, frozen=True, kw_only=True):
    """Bounds a model sets for its own callers."""

    max_rows: NaturalInt = 0
    """Most rows one request may hold; 0 = only the queue's bound."""
    max_in_flight: NaturalInt = 0
    """Most requests in flight for one version; 0 = no bound but the queue's."""


class RemoteSettings(Document, frozen=True, kw_only=True):
    """Where the model really runs: another inference server. Also the content of a version's
    ``remote.yaml``, with ``runtime`` beside."""

    urls: tuple[str, ...]
    """``grpc://HOST:PORT``, ``grpcs://``, ``http://`` or ``https://``, one for each replica. A
    name with several addresses stands for a replica at each."""
    model: str = ""
    """The model's name there; empty = the same as here."""
    version: str = ""
    """The version there; empty = whichever that server chooses."""
    batching: Literal["server", "gateway"] = "server"
    """Who forms batches: the server itself (each request is passed on alone), or the gateway."""
    timeout_ms: NaturalInt = 0
    """Longest time for one attempt; 0 = the request's own deadline alone."""
    retries: NaturalInt = 2
    """Most further attempts of one request, where it was not executed yet (or the model is
    ``idempotent``)."""
    retry_share: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """Most retries in proportion to requests, so that a failing server is not flooded."""
    connections: PositiveInt = 1
    """Connections to each replica."""
    health_seconds: Annotated[float, Meta(gt=0)] = 2.0
    """How often each replica is asked whether it is ready."""
    shared_memory: bool = False
    """Hand tensors over in shared memory (Triton on this machine only)."""
    headers: dict[str, str] = {}
    """Sent with each request, e.g. ``authorization``."""
    forward_headers: tuple[str, ...] = ()
    """The caller's headers that are passed on, besides those for tracing."""
    ca_file: str | None = None
    """PEM file of the authorities trusted for TLS; ``None`` = the system's."""


class IsolationSettings(Document, frozen=True, kw_only=True):
    """A child process for each version of the model."""

    python: str | None = None
    """A virtual environment (or its python) to run the child in; ``None`` = the gateway's own."""
    env: dict[str, str] = {}
    """Environment variables of the child, besides the gateway's."""
    memory_mb: NaturalInt = 0
    """Most memory of the child in MiB; 0 = no bound."""
    cpus: NaturalInt = 0
    """Processors that the child may use; 0 = all."""
    hang_seconds: Annotated[float, Meta(gt=0)] = 60.0
    """A batch that takes longer counts as hung: the child is killed and started again."""
    load_seconds: Annotated[float, Meta(gt=0)] = 600.0
    """A load or restart that takes longer has failed: the child is killed."""
    max_restarts: NaturalInt = 5
    """Crashes in a row (with no minute of peace between them) after which the version fails."""
    spare: bool = True
    """Keep a process that has imported the runtime's library ready to take over."""
    fork: bool = True
    """Fork the child from a process that has imported what it needs; ``False`` = start Python
    anew each time."""


class ImageSettings(Document, frozen=True, kw_only=True):
    """How ``sluice infer --image`` turns a picture into this model's input tensor."""

    input: str
    mode: Literal["L", "RGB"] = "L"
    width: PositiveInt
    height: PositiveInt
    scale: float = 1.0
    """Multiplies each pixel (0 to 255) first."""
    offset: float = 0.0
    """Added after ``scale``."""
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    invert: bool = False
    """Dark on light becomes light on dark before scaling."""


class ModelSettings(Document, frozen=True, kw_only=True):
    """One model's settings, from whichever file they came."""

    runtime: str | None = None
    """Name of the runtime; ``None`` = the first installed one that can load the artifact."""
    file: str | None = None
    """The artifact's file (or folder) in a version's folder; ``None`` = the runtime's default."""
    version_files: dict[str, str] = {}
    """Version → file, where one version's file has another name."""
    max_batch_size: NaturalInt | None = None
    """Most rows in one batch. 0 = never batch; ``None`` = found out (at most 64)."""
    inputs: tuple[TensorSettings, ...] = ()
    outputs: tuple[TensorSettings, ...] = ()
    instances: NaturalInt = 0
    """Batches that may run at the same time; 0 = the runtime's default (1 on a CPU)."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    gpus: tuple[NaturalInt, ...] = ()
    """GPU indices to spread the instances over; empty = the first one."""
    versions: VersionPolicy = VersionPolicy(latest=1)
    labels: dict[str, str] = {}
    """Label → version; ``stable`` and ``canary`` come from the split unless named here."""
    batching: BatchingSettings = BatchingSettings()
    limits: LimitSettings = LimitSettings()
    warmup: tuple[WarmupSettings, ...] = ()
    image: ImageSettings | None = None
    isolation: Literal["none", "code", "process"] | IsolationSettings = "none"
    """``process`` (or a mapping with its settings): each version runs in a child process.
    ``code``: those do whose artifact executes code."""
    on_demand: bool = False
    """Loaded at the first request, and unloaded again when idle and others need the memory."""
    memory_mb: NaturalInt = 0
    """Memory of one loaded version in MiB, where it is known better than the runtime's estimate;
    0 = estimated before loading, measured after."""
    signature_change: Literal["refuse", "allow"] = "refuse"
    """What happens to a version of a split whose inputs or outputs differ from the stable one's:
    it gets no share, or its share."""
    idempotent: bool = False
    """Running a request twice does no harm: it is tried again where it may have run already."""
    decoupled: bool = False
    """A request may have any number of answers."""
    remote: RemoteSettings | None = None
    """The server that runs the model, for the runtimes ``triton`` and ``oip``."""
    options: dict[str, str | int | float | bool] = {}
    """The runtime's own options (for ONNX: ``intra_op_threads``, ``graph_optimization``, ...)."""
    declared: Literal["nothing", "model.yaml", "config.pbtxt"] = "nothing"
    """Where the settings came from; an undeclared signature is completed from the artifact."""
    triton_config: str = ""
    """The ``config.pbtxt`` text, for clients that ask for the model's configuration."""
