"""Builds the gateway, starts it, stops it: in one readable place."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from time import perf_counter
from typing import Any

from gateway.admission import Admission
from gateway.artifacts.cache import Cache
from gateway.batching.clock import LoopClock
from gateway.codecs.oip_grpc import GrpcCodec
from gateway.codecs.oip_rest import RestCodec
from gateway.config import Config, is_loopback, split_address
from gateway.control.changes import Changes
from gateway.control.controls import Controls
from gateway.control.deploying import Deploying
from gateway.control.repository import UNLOAD_DEPENDENTS, Repository
from gateway.errors import ConfigError, ModelLoadError
from gateway.facts import Facts
from gateway.history.base import History
from gateway.history.off import NoHistory
from gateway.history.recorder import Recorder
from gateway.host import PipelineHost
from gateway.isolation.nursery import Nursery
from gateway.lifecycle.loader import Loader
from gateway.lifecycle.manager import Manager
from gateway.pipeline import Pipeline
from gateway.registries.base import Elsewhere, Registry, Snapshot
from gateway.registries.deployment_mlflow import MlflowUris
from gateway.registries.deployments import DeploymentsRegistry
from gateway.registries.directory import DirectoryRegistry
from gateway.registries.files import SETTLE_SECONDS
from gateway.registries.first_looks import FirstLook, first_looks
from gateway.registries.merged import Merged
from gateway.registries.sources import open_registry
from gateway.routing import Router
from gateway.servable import Servable
from gateway.servers.admin import Admin
from gateway.servers.deployments import Deployments
from gateway.servers.docs import documentation_routes
from gateway.servers.generate import Generate
from gateway.servers.grpc_aio import GrpcioServer
from gateway.servers.grpc_service import GrpcService
from gateway.servers.history import HistoryApi
from gateway.servers.hooks import Hooks
from gateway.servers.http import HttpServer, MetricsServer
from gateway.servers.http_app import make_app
from gateway.servers.http_state import HttpState
from gateway.servers.invocations import Invocations
from gateway.servers.metrics_page import MetricsPage
from gateway.servers.repository import RepositoryRoutes
from gateway.state import StateDir, state_path
from gateway.telemetry.access import access_log
from gateway.telemetry.logs import log
from gateway.telemetry.metrics import Collector
from gateway.threads import in_thread
from gateway.trust import Trust
from runtimes.cpus import usable_cores
from runtimes.discovery import load_runtimes

LAST_WORDS = 0.1
"""Seconds that a draining gateway goes on refusing requests before it closes its ports."""
SWITCH_INTERVAL = 0.001
"""Seconds after which a busy thread must let another one have the GIL."""
LINGER = 0.2
"""Seconds without a request after which ports may close, and how long that is waited for."""
LINGER_MOST = 2.0


SETTLING = 3.0
"""Most seconds that a load waits for files that are being written."""


class Gateway:
    """Everything, wired together. Made and used on a running event loop."""

    def __init__(self, config: Config) -> None:
        loop = asyncio.get_running_loop()
        self.config = config
        self.started = time.time()
        self.state = StateDir(state_path(config.state_dir))
        self.registries: list[Registry] = [
            open_registry(source, config, self.state) for source in config.sources
        ]
        in_mlflow = MlflowUris(config)
        self.deployments = DeploymentsRegistry(self.state, in_mlflow.origin)
        self.registries.append(self.deployments)
        self._models = Merged(self.registries)
        self.controls = Controls(config.control, self.state, self._models.owner)

        # core: routing table, admission, lifecycle
        self.router: Router[Servable] = Router()
        self.admission = Admission(config.limits)
        self.pipeline = Pipeline(self.router, self.admission)
        host = PipelineHost(self.pipeline, loop)
        self.nursery = Nursery(loop, config.batching, host)
        loader = Loader(
            load_runtimes(),
            config.batching,
            LoopClock(loop),
            Trust(config.trust.code or ()),
            host,
            self.nursery,
        )
        self.cache = Cache(self.state, config.cache)
        self.manager = Manager(loader, self.router, config.lifecycle, self.cache)
        self.pipeline.demand = self.manager.demand
        self.facts = Facts(self.manager, self.router)
        self.facts.decided = self.controls.status
        if config.control.enabled:
            self.facts.extensions += (UNLOAD_DEPENDENTS,)
        self.history: History = NoHistory()
        if config.history.enabled:
            self.history = Recorder(
                config.history,
                self.state,
                self.manager,
                self.router,
                lambda name: self._models.owner(name).source,
            )
        collector = Collector(self.facts, self.manager, self.pipeline, self._troubles)
        metrics = MetricsPage(collector.pieces)

        # edges: HTTP and gRPC over the same pipeline
        shared = HttpState(config, self.pipeline, RestCodec(config.limits), self.facts)
        self.changes = Changes(
            config.control,
            self.controls,
            self.facts,
            self.manager,
            self.history,
            self._models.owner,
            self.look,
        )
        repository = Repository(config, self.changes)
        admin = Admin(config, self.facts, self.changes, self.status)
        self.deploying = Deploying(
            self.deployments,
            self.controls,
            self.changes,
            self.facts,
            self.manager,
            self.history,
            self._models.owner,
            lambda: self._apply(self.deployments, self.deployments.scan()),
            in_mlflow.resolve,
            config.control.load_seconds,
        )
        deployments = Deployments(config, self.deploying)
        more = [
            *Generate(shared).routes(),
            *Invocations(shared).routes(),
            *admin.routes(),
            *deployments.routes(),
            *RepositoryRoutes(shared, repository).routes(),
            *HistoryApi(config, self.facts, self.history).routes(),
            *Hooks(config.mlflow.webhook_secret, self._hint_mlflow).routes(),
            *documentation_routes(),
            metrics.route(),
        ]
        app = make_app(shared, more)
        self.http = HttpServer(shared, app)
        self.metrics = (
            MetricsServer(config.telemetry.metrics_address, metrics)
            if config.telemetry.metrics_address
            else None
        )
        self._grpc_codec = GrpcCodec(config.limits)
        self._grpc_service = GrpcService(self.facts, repository)
        self.grpc: GrpcioServer | None = None
        self.native: Any = None
        self.grpc_port = 0
        self.grpc_server, self.grpc_why = grpc_server_choice(config)
        self._socket_folder: tempfile.TemporaryDirectory[str] | None = None
        self._watchers: list[asyncio.Task[None]] = []

    # --- start

    async def start(self, *, announce: Callable[[], object] | None = None) -> None:
        """Opens the ports, then loads the models and waits until each is ready or failed.

        `announce` is called once the ports are open. Raises `SetupError`: for a port or
        source that cannot be used, and with `strict` for a model that fails.
        """
        await in_thread(self.controls.start, self.registries)
        watch = self.config.registry.watch
        began = self.controls.moment
        first = await first_looks(self.registries, watched=watch and not self.config.strict)
        await self.http.start()
        if self.metrics is not None:
            await self.metrics.start()
        await self._start_grpc()
        await self.history.start(self._own_name())
        for look in first:
            self._apply(look.registry, look.snapshot)
        self.manager.apply(*self.controls.uploaded_alone())
        self.deploying.started = True
        if announce is not None:
            announce()
        for look in first:
            if watch or look.late is not None:
                self._watchers.append(asyncio.create_task(self._watch(look, began, on=watch)))
        settled = await self.manager.wait_settled(self.config.startup_timeout)
        if not settled:
            log.warning("some models are still loading after %g s", self.config.startup_timeout)
        failed = self.manager.failed()
        if self.config.strict and (failed or not settled):
            raise ModelLoadError(
                "; ".join(f"{name}: {cause}" for name, cause in failed.items())
                or "some models did not load in time (startup_timeout)"
            )
        access_log.start(self.config.telemetry.access_log)

    async def _start_grpc(self) -> None:
        config = self.config
        host, port = split_address(config.grpc.address, "grpc.address")
        shared = (self.pipeline, self._grpc_codec, self._grpc_service)
        if self.grpc_server == "grpcio":
            try:
                self.grpc = GrpcioServer(
                    f"{bracketed(host)}:{port}",
                    *shared,
                    self.manager,
                    config.limits,
                    config.grpc.send_timeout,
                )
            except RuntimeError:
                raise ConfigError(port_taken("grpc", config.grpc.address)) from None
            self.grpc_port = self.grpc.port
            await self.grpc.start()
            return
        from gateway.servers.grpc_native import NativeGrpcServer

        # What it would log beside, such as a port in use, is in our error.
        logging.getLogger("pygrpc_native").setLevel(logging.ERROR)
        self._socket_folder = tempfile.TemporaryDirectory(prefix="sluice-")
        path = os.path.join(self._socket_folder.name, "grpc.sock")
        self.grpc = GrpcioServer(
            f"unix:{path}", *shared, self.manager, config.limits, config.grpc.send_timeout
        )
        await self.grpc.start()
        try:
            self.native = NativeGrpcServer(
                f"{bracketed(host)}:{port}",
                *shared,
                config.limits,
                io_threads=config.grpc.io_threads,
                poll_us=config.grpc.poll_us if usable_cores() > 1 else 0,
                fallback=path,
            )
            self.native.start()
        except (OSError, RuntimeError, ValueError):
            raise ConfigError(port_taken("grpc", config.grpc.address)) from None
        self.grpc_port = self.native.port

    # --- the wanted state

    def _apply(self, registry: Registry, snapshot: Snapshot, began: int | None = None) -> None:
        """Hands a registry's wanted state to the lifecycle; `began`: see `Controls.take`."""
        self.manager.apply(*self.controls.take(*self._models.take(registry, snapshot), began))

    async def look(self, registry: Registry | None, *, settled: bool = False) -> bool:
        """See `gateway.control.loading.Look`."""
        if registry is None:
            looks = (self.look(each, settled=settled) for each in self.registries)
            return all(await asyncio.gather(*looks))
        if self.config.registry.watch and not (settled and isinstance(registry, DirectoryRegistry)):
            registry.hint()
            return False
        end = time.monotonic() + SETTLING
        while True:
            began = self.controls.moment
            self._apply(registry, await in_thread(registry.scan), began)
            unsettled = isinstance(registry, DirectoryRegistry) and registry.unsettled
            if not (settled and unsettled) or time.monotonic() > end:
                return True
            await asyncio.sleep(SETTLE_SECONDS / 2)

    def _hint_mlflow(self) -> None:
        for registry in self.registries:
            if registry.source.startswith("mlflow+"):
                registry.hint()

    async def _watch(self, look: FirstLook, began: int, *, on: bool) -> None:
        """Waits for a late first look, and then goes on watching, if it is to (`on`)."""
        registry = look.registry

        async def changed(snapshot: Snapshot) -> None:
            self._apply(registry, snapshot)

        while True:
            try:
                if (late := await look.answer()) is not None:
                    self._apply(registry, late, began)
                if not on:
                    return
                await registry.watch(changed)
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("watching %s failed; trying again", registry.source)
                await asyncio.sleep(self.config.registry.poll_seconds)

    # --- state

    def addresses(self) -> dict[str, str]:
        """Where the gateway listens."""
        http_host, _ = split_address(self.config.http.address, "http.address")
        grpc_host, _ = split_address(self.config.grpc.address, "grpc.address")
        http = f"http://{bracketed(shown(http_host))}:{self.http.port}"
        metrics = f"{http}/metrics"
        if self.metrics is not None:
            metrics = f"http://{self.config.telemetry.metrics_address.rpartition(':')[0]}:{self.metrics.port}/metrics"
        return {
            "http": http,
            "grpc": f"{bracketed(shown(grpc_host))}:{self.grpc_port}",
            "metrics": metrics,
        }

    def status(self) -> dict[str, Any]:
        """The gateway as the admin API tells it."""
        troubles = self._troubles()
        return {
            "ready": self.facts.ready,
            "draining": self.admission.draining,
            "started": self.started,
            "pid": os.getpid(),
            "addresses": self.addresses(),
            "grpc_server": self.grpc_server,
            "sources": list(troubles),
            "unreachable": {source: why for source, why in troubles.items() if why},
            "failed": self.facts.failed(),
            "in_flight": self.admission.in_flight,
        }

    def _troubles(self) -> dict[str, str]:
        """Source → why it cannot be read now; empty where it can."""
        return {
            registry.source: registry.trouble
            for registry in self.registries
            if registry is not self.deployments or self.deployments.names()
        }

    def _own_name(self) -> str:
        """The gateway's name in the history: no other one has it at the same time."""
        return self.config.history.gateway or f"{socket.gethostname()}:{self.http.port}"

    # --- stop

    async def drain(self, grace: float) -> None:
        """Readiness false, answer on for `grace` seconds, then refuse new requests and wait for
        those in flight."""
        assert self.grpc is not None
        self.facts.draining = True
        await self.grpc.refresh_health(ready=False)
        if grace:
            await asyncio.sleep(grace)
        self.admission.draining = True
        self.http.stop_keeping_alive()
        now = perf_counter()
        deadline = now + self.config.drain.timeout
        # What is on the wire already is refused in words, not by a closed connection.
        listen_on = now + LAST_WORDS
        while perf_counter() < (deadline if self.admission.in_flight else listen_on):
            await asyncio.sleep(0.01)
        if self.admission.in_flight:
            log.warning("%d requests did not end in time", self.admission.in_flight)
        await self._refuse_stragglers()

    async def _refuse_stragglers(self) -> None:
        """Waits until nobody has asked in vain for a moment: what is under way to us when a
        port closes would be lost without an answer."""
        end = perf_counter() + LINGER_MOST
        quiet_at = perf_counter() + LINGER
        refused = self.pipeline.refused.total()
        while perf_counter() < min(quiet_at, end):
            await asyncio.sleep(0.01)
            if refused != self.pipeline.refused.total() or self.admission.in_flight:
                refused = self.pipeline.refused.total()
                quiet_at = perf_counter() + LINGER

    async def close(self) -> None:
        """Closes ports and models."""
        self.cache.close()
        for watcher in self._watchers:
            watcher.cancel()
        await self.changes.close()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for registry in self.registries:
            if isinstance(registry, Elsewhere):
                await in_thread(registry.close)
        if self.native is not None:
            self.native.end_calls()
            await asyncio.to_thread(self.native.close)
        if self.grpc is not None:
            await self.grpc.close()
        await self.http.close()
        if self.metrics is not None:
            await self.metrics.close()
        await self.history.close()
        await self.manager.close()
        await self.nursery.close()
        access_log.stop()
        if self._socket_folder is not None:
            self._socket_folder.cleanup()
        gc.unfreeze()


