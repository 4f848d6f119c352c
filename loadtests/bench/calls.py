"""Questions to a server over gRPC that are no inference: metadata and statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict

from gateway.codecs.messages import METHODS
from loadtests.bench.plan import Target
from loadtests.errors import BenchError

TIMEOUT: Final = 5.0


def credentials(ca_file: str) -> grpc.ChannelCredentials:
    """TLS, with these authorities or the system's. Raises `BenchError`."""
    try:
        return grpc.ssl_channel_credentials(Path(ca_file).read_bytes() if ca_file else None)
    except OSError as error:
        raise BenchError(f"--ca-file {ca_file}: {error.strerror or error}") from None


class GrpcCalls:
    """A channel to the target's gRPC side. Raises `BenchError` for authorities that cannot be
    read."""

    def __init__(self, target: Target) -> None:
        self._target = target
        # A pool of its own: a channel to the same address would else be shared with the load.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        host = target.grpc.partition("://")[2] or target.grpc
        if target.ca_file or target.grpc.startswith("grpcs://"):
            self._channel = grpc.secure_channel(host, credentials(target.ca_file), options)
        else:
            self._channel = grpc.insecure_channel(host, options)

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def call(self, rpc: str, /, timeout: float = TIMEOUT, **fields: str) -> Any:
        """The answer to a unary call, such as ``ModelMetadata``. Raises `grpc.RpcError`."""
        method = METHODS[rpc]
        ask = self._channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        metadata = [(key.lower(), value) for key, value in self._target.headers]
        return ask(method.request(**fields), timeout=timeout, metadata=metadata)

    def statistics(self) -> list[dict[str, Any]] | None:
        """``model_stats`` as JSON has it; ``None`` where the server does not give it."""
        target = self._target
        try:
            found = self.call("ModelStatistics", name=target.model, version=target.version)
        except grpc.RpcError:
            return None
        tree = MessageToDict(
            found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        entries: list[dict[str, Any]] = tree["model_stats"]
        return entries
