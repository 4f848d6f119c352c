"""What the gateway can say of itself and its models, the same for every protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from gateway.errors import (
    ModelNotReady,
    NotLoaded,
    SluiceError,
    UnknownModel,
    UnknownVersion,
    without_folders,
)
from gateway.lifecycle.budget import MIB
from gateway.lifecycle.manager import Manager
from gateway.lifecycle.model import ManagedModel
from gateway.lifecycle.routes import by_age
from gateway.lifecycle.states import Record, State
from gateway.registries.config_pbtxt_message import model_config_message
from gateway.routing import Router, unknown_model
from gateway.servable import Servable
from gateway.telemetry.stats import Duration, ServableStats
from gateway.tensors import TensorSpec
from gateway.times import local_time
from runtimes.interface import ForwardingModel

NAME: Final = "sluicegate"
EXTENSIONS: Final = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)
_TRITON_STATES: Final = {
    State.KNOWN: "LOADING",
    State.FETCHING: "LOADING",
    State.LOADING: "LOADING",
    State.WARMING: "LOADING",
    State.READY: "READY",
    State.DRAINING: "UNLOADING",
    State.UNLOADED: "UNAVAILABLE",
    State.FAILED: "UNAVAILABLE",
}


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of a model as one version has it."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Facts:
    """Answers about server and models. Owned by the event loop."""

    def __init__(self, manager: Manager, router: Router[Servable]) -> None:
        self._manager = manager
        self._router = router
        self.draining = False
        """Set at the first signal to stop; requests are still answered for the grace time."""
        self.extensions: tuple[str, ...] = EXTENSIONS
        self.decided: Callable[[str], Mapping[str, Any]] = lambda name: {}
        """What people have decided about a model, beside its split."""

    # --- health

    @property
    def live(self) -> bool:
        return True

    @property
    def ready(self) -> bool:
        """Every model ready or failed, at least one ready, and not shutting down."""
        return self._manager.ready and not self.draining

    def failed(self) -> dict[str, str]:
        return self._manager.failed()

    def model_ready(self, model: str, version: str = "") -> bool:
        """Whether it answers: now, or once a request has had it loaded. Raises `UnknownModel` or
        `UnknownVersion`."""
        try:
            self.servable(model, version)
        except NotLoaded as error:
            outlook = self._manager.on_demand.outlook(error.model, error.version)
            return not isinstance(outlook, SluiceError)
        except ModelNotReady:
            return False
        return True

    # --- metadata

    def servable(self, model: str, version: str = "") -> Servable:
        """The version named, or the default one (the stable one where it is ready).

        Raises `UnknownModel`, `UnknownVersion` or `ModelNotReady`.
        """
        route = self._router.route(model)
        if version:
            return route.named(version)[0]
        if route.stable is not None and route.stable in route.versions:
            return route.versions[route.stable]
        return route.default(None, lambda: 0.0)[0]

    def model_names(self) -> list[str]:
        """Every model with at least one version that is ready, or loaded on demand."""
        return sorted(
            name for name, route in self._router.table.items() if route.versions or route.on_demand
        )

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """Raises like `servable`."""
        servable = self.servable(model, version)
        versions = (servable.version,) if version else tuple(self._router.route(model).versions)
        return ModelMetadata(
            servable.name,
            tuple(sorted(versions, key=lambda v: (len(v), v))),
            servable.model.platform,
            servable.contract.inputs,
            servable.contract.outputs,
        )

    def config(self, model: str, version: str = "") -> Any:
        """Triton's ModelConfig message. Raises like `servable`."""
        servable = self.servable(model, version)
        return model_config_message(
            servable.name,
            servable.settings,
            [(t.name, t.datatype.name, t.shape) for t in servable.contract.inputs],
            [(t.name, t.datatype.name, t.shape) for t in servable.contract.outputs],
            max_batch_size=servable.max_batch_size,
            runtime=servable.runtime,
            instances=servable.dispatcher.instances,
            decoupled=servable.decoupled,
        )

    # --- statistics

    def servables(self, model: str = "", version: str = "") -> list[Servable]:
        """The ready versions, of one model or of all.

        Raises `UnknownModel`, `UnknownVersion`, or `ModelNotReady` for one that is named.
        """
        if model:
            if version:
                return [self.servable(model, version)]
            return list(self._router.route(model).versions.values())
        return [s for route in self._router.table.values() for s in route.versions.values()]

    # --- the repository

    def index(self, *, only_ready: bool = False) -> list[dict[str, str]]:
        """Name, version, state and reason of every version, in Triton's words."""
        found: list[dict[str, str]] = []
        for name, record in self.records():
            if record is None:
                if not only_ready:
                    aspired = self._manager.models[name].aspired
                    # Triton's word, which its clients look for.
                    reason = aspired.error or ("unloaded" if aspired.unloaded else "")
                    found.append(
                        {"name": name, "state": "UNAVAILABLE", "reason": without_folders(reason)}
                    )
            elif not only_ready or record.state == State.READY:
                found.append(
                    {
                        "name": name,
                        "version": record.version,
                        "state": _TRITON_STATES[record.state],
                        "reason": without_folders(record.cause)
                        if record.state == State.FAILED
                        else "",
                    }
                )
        return found

    def records(self) -> Iterator[tuple[str, Record | None]]:
        """Every version of every model; `None` for a model that has none."""
        for name, model in sorted(self._manager.models.items()):
            records = sorted(model.records, key=lambda r: (len(r.version), r.version, r.since))
            if not records:
                yield name, None
            for record in records:
                yield name, record

    def status(self, name: str) -> dict[str, Any]:
        """One model as the admin API tells it. Raises `UnknownModel`."""
        model = self.managed(name)
        route = self._router.table.get(name)
        weights = dict(route.effective) if route is not None else {}
        total = sum(weights.values()) or 1.0
        versions = [
            {
                **version_status(record, weights.get(record.version, 0.0) / total * 100),
                **self._memory(record),
                **refused_status(model, record),
            }
            for record in sorted(model.records, key=lambda r: (len(r.version), r.version, r.since))
        ]
        versions += put_away(model)
        traffic = model.traffic
        return {
            "name": name,
            "state": state_of(model),
            "error": model.aspired.error,
            "stable": route.stable if route is not None else traffic.stable_version(),
            "weights": dict(traffic.weights),
            "labels": dict(route.labels) if route is not None else {},
            "versions": versions,
            "on_disk": list(model.aspired.on_disk),
            "inputs": self._tensors(name, "inputs"),
            "outputs": self._tensors(name, "outputs"),
            "image": image_of(model),
            "decoupled": self._decoupled(name),
            **self.decided(name),
        }

    def statuses(self) -> Iterator[dict[str, Any]]:
        """Every model as the admin API tells it, but for those that go meanwhile."""
        for name in self.names():
            with suppress(UnknownModel):
                yield self.status(name)

    def load_log(self, name: str, version: str) -> str:
        """What happened in the last loads of a version: the causes in full, as far as it is kept.

        Raises `UnknownModel` or `UnknownVersion`.
        """
        model = self.managed(name)
        log = model.logs.get(version)
        if log is None:
            known = {*model.aspired.versions, *model.aspired.on_disk}
            if version not in known:
                raise UnknownVersion(name, version, tuple(sorted(known, key=by_age)))
            return ""
        return log.text()

    def _memory(self, record: Record) -> dict[str, Any]:
        """What a version counts for in the memory budget, where that is known."""
        size = self._manager.memory.held.get(record)
        return {"memory_mb": round(size / MIB, 1)} if size else {}

    def managed(self, name: str) -> ManagedModel:
        """Raises `UnknownModel`."""
        model = self._manager.models.get(name)
        if model is None:
            raise unknown_model(name, self._manager.models)
        return model

    def names(self) -> list[str]:
        return sorted(self._manager.models)

    def _decoupled(self, name: str) -> bool:
        """Whether a request may have any number of answers."""
        try:
            return self.servable(name).decoupled
        except SluiceError:
            return False

    def _tensors(self, name: str, which: str) -> list[dict[str, Any]]:
        try:
            servable = self.servable(name)
        except SluiceError:
            return []
        specs: tuple[TensorSpec, ...] = getattr(servable.contract, which)
        return [tensor_json(spec) for spec in specs]


