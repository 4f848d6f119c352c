"""The gateway's configuration: one typed document from file, environment and flags.

Flags win over the environment, the environment over the file. Every key is documented here;
``docs/configuration.md`` is generated from this module (``python -m gateway.config_docs``)
and a test compares the two.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import yaml
from msgspec import Meta

from gateway.errors import ConfigError
from gateway.model_settings import NaturalInt

ENV_PREFIX = "SLUICE_"
NOT_KEYS = frozenset({"SLUICE_URL", "SLUICE_TOKEN"})
"""Variables with our prefix that the command line reads, as its own options."""
LISTS = frozenset(
    {
        "sources", "trust.code", "mlflow.models", "mlflow.tags", "mlflow.versions",
        "mlflow.local_artifacts", "control.load",
    }
)  # fmt: skip
"""Keys whose value is a list, given as text with commas outside of files."""
MIB = 1024 * 1024


def doc(text: str, **limits: Any) -> Meta:
    return Meta(description=text, **limits)


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section: immutable, unknown keys are refused."""


class HttpConfig(Section, frozen=True, kw_only=True):
    """The HTTP port: Open Inference Protocol, KServe V1, admin API, metrics."""

    address: Annotated[str, doc("Host and port to listen on; port 0 picks a free one.")] = (
        "127.0.0.1:8080"
    )
    keep_alive: Annotated[float, doc("Seconds an idle connection is kept open.", gt=0)] = 75.0
    compress_from: Annotated[
        int,
        doc("Smallest answer in bytes that is compressed for callers that accept it.", ge=0),
    ] = 1024
    request_timeout: Annotated[
        float, doc("Seconds a sender may take from a request's first byte to its last.", gt=0)
    ] = 60.0


class GrpcConfig(Section, frozen=True, kw_only=True):
    """The gRPC port."""

    address: Annotated[str, doc("Host and port to listen on; port 0 picks a free one.")] = (
        "127.0.0.1:8081"
    )
    server: Annotated[
        Literal["auto", "native", "grpcio"],
        doc(
            "Which server carries unary calls. `native` is fast but cannot limit the size of a "
            "message before it is in memory; `auto` uses it on loopback or when "
            "`grpc.trusted_network` is set, and `grpcio` elsewhere."
        ),
    ] = "auto"
    trusted_network: Annotated[
        bool, doc("Every peer that can reach the port is trusted not to send giant messages.")
    ] = False
    poll_us: Annotated[
        int,
        doc(
            "How long, in microseconds after the last call, the event loop looks for more calls on "
            "the native server by itself, which spares them a hop between threads; 0 = never. "
            "On one core it never does.",
            ge=0,
            le=100_000,
        ),
    ] = 300
    io_threads: Annotated[int, doc("Threads of the native server's I/O.", ge=1, le=64)] = 1
    send_timeout: Annotated[
        float,
        doc(
            "Seconds a reader of a stream may leave a message unread; then the stream is ended "
            "and its models are stopped.",
            gt=0,
        ),
    ] = 60.0


class LimitsConfig(Section, frozen=True, kw_only=True):
    """Bounds on what one request, and all together, may take."""

    max_message_bytes: Annotated[
        int, doc("Largest HTTP body (after decompression) or gRPC message, in bytes.", ge=1024)
    ] = 256 * MIB
    max_json_depth: Annotated[
        int, doc("Deepest nesting of lists and objects in a JSON body.", ge=4, le=1000)
    ] = 64
    max_header_bytes: Annotated[
        int, doc("Largest sum of HTTP header bytes or gRPC metadata of a request.", ge=1024)
    ] = 64 * 1024
    max_parameters: Annotated[
        int, doc("Most parameters of a request, its inputs and its outputs together.", ge=1)
    ] = 1024
    max_tensors: Annotated[
        int, doc("Most inputs, and most requested outputs, of a request.", ge=1)
    ] = 1024
    max_in_flight: Annotated[
        int,
        doc("Most requests in the gateway at the same time, without those of models.", ge=1),
    ] = 16384
    max_bytes_in_flight: Annotated[
        int,
        doc(
            "Most bytes of inference bodies over HTTP being received or waiting to be answered.",
            ge=MIB,
        ),
    ] = 2048 * MIB
    max_connections: Annotated[int, doc("Most HTTP connections open at the same time.", ge=1)] = (
        8192
    )


