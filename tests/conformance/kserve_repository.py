"""Loads and unloads with kserve's own messages: ``python kserve_repository.py GRPC_ADDRESS``.

A process of its own, like ``kserve_cases.py``.
"""

from __future__ import annotations

import sys

import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = GRPCInferenceServiceStub(channel)
    unloaded = stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="m"))
    print(unloaded.model_name, unloaded.isUnloaded)
    loaded = stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="m"), timeout=30)
    print(loaded.model_name, loaded.isLoaded)
    try:
        stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="nobody"), timeout=30)
    except grpc.RpcError as error:
        print(error.code().name)