def state_of(model: ManagedModel) -> str:
    """The state of a model as a whole."""
    if model.ready:
        return "ready"
    if model.on_demand and model.available:
        return "loading" if model.records else "on demand"
    if model.aspired.unloaded and not model.records:
        return "unloaded"
    return "failed" if model.settled else "loading"


def put_away(model: ManagedModel) -> list[dict[str, Any]]:
    """The versions of an on-demand model that are not loaded now."""
    if not model.on_demand:
        return []
    present = {record.version for record in model.records}
    found: list[dict[str, Any]] = []
    for version in model.aspired.versions:
        if version in present:
            continue
        status: dict[str, Any] = {"version": version, "state": "on demand", "cause": ""}
        used = model.used.get(version)
        if used is not None:
            status["last_used"] = used
            status["cause"] = f"last used {local_time(used)}"
        found.append(status)
    return found


def refused_status(model: ManagedModel, record: Record) -> dict[str, Any]:
    """Why a ready version gets nothing of the split."""
    why = model.refused.get(record.version)
    if why is None or record.state != State.READY:
        return {}
    return {"cause": "; ".join(filter(None, (why, record.cause)))}


def image_of(model: ManagedModel) -> dict[str, Any] | None:
    import msgspec

    image = model.aspired.settings.image
    return None if image is None else msgspec.to_builtins(image)


