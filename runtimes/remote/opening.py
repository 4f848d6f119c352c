"""From settings to a model on other servers that answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final, TypeVar

from gateway.codecs.client_grpc import ModelMetadata
from gateway.errors import InvalidModelSettings, ModelLoadError
from gateway.model_settings import RemoteSettings
from gateway.remote_document import location
from runtimes.interface import Artifact, Model
from runtimes.remote.failures import AttemptFailed
from runtimes.remote.pool import Endpoint
from runtimes.remote.replicas import Replicas
from runtimes.remote.settings import remote_of
from runtimes.remote.transport import Connection, Transport

OPEN_SECONDS: Final = 30.0
LISTEN: Final = 0.2
"""Seconds after which a thread that waits for the loop looks if it still runs."""

MISSING: Final = (
    "models on servers that are reached by HTTP need aiohttp; type: pip install 'sluicegate[oip]', "
    "or use the server's grpc:// url"
)

T = TypeVar("T")
M = TypeVar("M", bound=Model)


@dataclass
class Opened:
    """Replicas of which at least one has the model, and what it says of itself."""

    transport: Transport
    replicas: Replicas
    model: ModelMetadata

    async def close(self) -> None:
        """Gives everything back."""
        await self.replicas.close()
        await self.transport.close()


def settings_for(artifact: Artifact, runtime: str) -> RemoteSettings:
    """The remote settings of a version. Raises `ModelLoadError` if there are none."""
    try:
        remote = remote_of(artifact)
    except InvalidModelSettings as error:
        raise ModelLoadError(str(error)) from None
    if remote is None:
        raise ModelLoadError(
            f"runtime '{runtime}' needs to know the server; write into model.yaml: remote: "
            "{url: 'grpc://host:8001'}, or the same keys into the version's remote.yaml"
        )
    return remote[1]


def load_on_loop(artifact: Artifact, work: Callable[[], Coroutine[Any, Any, M]]) -> M:
    """What `work` gives on the gateway's event loop; for the thread that loads.

    Raises `ModelLoadError` where there is no loop, and when it takes too long.
    """
    if artifact.host is None:
        raise ModelLoadError("models on other servers need a gateway to run in")
    loop = artifact.host.loop
    given: list[M] = []
    gone = False
    lock = threading.Lock()

    async def delivered() -> None:
        model = await work()
        with lock:
            if not gone:
                given.append(model)
                return
        model.close()  # nobody waits for it any more

    future = asyncio.run_coroutine_threadsafe(delivered(), loop)
    end = perf_counter() + OPEN_SECONDS
    while True:
        try:
            future.result(LISTEN)
        except TimeoutError:
            if future.done():
                future.result()
            elif perf_counter() <= end and loop.is_running():
                continue
            with lock:
                gone = not given
            if gone:
                future.cancel()
                raise ModelLoadError(f"no answer within {OPEN_SECONDS:g} s") from None
        return given[0]


def transport_kind(settings: RemoteSettings) -> type[Transport]:
    """The transport that the urls ask for. Raises `ModelLoadError`, also where the library that
    it needs is not installed."""
    if location(settings.urls[0]).over_grpc:
        from runtimes.remote.grpc_transport import GrpcTransport

        return GrpcTransport
    if settings.connections != 1:
        raise ModelLoadError(
            "remote.connections is for grpc:// urls; over HTTP each request under way has a "
            "connection of its own: remove it"
        )
    try:
        from runtimes.remote.http_transport import HttpTransport
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        raise ModelLoadError(MISSING) from None
    return HttpTransport


async def open_replicas(
    artifact: Artifact, settings: RemoteSettings, transport: Transport
) -> Opened:
    """Connects to all replicas, and asks those that have the model what it is.

    Raises `ModelLoadError` when none has it; then everything is closed.
    """
    label = f"{artifact.model}/{artifact.version}"
    replicas = Replicas(label, transport, [location(url) for url in settings.urls])
    try:
        await replicas.look_up()
        await replicas.check()
        ready = [each for each in replicas.pool.endpoints if each.ready and not each.missed]
        if not ready:
            raise ModelLoadError(_nobody(replicas))
        model = await _asked(ready[0], ready[0].connection.model(replicas.patience))
        replicas.watch()
    except BaseException:
        await replicas.close()
        await transport.close()
        raise
    return Opened(transport, replicas, model)


async def _asked(endpoint: Endpoint[Connection], question: Coroutine[Any, Any, T]) -> T:
    try:
        return await question
    except AttemptFailed as failure:
        raise ModelLoadError(f"{endpoint.url}: metadata: {failure}") from None


def _nobody(replicas: Replicas) -> str:
    causes = [f"{each.url}: {each.why}" for each in replicas.pool.endpoints]
    if replicas.trouble:
        causes.append(replicas.trouble)
    return "; ".join(causes[:4]) or "no address is known"
