"""Models on any server that speaks the Open Inference Protocol: MLServer, KServe predictors,
OpenVINO Model Server, another Sluicegate."""

from __future__ import annotations

import importlib.util
from typing import Final

from gateway.errors import InvalidModelSettings, ModelLoadError
from gateway.model_settings import RemoteSettings
from gateway.remote_document import REMOTE_YAML, location
from runtimes.interface import Artifact, Model, Runtime, RuntimeReport
from runtimes.remote.model import RemoteModel
from runtimes.remote.opening import load_on_loop, open_replicas, settings_for, transport_kind
from runtimes.remote.settings import remote_of
from runtimes.remote.signature import (
    check_batching,
    check_settings,
    check_unbatched,
    signature_of,
)
from runtimes.remote.transport import There, Transport

CONNECTION_BYTES: Final = 2**20


class OipRuntime(Runtime):
    """Loads nothing: it connects to the server that has the model."""

    name = "oip"

    def report(self) -> RuntimeReport:
        """As the interface says; HTTP needs a library that may be missing."""
        http = importlib.util.find_spec("aiohttp") is not None
        return RuntimeReport(
            name=self.name,
            available=True,
            formats=(REMOTE_YAML,),
            reason="" if http else "http:// urls need aiohttp: pip install 'sluicegate[oip]'",
        )

    def probe(self, artifact: Artifact) -> bool:
        """As the interface says."""
        try:
            remote = remote_of(artifact)
        except InvalidModelSettings:
            return (artifact.path / REMOTE_YAML).is_file()  # `load` says what is wrong
        return remote is not None and remote[0] == self.name

    def estimate(self, artifact: Artifact) -> int:
        """Nothing is loaded here but the buffers of connections."""
        return CONNECTION_BYTES

    def load(self, artifact: Artifact) -> Model:
        """As the interface says."""
        remote = settings_for(artifact, self.name)
        check_settings(artifact.settings, remote)
        check_unbatched(artifact.settings, remote, decoupled=artifact.settings.decoupled)
        if remote.shared_memory:
            raise ModelLoadError("remote.shared_memory is for runtime: triton; remove it")
        if artifact.settings.decoupled and not location(remote.urls[0]).over_grpc:
            raise ModelLoadError(
                "decoupled models answer many times, for which remote urls must be grpc://"
            )
        kind = transport_kind(remote)
        return load_on_loop(artifact, lambda: _open(artifact, remote, kind))


async def _open(artifact: Artifact, remote: RemoteSettings, kind: type[Transport]) -> RemoteModel:
    settings = artifact.settings
    host = artifact.host
    assert host is not None
    there = There(remote.model or artifact.model, remote.version, artifact.model, artifact.version)
    transport = kind(there, remote)
    opened = await open_replicas(artifact, remote, transport)
    try:
        signature = signature_of(opened.model, settings)
        check_batching(signature, remote, settings.max_batch_size)
    except BaseException:
        await opened.close()
        raise
    return RemoteModel(
        host.loop,
        transport,
        opened.replicas,
        signature,
        idempotent=settings.idempotent,
        decoupled=settings.decoupled,
        instances=settings.instances,
        max_batch_size=settings.max_batch_size,
    )