def tensor_json(spec: TensorSpec) -> dict[str, Any]:
    """A tensor as in the metadata answer."""
    return {"name": spec.name, "datatype": spec.datatype.name, "shape": list(spec.shape)}


def version_status(record: Record, share: float) -> dict[str, Any]:
    """One version as the admin API tells it; `share` in percent, latencies in milliseconds."""
    servable = record.servable
    status: dict[str, Any] = {
        "version": record.version,
        "state": str(record.state),
        "since": record.since,
        "cause": record.cause or record.progress,
        "runtime": record.runtime,
        "share": round(share, 3),
    }
    if servable is not None:
        stats = servable.stats
        status["max_batch_size"] = servable.max_batch_size
        status["requests"] = stats.success.count + stats.fail.count
        status["failed"] = stats.fail.count
        status["pending"] = servable.dispatcher.pending
        status |= servable.dispatcher.status()
        if isinstance(servable.model, ForwardingModel):  # whoever forms its batches
            status |= servable.model.status()
        for name, quantile in (("p50_ms", 0.5), ("p99_ms", 0.99)):
            status[name] = latency_ms(stats, quantile)
    return status


def latency_ms(stats: ServableStats, quantile: float) -> float | None:
    """A quantile of the request latency over all protocols, in milliseconds, from the buckets."""
    from gateway.telemetry.stats import Histogram

    merged = Histogram()
    for histogram in list(stats.request_seconds.values()):
        merged.counts = [a + b for a, b in zip(merged.counts, histogram.counts, strict=True)]
    value = merged.quantile(quantile)
    return None if value is None else round(value * 1000, 3)


def statistics_json(servable: Servable) -> dict[str, Any]:
    """One entry of `model_stats`, as Triton's statistics extension has it."""
    stats = servable.stats

    def duration(d: Duration) -> dict[str, int]:
        return {"count": d.count, "ns": d.ns}

    none = {"count": 0, "ns": 0}
    return {
        "name": servable.name,
        "version": servable.version,
        "last_inference": stats.last_inference,
        "inference_count": stats.inference_count,
        "execution_count": stats.execution_count,
        "inference_stats": {
            "success": duration(stats.success),
            "fail": duration(stats.fail),
            "queue": duration(stats.queue),
            "compute_input": duration(stats.compute_input),
            "compute_infer": duration(stats.compute_infer),
            "compute_output": duration(stats.compute_output),
            "cache_hit": none,
            "cache_miss": none,
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": duration(size.compute_input),
                "compute_infer": duration(size.compute_infer),
                "compute_output": duration(size.compute_output),
            }
            for rows, size in sorted(stats.batch_sizes.items())
        ],
        "response_stats": {
            str(index): {"compute_infer": duration(each), "success": duration(each)}
            for index, each in enumerate(stats.answers)
        },
        "memory_usage": [],
    }