class BatchingConfig(Section, frozen=True, kw_only=True):
    """What holds for the batching of every model."""

    max_batch_size: Annotated[
        int, doc("Largest batch in rows for models that do not say.", ge=1)
    ] = 64
    inline_us: Annotated[
        NaturalInt | None,
        doc(
            "A batch expected to cost at most this many microseconds runs on the event loop, "
            "saving the hop to a thread and back; 0 = never. Not set: 500, and 2500 on two cores "
            "or fewer, where thread and loop would only take turns."
        ),
    ] = None


class LifecycleConfig(Section, frozen=True, kw_only=True):
    """Loading, warming up and unloading of versions."""

    load_threads: Annotated[int, doc("Versions that may load at the same time.", ge=1, le=64)] = 2
    fetch_threads: Annotated[
        int,
        doc("Versions whose files may be fetched at the same time, before they load.", ge=1, le=64),
    ] = 4
    policy: Annotated[
        Literal["availability", "resource"],
        doc(
            "`availability` loads a new version before the old one is unloaded (twice the "
            "memory), `resource` the other way round."
        ),
    ] = "availability"
    retry_seconds: Annotated[
        float, doc("First pause before a failed load is tried again; doubles up to 32 times.", gt=0)
    ] = 10.0
    memory_budget_mb: Annotated[
        int,
        doc(
            "Most memory, in MiB, that the loaded models together may take by what was estimated "
            "before and measured after loading; 0 = no budget.",
            ge=0,
        ),
    ] = 0
    memory_wait: Annotated[
        float,
        doc(
            "Longest time in seconds that a load waits for memory of the budget to become free, "
            "before it has failed and is tried again later.",
            gt=0,
        ),
    ] = 60.0
    on_demand_wait: Annotated[
        float, doc("Longest time in seconds that a request waits for an on-demand model.", ge=0)
    ] = 30.0
    on_demand_waiting: Annotated[
        int, doc("Most requests that wait for on-demand models at the same time.", ge=1)
    ] = 1024
    on_demand_idle: Annotated[
        float,
        doc(
            "Seconds without a request after which an on-demand model is unloaded; 0 = only when "
            "its memory is needed.",
            ge=0,
        ),
    ] = 0.0


class CacheConfig(Section, frozen=True, kw_only=True):
    """The files of models that come from elsewhere, kept in the state directory."""

    max_mb: Annotated[
        int,
        doc(
            "Most MiB of files kept; those that no loaded version uses go first, least recently "
            "used ones before others.",
            ge=1,
        ),
    ] = 20_480
    fetch_threads: Annotated[int, doc("Files fetched at the same time.", ge=1, le=64)] = 4


class RegistryConfig(Section, frozen=True, kw_only=True):
    """How a source is watched for changes."""

    watch: Annotated[bool, doc("Follow changes while serving.")] = True
    poll_seconds: Annotated[
        float,
        doc(
            "How often a source is asked for changes. (For a directory, besides what the system "
            "reports.)",
            gt=0,
        ),
    ] = 5.0


class MlflowConfig(Section, frozen=True, kw_only=True):
    """Sources that are MLflow registries."""

    models: Annotated[
        tuple[str, ...], doc("Name patterns (`*`, `?`) of the registered models to serve.")
    ] = ("*",)
    tags: Annotated[
        tuple[str, ...], doc("Tags, `key` or `key=value`, that a registered model must have.")
    ] = ()
    versions: Annotated[
        tuple[str, ...],
        doc(
            "Versions to serve of each model: `@alias`, `@*` (every alias), `latest`, `latest:3` "
            "or a number. Versions that the split names are served besides."
        ),
    ] = ("@champion", "@challenger")
    stable: Annotated[str, doc("Alias of the version that is stable.")] = "champion"
    canary: Annotated[str, doc("Alias of the version that is the canary.")] = "challenger"
    webhook_secret: Annotated[
        str,
        doc(
            "Secret of MLflow's webhooks to `/hooks/mlflow`, which make the gateway look at once. "
            "Empty: they are refused."
        ),
    ] = ""
    local_artifacts: Annotated[
        tuple[str, ...],
        doc(
            "Directories of this machine that versions may have their files in, where MLflow says "
            "so. (For a registry that is an SQLite file, its own directory besides.)"
        ),
    ] = ()


