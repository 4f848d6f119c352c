"""Models on Triton Inference Server."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import msgspec

from gateway.errors import InvalidModelSettings, ModelLoadError
from gateway.model_settings import ModelSettings, RemoteSettings
from gateway.remote_document import REMOTE_YAML, location
from runtimes.interface import Artifact, Model, Runtime, RuntimeReport
from runtimes.remote.failures import AttemptFailed
from runtimes.remote.model import RemoteModel
from runtimes.remote.opening import Opened, load_on_loop, open_replicas, settings_for
from runtimes.remote.settings import remote_of
from runtimes.remote.signature import (
    check_batching,
    check_settings,
    check_unbatched,
    signature_of,
)
from runtimes.remote.transport import There
from runtimes.remote.triton_config import INSTALL, TritonConfig, TritonMessages
from runtimes.remote.triton_memory import FOLDER, not_local
from runtimes.remote.triton_transport import TritonConnection, TritonTransport

CLIENT: Final = "tritonclient"


class TritonRuntime(Runtime):
    """Loads nothing: it connects to the Triton server that has the model."""

    name = "triton"

    def report(self) -> RuntimeReport:
        """As the interface says."""
        formats = (REMOTE_YAML,)
        if importlib.util.find_spec(CLIENT) is None:
            reason = f"{CLIENT} is missing: {INSTALL}"
            return RuntimeReport(self.name, available=False, formats=formats, reason=reason)
        try:
            found = version(CLIENT)
        except PackageNotFoundError:
            found = ""
        return RuntimeReport(self.name, available=True, version=found, formats=formats)

    def probe(self, artifact: Artifact) -> bool:
        """As the interface says."""
        try:
            remote = remote_of(artifact)
        except InvalidModelSettings:
            return False
        return remote is not None and remote[0] == self.name

    def estimate(self, artifact: Artifact) -> int:
        """Nothing is loaded here."""
        return 0

    def load(self, artifact: Artifact) -> Model:
        """As the interface says."""
        remote = settings_for(artifact, self.name)
        check_settings(artifact.settings, remote)
        _check(remote)
        messages = TritonMessages()
        return load_on_loop(artifact, lambda: _open(artifact, remote, messages))


def _check(remote: RemoteSettings) -> None:
    """Raises `InvalidModelSettings` for what goes with other servers alone."""
    locations = [location(url) for url in remote.urls]
    for each in locations:
        if not each.over_grpc:
            raise InvalidModelSettings(
                f"runtime 'triton' speaks gRPC, but the url is {each}; write "
                f"grpc://{each.host}:8001 (Triton's gRPC port), or use runtime: oip"
            )
    if not remote.shared_memory:
        return
    if not FOLDER.is_dir():
        raise InvalidModelSettings(
            f"remote.shared_memory needs {FOLDER}, which this system does not have; remove it"
        )
    elsewhere = not_local(locations)
    if elsewhere:
        raise InvalidModelSettings(
            f"remote.shared_memory is for servers on this machine, which {elsewhere[0]} is not; "
            "remove it"
        )


async def _open(
    artifact: Artifact, remote: RemoteSettings, messages: TritonMessages
) -> RemoteModel:
    host = artifact.host
    assert host is not None
    there = There(remote.model or artifact.model, remote.version, artifact.model, artifact.version)
    transport = TritonTransport(there, remote, messages)
    opened = await open_replicas(artifact, remote, transport)
    try:
        return await _model(artifact, transport, opened)
    except BaseException:
        await opened.close()
        raise


async def _model(artifact: Artifact, transport: TritonTransport, opened: Opened) -> RemoteModel:
    settings, remote = artifact.settings, transport.settings
    config = await _config(opened)
    check_unbatched(settings, remote, decoupled=config.decoupled)
    _check_config(settings, remote, config, len(opened.replicas.pool.endpoints))
    rows = config.max_batch_size
    if settings.max_batch_size is not None:
        rows = settings.max_batch_size
    # Triton's metadata has the batch dimension in front; what is declared here has not.
    like_there = msgspec.structs.replace(settings, max_batch_size=config.max_batch_size)
    signature = signature_of(opened.model, like_there)
    check_batching(signature, remote, rows)
    transport.outputs = signature.outputs
    transport.batched = config.max_batch_size > 0
    if remote.shared_memory:
        for connection in _connections(opened):
            await connection.try_shared_memory()
    assert artifact.host is not None
    instances = settings.instances
    if not instances and not config.decoupled:
        instances = (config.instances + 1) * len(opened.replicas.pool.endpoints)
    model = TritonModel(
        artifact.host.loop,
        transport,
        opened.replicas,
        signature,
        idempotent=settings.idempotent,
        decoupled=config.decoupled,
        instances=instances,
        max_batch_size=rows,
    )
    model.stateful = model.sequences = config.sequences
    return model


class TritonModel(RemoteModel):
    """One model on one or more Triton servers."""

    def status(self) -> dict[str, object]:
        """The replicas, and the memory shared with them."""
        status = super().status()
        if self.transport.settings.shared_memory:
            regions = [
                each.connection.regions.status()
                for each in self.pool.endpoints
                if isinstance(each.connection, TritonConnection)
            ]
            status["shared_memory"] = {
                key: sum(each[key] for each in regions) for key in ("regions", "bytes", "leaving")
            }
        return status


def _connections(opened: Opened) -> list[TritonConnection]:
    """Those to servers that answer."""
    return [
        each.connection
        for each in opened.replicas.pool.endpoints
        if each.healthy and each.seen and isinstance(each.connection, TritonConnection)
    ]


async def _config(opened: Opened) -> TritonConfig:
    """The model's configuration, from the first server that has it. Raises `ModelLoadError`."""
    why = "no server answers"
    for connection in _connections(opened):
        try:
            return await connection.config(opened.replicas.patience)
        except AttemptFailed as failure:
            why = str(failure)
    raise ModelLoadError(
        f"the model's configuration: {why}; if the server is not Triton, use runtime: oip"
    )


def _check_config(
    settings: ModelSettings, remote: RemoteSettings, config: TritonConfig, replicas: int
) -> None:
    """Raises `ModelLoadError` where our settings and the server's configuration disagree."""
    ours, theirs = settings.max_batch_size, config.max_batch_size
    gateway = remote.batching == "gateway"
    if ours is not None and (ours > theirs or (ours != theirs and not gateway)):
        hint = f"at most {theirs}" if gateway else f"{theirs}"
        raise ModelLoadError(
            f"max_batch_size is {ours}, but the server's configuration says {theirs}; remove it, "
            f"or set it to {hint}"
        )
    if settings.decoupled and not config.decoupled:
        raise ModelLoadError(
            "decoupled is set, but the server's model answers each request once; remove it"
        )
    if gateway and config.decoupled:
        raise ModelLoadError(
            "remote.batching is 'gateway', but the server's model is decoupled, which is never "
            "batched; remove it"
        )
    if gateway and not theirs:
        raise ModelLoadError(
            "remote.batching is 'gateway', but the server's model has no batch dimension "
            "(max_batch_size 0 in its configuration); remove it"
        )
    if not config.sequences:
        return
    if gateway:
        raise ModelLoadError(
            "remote.batching is 'gateway', but the server's model keeps state for sequences of "
            "requests, which only the server can batch; remove it"
        )
    if settings.idempotent:
        raise ModelLoadError(
            "idempotent is set, but the server's model keeps state for sequences of requests; "
            "remove it"
        )
    if replicas > 1:
        raise ModelLoadError(
            f"the server's model keeps state for sequences of requests, which are in one of the "
            f"{replicas} replicas each; name one url alone"
        )