def tune_process() -> None:
    """What is set once for a process that does nothing but serve, after start-up."""
    # What lives until the end need not be looked at by every collection.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    sys.setswitchinterval(SWITCH_INTERVAL)


def grpc_server_choice(config: Config) -> tuple[str, str]:
    """``native`` or ``grpcio``, and why. Raises `ConfigError` when the native one is missing."""
    asked = config.grpc.server
    if asked == "grpcio":
        return "grpcio", "as configured"
    try:
        import pygrpc_native  # noqa: F401
    except ImportError:
        if asked == "native":
            raise ConfigError(
                "grpc.server is native, but pygrpc-native is not installed on this platform; "
                "use grpc.server: grpcio"
            ) from None
        return "grpcio", "pygrpc-native is not installed"
    if asked == "native":
        return "native", "as configured"
    host, _ = split_address(config.grpc.address, "grpc.address")
    if is_loopback(host):
        return "native", "loopback"
    if config.grpc.trusted_network:
        return "native", "grpc.trusted_network is set"
    return "grpcio", (
        "the port is reachable from outside; set grpc.trusted_network for the faster native server"
    )


def port_taken(what: str, address: str) -> str:
    return f"cannot listen on {what}.address {address}: it is in use, or not this machine's"


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def shown(host: str) -> str:
    """The host as a client on this machine would write it."""
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host
