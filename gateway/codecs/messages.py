"""The protocol's message classes, in a descriptor pool of our own.

tritonclient and kserve define the same protobuf package in the default pool, where one symbol
can exist only once: whoever is imported second fails. A private pool lets both share a process
with us.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = "inference.GRPCInferenceService"


def _load() -> Any:
    pool: Any = descriptor_pool.DescriptorPool()
    data = Path(__file__).with_name("descriptors.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)
    return pool


POOL: Any = _load()
"""Holds every definition; gRPC reflection wants it too."""


def message_class(name: str) -> Any:
    """Class of the message ``name`` (without the package). Raises ``KeyError`` if unknown."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


# Classes made at run time have no static type: `Any` says so, a stub would have to be kept equal.
InferParameter: Any = message_class("InferParameter")
InferTensorContents: Any = message_class("InferTensorContents")
ModelInferRequest: Any = message_class("ModelInferRequest")
ModelInferResponse: Any = message_class("ModelInferResponse")
ModelStreamInferResponse: Any = message_class("ModelStreamInferResponse")
InferInputTensor: Any = message_class("ModelInferRequest.InferInputTensor")
InferRequestedOutputTensor: Any = message_class("ModelInferRequest.InferRequestedOutputTensor")
InferOutputTensor: Any = message_class("ModelInferResponse.InferOutputTensor")

ServerLiveRequest: Any = message_class("ServerLiveRequest")
ServerLiveResponse: Any = message_class("ServerLiveResponse")
ServerReadyRequest: Any = message_class("ServerReadyRequest")
ServerReadyResponse: Any = message_class("ServerReadyResponse")
ModelReadyRequest: Any = message_class("ModelReadyRequest")
ModelReadyResponse: Any = message_class("ModelReadyResponse")
ServerMetadataRequest: Any = message_class("ServerMetadataRequest")
ServerMetadataResponse: Any = message_class("ServerMetadataResponse")
ModelMetadataRequest: Any = message_class("ModelMetadataRequest")
ModelMetadataResponse: Any = message_class("ModelMetadataResponse")
TensorMetadata: Any = message_class("ModelMetadataResponse.TensorMetadata")

ModelConfigRequest: Any = message_class("ModelConfigRequest")
ModelConfigResponse: Any = message_class("ModelConfigResponse")
ModelConfig: Any = message_class("ModelConfig")
ModelStatisticsRequest: Any = message_class("ModelStatisticsRequest")
ModelStatisticsResponse: Any = message_class("ModelStatisticsResponse")
ModelStatistics: Any = message_class("ModelStatistics")
InferStatistics: Any = message_class("InferStatistics")
InferBatchStatistics: Any = message_class("InferBatchStatistics")
StatisticDuration: Any = message_class("StatisticDuration")
RepositoryIndexRequest: Any = message_class("RepositoryIndexRequest")
RepositoryIndexResponse: Any = message_class("RepositoryIndexResponse")
ModelIndex: Any = message_class("RepositoryIndexResponse.ModelIndex")


class Method(NamedTuple):
    """One RPC of the service."""

    name: str
    path: str
    """What a client calls: ``/package.Service/Method``."""
    request: Any
    response: Any
    client_streaming: bool
    server_streaming: bool


def _methods() -> dict[str, Method]:
    return {
        method.name: Method(
            method.name,
            f"/{SERVICE}/{method.name}",
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
            method.client_streaming,
            method.server_streaming,
        )
        for method in POOL.FindServiceByName(SERVICE).methods
    }


METHODS: dict[str, Method] = _methods()
"""Every RPC by name, so that servers register the service from its definition."""
