"""What Triton's own messages say: a model's configuration, and shared memory.

The messages are tritonclient's, imported when the first model on a Triton server is loaded.
Inference itself never uses them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from gateway.codecs.client_grpc import malformed
from gateway.errors import ModelLoadError

INSTALL: Final = "pip install 'sluicegate[triton]'"


@dataclass(frozen=True)
class TritonConfig:
    """What of a model's configuration matters to who calls it."""

    max_batch_size: int
    """Most rows; 0 = inputs and outputs have no batch dimension."""
    decoupled: bool
    """Whether a request has any number of answers."""
    sequences: bool
    """Whether requests belong to sequences, whose state is in the server."""
    instances: int
    """Batches that the server runs at the same time."""
    backend: str


class TritonMessages:
    """Bytes of Triton's control messages. Raises `ModelLoadError` without tritonclient."""

    def __init__(self) -> None:
        try:
            from tritonclient.grpc import service_pb2
        except ModuleNotFoundError as error:
            raise ModelLoadError(f"tritonclient is missing ({error.name}): {INSTALL}") from None
        self._messages: Any = service_pb2

    def config_request(self, model: str, version: str) -> bytes:
        """A ``ModelConfigRequest``."""
        return _bytes(self._messages.ModelConfigRequest(name=model, version=version))

    def parse_config(self, payload: bytes) -> TritonConfig:
        """The configuration in a ``ModelConfigResponse``. Raises `InferenceFailed`."""
        try:
            config = self._messages.ModelConfigResponse.FromString(payload).config
        except Exception as error:
            raise malformed(error) from None
        instances = sum(
            max(group.count, 1) * max(len(group.gpus), 1) for group in config.instance_group
        )
        return TritonConfig(
            max_batch_size=max(config.max_batch_size, 0),
            decoupled=config.model_transaction_policy.decoupled,
            sequences=config.HasField("sequence_batching"),
            instances=max(instances, 1),
            backend=config.backend or config.platform,
        )

    def register(self, name: str, key: str, size: int) -> bytes:
        """A ``SystemSharedMemoryRegisterRequest`` for the POSIX name `key`."""
        return _bytes(
            self._messages.SystemSharedMemoryRegisterRequest(
                name=name, key=key, offset=0, byte_size=size
            )
        )

    def unregister(self, name: str) -> bytes:
        """A ``SystemSharedMemoryUnregisterRequest``."""
        return _bytes(self._messages.SystemSharedMemoryUnregisterRequest(name=name))


def _bytes(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString()
    return encoded