class AdminConfig(Section, frozen=True, kw_only=True):
    """The control API under `/admin/v1`."""

    token: Annotated[
        str,
        doc("Bearer token that callers must send. Empty: the API answers loopback peers only."),
    ] = ""


class ControlConfig(Section, frozen=True, kw_only=True):
    """Model control: the repository API of the Open Inference Protocol and Triton."""

    enabled: Annotated[
        bool, doc("Callers may load and unload models over the inference ports.")
    ] = False
    token: Annotated[
        str,
        doc(
            "Bearer token that callers must send to load or unload. Empty: `admin.token`; with "
            "neither, loopback peers only."
        ),
    ] = ""
    files: Annotated[
        bool, doc("A load may bring its own files (`file:` parameters), kept in `state_dir`.")
    ] = False
    explicit: Annotated[
        bool,
        doc("Nothing is loaded until somebody asks for it, but the models of `control.load`."),
    ] = False
    load: Annotated[
        tuple[str, ...],
        doc("Models loaded at the start with `control.explicit`; `*` is all of them."),
    ] = ()
    load_seconds: Annotated[
        float, doc("Longest time in seconds that a load by hand may take.", gt=0)
    ] = 300.0


class HistoryConfig(Section, frozen=True, kw_only=True):
    """The record of what was served when, and who changed it."""

    enabled: Annotated[bool, doc("Keep the record.")] = True
    url: Annotated[
        str,
        doc(
            "SQLAlchemy URL of the database, such as `postgresql+psycopg://user@host/db`; empty: "
            "the sqlite file `history.db` in the state directory."
        ),
    ] = ""
    gateway: Annotated[
        str,
        doc(
            "Name of this gateway in the record, which no other gateway has at the same time; "
            "empty: host name and HTTP port."
        ),
    ] = ""


class TrustConfig(Section, frozen=True, kw_only=True):
    """Whose artifacts may execute code. A child process is no sandbox: trust is all there is."""

    code: Annotated[
        tuple[str, ...] | None,
        doc(
            "Directories and sources (and what is below them) whose models may hold code: "
            "`model.py`, MLflow's python_function, AOTInductor packages, custom operators. Not "
            "set: the local directories given on the command line. Empty: none."
        ),
    ] = None


