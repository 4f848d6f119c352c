"""What a server says of itself and of the model before the first request."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import grpc
import httpx

from gateway.codecs.client_grpc import ModelMetadata, parse_model_metadata
from gateway.codecs.client_rest import parse_metadata
from gateway.errors import SluiceError, printable
from loadtests.bench.calls import GrpcCalls
from loadtests.bench.plan import Protocol, Target
from loadtests.bench.server import http_client
from loadtests.errors import BenchError, Unreachable

OURS: Final = "sluicegate"
BINARY: Final = "binary_tensor_data"
OLDER: Final = (Protocol.V1, Protocol.INVOCATIONS)
LOADING: Final = 60.0
"""Seconds for the first question: a model may be loaded for it."""
GONE: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True)
class Facts:
    """What is known; empty where the server does not say."""

    metadata: ModelMetadata | None = None
    server: str = ""
    """Name and version."""
    binary: bool = False
    """Whether it says that it takes tensors as bytes over HTTP."""
    split: dict[str, float] = field(default_factory=dict)
    """Version → share, 0 to 1."""
    notes: list[str] = field(default_factory=list)


def look(target: Target) -> Facts:
    """Asks the server, in the protocol of the target.

    Raises `Unreachable`, or `BenchError` for a model that the server does not have.
    """
    if target.protocol.http:
        return _over_http(target)
    facts = _over_grpc(target)
    split, notes = _routing(target) if facts.server.startswith(OURS) and target.http else ({}, [])
    return Facts(facts.metadata, facts.server, split=split, notes=notes)


def _over_http(target: Target) -> Facts:
    try:
        client = http_client(target, LOADING)
    except OSError as error:
        raise BenchError(f"--ca-file {target.ca_file}: {error.strerror or error}") from None
    with client:
        metadata = _http_metadata(client, target)
        said = _json(client, "/v2")
    name, version = str(said.get("name", "")), str(said.get("version", ""))
    extensions = said.get("extensions")
    binary = isinstance(extensions, list) and BINARY in extensions
    split, notes = _routing(target) if name == OURS else ({}, [])
    return Facts(metadata, printable(f"{name} {version}".strip()), binary, split, notes)


def _http_metadata(client: httpx.Client, target: Target) -> ModelMetadata | None:
    """``None`` from a server that has no metadata at all, as one of the older protocols."""
    path = f"/v2/models/{quote(target.model, safe='')}"
    if target.version:
        path += f"/versions/{quote(target.version, safe='')}"
    try:
        answer = client.get(path)
    except httpx.HTTPError as error:
        raise unreachable(target.http, error) from None
    if answer.is_success:
        try:
            return parse_metadata(answer.content)
        except SluiceError as error:
            raise BenchError(
                f"{target.http}: {error}; give the requests with --data FILE"
            ) from None
    if answer.status_code in (401, 403):
        raise BenchError(f"{target.http} refuses: {words(answer)}; give --token or --header")
    if target.protocol in OLDER and answer.status_code in (404, 405, 501):
        return None
    raise BenchError(f"{target.http}: {words(answer)}")


def _json(client: httpx.Client, path: str) -> dict[str, Any]:
    """The JSON object at a path; empty where there is none."""
    try:
        answer = client.get(path)
        tree = answer.json() if answer.is_success else None
    except (httpx.HTTPError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _over_grpc(target: Target) -> Facts:
    calls = GrpcCalls(target)
    try:
        found = calls.call("ModelMetadata", LOADING, name=target.model, version=target.version)
        metadata = parse_model_metadata(found.SerializeToString())
    except grpc.RpcError as error:
        status, text = error.code(), printable(error.details() or "", 300)
        if status in GONE:
            raise Unreachable(
                f"no server answers at grpc {target.grpc} ({text}); name it with --grpc HOST:PORT"
            ) from None
        if status == grpc.StatusCode.UNIMPLEMENTED:
            raise BenchError(
                f"{target.grpc} has no Open Inference Protocol over gRPC; try --protocol json"
            ) from None
        raise BenchError(f"{target.grpc}: {text or status.name}") from None
    except SluiceError as error:
        raise BenchError(f"{target.grpc}: {error}; give the requests with --data FILE") from None
    else:
        try:
            said = calls.call("ServerMetadata")
        except grpc.RpcError:
            return Facts(metadata)
        return Facts(metadata, printable(f"{said.name} {said.version}".strip()))
    finally:
        calls.close()


def _routing(target: Target) -> tuple[dict[str, float], list[str]]:
    """The shares of the versions, as the gateway's routing has them, and what keeps it from
    being known. A version that is named gets everything."""
    if target.version:
        return {}, []
    try:
        with http_client(target) as client:
            answer = client.get(f"/admin/v1/models/{quote(target.model, safe='')}")
            if not answer.is_success:
                return {}, [f"the declared split is not known: {words(answer)}"]
            versions = answer.json()["versions"]
            shares = {str(v["version"]): float(v["share"]) / 100 for v in versions if v["share"]}
    except (httpx.HTTPError, ssl.SSLError, OSError, ValueError, KeyError, TypeError) as error:
        return {}, [f"the declared split is not known: {printable(error)}"]
    return shares, []


def unreachable(url: str, error: Exception) -> Unreachable:
    """What to say when nobody answers over HTTP."""
    text = str(error)
    _, bracket, rest = text.partition("] ")
    why = (rest if bracket else text).lower() or type(error).__name__
    return Unreachable(f"no server answers at {url} ({printable(why)}); name it with --url")


def words(answer: httpx.Response) -> str:
    """The server's own words for an error, or its status."""
    try:
        tree = answer.json()
        said = tree.get("error") or tree.get("detail") if isinstance(tree, dict) else None
    except ValueError:
        said = None
    return printable(str(said), 300) if said else f"status {answer.status_code}"
