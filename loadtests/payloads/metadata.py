"""What a server says of a model: over HTTP, or over gRPC where no HTTP address is known."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
import orjson

from gateway.codecs import client_grpc
from gateway.codecs.client_grpc import ModelMetadata
from gateway.codecs.client_rest import parse_metadata
from gateway.errors import SluiceError, printable
from gateway.tensors import TensorSpec
from loadtests.bench.plan import Target
from loadtests.errors import BenchError
from loadtests.payloads.encode import SERVICE

TIMEOUT_S = 30.0


def read_metadata(target: Target) -> ModelMetadata | None:
    """The model's inputs and outputs. ``None``: the server has no metadata (it speaks V1 or
    MLflow's protocol alone, say). Raises `BenchError` when nobody answers, or the model is not there.
    """
    found = _over_http(target) if target.http else _over_grpc(target)
    if found is not None and not found.inputs and not found.outputs:
        return None
    return found


def _over_http(target: Target) -> ModelMetadata | None:
    version = f"/versions/{quote(target.version, safe='')}" if target.version else ""
    base = f"{target.http.rstrip('/')}/v2/models/{quote(target.model, safe='')}{version}"
    headers = dict(target.headers)
    verify: Any = True
    if target.ca_file:
        import ssl

        verify = ssl.create_default_context(cafile=target.ca_file)
    try:
        # A proxy of the environment is not meant for the server under test.
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False, verify=verify) as client:
            answer = client.get(base, headers=headers)
            if answer.status_code in (404, 405, 501) and not _is_oip(client, target):
                return None
            if not answer.is_success:
                raise BenchError(
                    f"{target.http} says of model '{printable(target.model)}': "
                    f"{answer.status_code} {_error_of(answer)}"
                )
            metadata = parse_metadata(answer.content)
            config = client.get(f"{base}/config", headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise BenchError(
            f"no server answers at {target.http} ({type(error).__name__}: {printable(error)}); "
            "start it, or give its address with --host"
        ) from None
    except SluiceError as error:
        raise BenchError(f"model '{printable(target.model)}': {error}") from None
    return _with_config(metadata, config.content) if config.is_success else metadata


def _is_oip(client: httpx.Client, target: Target) -> bool:
    """Whether the server has the Open Inference Protocol at all."""
    answer = client.get(f"{target.http.rstrip('/')}/v2", headers=dict(target.headers))
    return answer.is_success


def _error_of(answer: httpx.Response) -> str:
    try:
        tree = answer.json()
        return printable(str(tree["error"]), 300)
    except (ValueError, KeyError, TypeError):
        return printable(answer.text, 300)


def _with_config(metadata: ModelMetadata, content: bytes) -> ModelMetadata:
    """The model configuration extension says which inputs may be left out."""
    try:
        listed = orjson.loads(content)["input"]
        optional = {each["name"] for each in listed if each.get("optional") is True}
    except (ValueError, KeyError, TypeError, AttributeError):
        return metadata
    inputs = tuple(
        TensorSpec(s.name, s.datatype, s.shape, optional=s.name in optional, content=s.content)
        for s in metadata.inputs
    )
    return metadata._replace(inputs=inputs)


def _over_grpc(target: Target) -> ModelMetadata | None:
    import grpc

    if not target.grpc:
        raise BenchError("no address of the server is known; give it with --host or --grpc-host")
    if target.ca_file:
        with open(target.ca_file, "rb") as file:
            channel = grpc.secure_channel(target.grpc, grpc.ssl_channel_credentials(file.read()))
    else:
        channel = grpc.insecure_channel(target.grpc)
    metadata = tuple((name.lower(), value) for name, value in target.headers)
    request = client_grpc.model_metadata_request(target.model, target.version)
    with channel:
        call = channel.unary_unary(SERVICE + "ModelMetadata")
        try:
            answer = call(request, metadata=metadata, timeout=TIMEOUT_S, wait_for_ready=False)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return None
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise BenchError(
                    f"no server answers at {target.grpc} ({printable(error.details())}); start it, "
                    "or give its address with --grpc-host"
                ) from None
            raise BenchError(
                f"{target.grpc} says of model '{printable(target.model)}': {error.code().name} "
                f"{printable(error.details())}"
            ) from None
    try:
        return client_grpc.parse_model_metadata(answer)
    except SluiceError as error:
        raise BenchError(f"model '{printable(target.model)}': {error}") from None