class TelemetryConfig(Section, frozen=True, kw_only=True):
    """Logs and metrics."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], doc("Least severe log line to write.")
    ] = "info"
    log_format: Annotated[Literal["text", "json"], doc("Form of the log lines.")] = "text"
    access_log: Annotated[
        float,
        doc("Share of requests that get a line in the access log: 0 none, 1 all.", ge=0, le=1),
    ] = 0.0
    metrics_address: Annotated[
        str, doc("Host and port for `/metrics` alone; empty: on the HTTP port.")
    ] = ""


class DrainConfig(Section, frozen=True, kw_only=True):
    """What happens at SIGTERM. (At Ctrl-C `grace` counts as 0.)"""

    grace: Annotated[
        float,
        doc("Seconds of answering on while readiness is already false, for load balancers.", ge=0),
    ] = 10.0
    timeout: Annotated[
        float, doc("Most seconds to wait, after that, for requests in flight.", ge=0)
    ] = 30.0


class Config(Section, frozen=True, kw_only=True):
    """The whole configuration."""

    sources: Annotated[
        tuple[str, ...],
        doc(
            "Where models come from: directories, MLflow registries (`mlflow+http://HOST:PORT`), "
            "`s3://` and other stores."
        ),
    ] = ()
    state_dir: Annotated[
        str,
        doc(
            "Directory of what the gateway may lose: fetched files, history, splits of sources "
            "that cannot be written. Empty: `sluicegate` in `$XDG_STATE_HOME` (or in "
            "`~/.local/state`)."
        ),
    ] = ""
    strict: Annotated[bool, doc("A model that fails to load at start-up is fatal.")] = False
    startup_timeout: Annotated[
        float, doc("Seconds to wait at start-up until every model is ready or failed.", gt=0)
    ] = 300.0
    http: HttpConfig = HttpConfig()
    grpc: GrpcConfig = GrpcConfig()
    limits: LimitsConfig = LimitsConfig()
    batching: BatchingConfig = BatchingConfig()
    lifecycle: LifecycleConfig = LifecycleConfig()
    cache: CacheConfig = CacheConfig()
    registry: RegistryConfig = RegistryConfig()
    mlflow: MlflowConfig = MlflowConfig()
    admin: AdminConfig = AdminConfig()
    control: ControlConfig = ControlConfig()
    history: HistoryConfig = HistoryConfig()
    trust: TrustConfig = TrustConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    drain: DrainConfig = DrainConfig()


def load_config(
    path: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[Config, dict[str, str]]:
    """The configuration, and for each key that was set (``grpc.server``) where it came from.

    `flags` are dotted keys to values. Raises `ConfigError` that names the key, its source and
    what to write instead.
    """
    tree: dict[str, Any] = {}
    origin: dict[str, str] = {}
    if path is not None:
        for key, value in flatten(read_yaml(path)).items():
            put(tree, key, value)
            origin[key] = str(path)
    for name, text in sorted((os.environ if environment is None else environment).items()):
        if name.startswith(ENV_PREFIX) and name not in NOT_KEYS:
            key = name[len(ENV_PREFIX) :].lower().replace("__", ".")
            check_key(key, f"environment variable {name}")
            put(tree, key, listed(text) if key in LISTS else text)
            origin[key] = f"environment variable {name}"
    for key, value in (flags or {}).items():
        put(tree, key, value)
        origin[key] = "command line"
    for key in origin:
        check_key(key, origin[key])
    try:
        return msgspec.convert(tree, Config, strict=False), origin
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$.")
        key = where.rstrip("`")
        source = f" ({origin[key]})" if key in origin else ""
        raise ConfigError(
            f"configuration key '{key}'{source}: {text[:1].lower()}{text[1:]}"
        ) from None


def listed(text: str) -> list[str]:
    """The parts of a list with commas, without blanks around them; empty ones are none."""
    return [part for each in text.split(",") if (part := each.strip())]


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises `ConfigError`."""
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values, not a {type(content).__name__}")
    return content


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{key}."))
        else:
            flat[key] = value
    return flat


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        nested = tree.setdefault(name, {})
        if not isinstance(nested, dict):
            return
        tree = nested
    tree[last] = value


def section_keys(section: type[Section] = Config, prefix: str = "") -> dict[str, Any]:
    """Every dotted key → its msgspec field."""
    keys: dict[str, Any] = {}
    hints = get_type_hints(section, include_extras=True)
    for field in msgspec.structs.fields(section):
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, Section):
            keys.update(section_keys(hint, f"{prefix}{field.name}."))
        else:
            keys[f"{prefix}{field.name}"] = field
    return keys


def describe(field: Any) -> tuple[str, str, Any]:
    """Type, description and default of a field of `section_keys`."""
    hint = field.type
    description = ""
    if get_origin(hint) is Annotated:
        hint, *metas = get_args(hint)
        description = next((m.description for m in metas if m.description), "")
    if get_origin(hint) is Literal:
        kind = " or ".join(f"`{value}`" for value in get_args(hint))
    elif get_origin(hint) is tuple:
        kind = "list of str"
    else:
        # `int | None` is an int that may be left out.
        kind = next((each for each in get_args(hint) if each is not type(None)), hint)
        listed = get_origin(kind) is tuple
        kind = (get_args(kind) or (kind,))[0].__name__
        kind = f"list of {kind}" if listed else kind
    return kind, description, field.default


def check_key(key: str, source: str) -> None:
    """Raises `ConfigError` with the nearest known key for an unknown one."""
    known = section_keys()
    if key in known:
        return
    close = get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else "; `sluice config show` lists all keys"
    raise ConfigError(f"unknown configuration key '{key}' ({source}){hint}")


def split_address(address: str, key: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``. Raises `ConfigError`."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{key} '{address}' must be HOST:PORT, such as 127.0.0.1:8080")
    return host.strip("[]") or "0.0.0.0", int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    return host in ("localhost", "::1") or host.startswith("127.")
