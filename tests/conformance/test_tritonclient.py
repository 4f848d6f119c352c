"""The unmodified tritonclient: HTTP and gRPC, each synchronous and with asyncio."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from tests.conformance.models import KINDS
from tests.conformance.slow import SlowModel
from tests.conformance.triton_clients import TritonClient
from tests.support.gateway import GatewayProcess
from tests.support.relay import Relay

HTTP = ("http", "http.aio")
GRPC = ("grpc", "grpc.aio")
SERVERS = ("native", "grpcio")
EVERY = [*((f, "grpcio") for f in HTTP), *((f, s) for f in GRPC for s in SERVERS)]
EVERY_GRPC = [(f, s) for f in GRPC for s in SERVERS]
VALUES: dict[str, Any] = {
    "BOOL": [[True, False, True], [False, False, True]],
    "UINT8": [[0, 1, 255], [7, 8, 9]],
    "UINT16": [[0, 1, 65535], [7, 8, 9]],
    "UINT32": [[0, 1, 2**32 - 1], [7, 8, 9]],
    "UINT64": [[0, 1, 2**64 - 1], [7, 2**63, 9]],
    "INT8": [[-128, 0, 127], [7, 8, 9]],
    "INT16": [[-(2**15), 0, 2**15 - 1], [7, 8, 9]],
    "INT32": [[-(2**31), 0, 2**31 - 1], [7, 8, 9]],
    "INT64": [[-(2**63), 0, 2**63 - 1], [7, 8, 9]],
    "FP16": [[0.5, -2.0, 65504.0], [0.0, 1.0, 2.0]],
    "BF16": [[0.5, -2.0, 256.0], [0.0, 1.0, 2.0]],
    "FP32": [[0.1, -2.5, 3e38], [0.0, 1.0, 2.0]],
    "FP64": [[0.1, -2.5, 1e308], [0.0, 1.0, 2.0]],
    "BYTES": [["", "two words", "ünïcödé ☂"], ['"quoted"\\', "\n\t", "a" * 5000]],
}
DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    **{f"{u}INT{n}": np.dtype(f"{u}int{n}".lower()) for u in ("", "U") for n in (8, 16, 32, 64)},
    "FP16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[TritonClient]:
    flavor, server = request.param
    client = TritonClient(flavor, request.getfixturevalue(server))
    yield client
    client.close()


def name_of(value: object) -> str:
    return "-".join(value) if isinstance(value, tuple) else str(value)


every_client = pytest.mark.parametrize("client", EVERY, indirect=True, ids=name_of)
http_client = pytest.mark.parametrize(
    "client", [(f, "grpcio") for f in HTTP], indirect=True, ids=name_of
)
grpc_client = pytest.mark.parametrize("client", EVERY_GRPC, indirect=True, ids=name_of)
sync_grpc = pytest.mark.parametrize(
    "client", [("grpc", s) for s in SERVERS], indirect=True, ids=name_of
)


def texts(array: np.ndarray[Any, Any]) -> Any:
    """Strings for what may be bytes."""
    decoded = [e.decode() if isinstance(e, bytes) else e for e in array.ravel().tolist()]
    return np.array(decoded, object).reshape(array.shape).tolist()


# --- server and models


@every_client
def test_health(client: TritonClient) -> None:
    assert client.call("is_server_live") is True
    assert client.call("is_server_ready") is True
    assert client.call("is_model_ready", "add") is True
    assert client.call("is_model_ready", "versions", "2") is True
    assert client.call("is_model_ready", "versions", model_version="canary") is True


@every_client
def test_readiness_of_a_model_that_is_not_there(client: TritonClient) -> None:
    for arguments in (("nothing",), ("versions", "9")):
        try:
            ready = client.call("is_model_ready", *arguments)
        except InferenceServerException as error:
            assert not client.is_http
            assert error.status() == "StatusCode.NOT_FOUND"
        else:
            assert ready is False


@every_client
def test_server_metadata(client: TritonClient) -> None:
    metadata = client.json("get_server_metadata")
    assert metadata["name"] == "sluicegate"
    assert metadata["version"][0].isdigit()
    assert {"binary_tensor_data", "model_configuration", "statistics"} <= {*metadata["extensions"]}


@every_client
def test_model_metadata(client: TritonClient) -> None:
    metadata = client.json("get_model_metadata", "digits")
    assert metadata["name"] == "digits"
    assert metadata["versions"] == ["1", "2"]
    assert metadata["platform"] == "onnxruntime_onnx"
    (image,) = metadata["inputs"]
    assert (image["name"], image["datatype"]) == ("image", "FP32")
    assert [int(d) for d in image["shape"]] == [-1, 1, 8, 8]
    assert {o["name"]: o["datatype"] for o in metadata["outputs"]} == {
        "probabilities": "FP32",
        "label": "INT64",
    }
    assert client.json("get_model_metadata", "digits", "2")["versions"] == ["2"]


@every_client
def test_model_config(client: TritonClient) -> None:
    config = client.json("get_model_config", "pair")
    config = config.get("config", config)
    assert config["name"] == "pair"
    assert config["max_batch_size"] == 64
    assert "dynamic_batching" in config
    assert [t["name"] for t in config["input"]] == ["a", "b"]
    assert [t["data_type"] for t in config["input"]] == ["TYPE_INT32"] * 2
    # As Triton has it, without the batch dimension.
    assert [[int(d) for d in t["dims"]] for t in config["output"]] == [[2], [2]]
    scalar = client.json("get_model_config", "scalar", "1")
    scalar = scalar.get("config", scalar)
    assert scalar.get("max_batch_size", 0) == 0
    assert "dynamic_batching" not in scalar


def statistics(client: TritonClient, model: str, version: str = "") -> dict[str, dict[str, Any]]:
    answer = client.json("get_inference_statistics", model, version)
    return {each["version"]: each for each in answer["model_stats"]}


def number(entry: dict[str, Any], *path: str) -> int:
    """gRPC's JSON leaves out zeros and writes 64-bit integers as strings."""
    for name in path[:-1]:
        entry = entry.get(name, {})
    return int(entry.get(path[-1], 0))


@every_client
def test_statistics_rise(client: TritonClient) -> None:
    x = client.tensor("x", "FP32", np.zeros((3, 4), np.float32))
    before = statistics(client, "versions")
    for _ in range(2):
        client.call("infer", "versions", [x], model_version="2")
    after = statistics(client, "versions")
    assert [int(version) for version in sorted(after)] == [1, 2, 3]

    def rise(version: str, *path: str) -> int:
        return number(after[version], *path) - number(before[version], *path)

    assert rise("2", "inference_count") == 6
    assert rise("2", "execution_count") == 2
    for what in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert rise("2", "inference_stats", what, "count") == 2, what
        assert rise("2", "inference_stats", what, "ns") >= 0
        assert rise("1", "inference_stats", what, "count") == 0
    assert rise("2", "inference_stats", "compute_infer", "ns") > 0
    assert rise("2", "inference_stats", "fail", "count") == 0
    assert abs(int(after["2"]["last_inference"]) - time.time() * 1000) < 60_000
    (size,) = [b for b in after["2"]["batch_stats"] if int(b["batch_size"]) == 3]
    counts = {
        number(size, w, "count") for w in ("compute_input", "compute_infer", "compute_output")
    }
    assert len(counts) == 1
    assert statistics(client, "versions", "2").keys() == {"2"}


@every_client
def test_statistics_of_all_models(client: TritonClient) -> None:
    names = {each["name"] for each in client.json("get_inference_statistics")["model_stats"]}
    assert {"add", "pair", "digits", "identity_bytes"} <= names


@every_client
def test_repository_index(client: TritonClient) -> None:
    index = client.json("get_model_repository_index")
    index = index["models"] if isinstance(index, dict) else index
    found = {(each["name"], each["version"]): each["state"] for each in index}
    assert found["digits", "1"] == found["digits", "2"] == found["add", "1"] == "READY"


# --- tensors


@every_client
@pytest.mark.parametrize("kind", KINDS)
def test_every_datatype_in_binary(client: TritonClient, kind: str) -> None:
    array = np.array(VALUES[kind], DTYPES[kind])
    x = client.tensor("x", kind, array, binary_data=True)
    outputs = client.outputs("y", binary_data=True)
    result = client.call("infer", f"identity_{kind.lower()}", [x], outputs=outputs)
    y = result.as_numpy("y")
    if kind == "BYTES":
        assert texts(y) == VALUES[kind]
    else:
        assert y.dtype == array.dtype
        np.testing.assert_array_equal(y, array)
    assert y.shape == (2, 3)


@http_client
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("FP16", "BF16")])
def test_every_datatype_in_json(client: TritonClient, kind: str) -> None:
    array = np.array(VALUES[kind], DTYPES[kind])
    x = client.tensor("x", kind, array, binary_data=False)
    outputs = client.outputs("y", binary_data=False)
    result = client.call("infer", f"identity_{kind.lower()}", [x], outputs=outputs)
    y = result.as_numpy("y")
    if kind == "BYTES":
        assert texts(y) == VALUES[kind]
    else:
        np.testing.assert_array_equal(y, array)
    (output,) = result.get_response()["outputs"]
    assert output["data"] and "parameters" not in output


@http_client
@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_binary_and_json_mixed(client: TritonClient, binary_in: bool, binary_out: bool) -> None:
    a = np.array([[1, 2]], np.int32)
    inputs = [
        client.tensor("a", "INT32", a, binary_data=binary_in),
        client.tensor("b", "INT32", a * 10, binary_data=not binary_in),
    ]
    outputs = [
        *client.outputs("difference", binary_data=binary_out),
        *client.outputs("sum", binary_data=not binary_out),
    ]
    result = client.call("infer", "pair", inputs, outputs=outputs)
    np.testing.assert_array_equal(result.as_numpy("sum"), [[11, 22]])
    np.testing.assert_array_equal(result.as_numpy("difference"), [[-9, -18]])


@http_client
def test_string_bytes_that_are_not_text_need_binary(client: TritonClient) -> None:
    # An ONNX string is text, so the model refuses; the gateway says so.
    x = client.tensor("x", "BYTES", np.array([[b"\xff\xfe"]], np.object_))
    with pytest.raises(InferenceServerException, match="UTF-8") as caught:
        client.call("infer", "identity_bytes", [x])
    assert caught.value.status() == "400"


@every_client
def test_empty_and_large_tensors(client: TritonClient) -> None:
    for shape in ((1, 0), (1, 200_000), (70, 3)):
        array = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
        result = client.call("infer", "identity_fp32", [client.tensor("x", "FP32", array)])
        np.testing.assert_array_equal(result.as_numpy("y"), array)


@every_client
def test_scalar_model(client: TritonClient) -> None:
    inputs = [
        client.tensor("x", "FP64", np.array(6.0)),
        client.tensor("y", "FP64", np.array(7.0)),
    ]
    z = client.call("infer", "scalar", inputs).as_numpy("z")
    assert z.shape == () and z == 42.0


# --- the request's other parts


@every_client
def test_request_id_comes_back(client: TritonClient) -> None:
    for request_id in ("first", "", "second", "ünïcödé"):
        response = client.add([1, 2, 3, 4], request_id=request_id).get_response()
        found = response.get("id", "") if client.is_http else response.id
        assert found == request_id


@every_client
def test_model_name_and_version_come_back(client: TritonClient) -> None:
    x = client.tensor("x", "FP32", np.zeros((1, 4), np.float32))
    for asked, served in (
        ("1", "1"),
        ("3", "3"),
        ("newest", "3"),
        ("stable", "1"),
        ("canary", "2"),
    ):
        result = client.call("infer", "versions", [x], model_version=asked)
        response = result.get_response()
        name, version = (
            (response["model_name"], response["model_version"])
            if client.is_http
            else (response.model_name, response.model_version)
        )
        assert (name, version) == ("versions", served)
        np.testing.assert_array_equal(result.as_numpy("y"), np.full((1, 4), float(served)))


@every_client
def test_requested_outputs_alone(client: TritonClient) -> None:
    a = np.array([[1, 2]], np.int32)
    inputs = [client.tensor("a", "INT32", a), client.tensor("b", "INT32", a)]
    result = client.call("infer", "pair", inputs, outputs=client.outputs("difference"))
    np.testing.assert_array_equal(result.as_numpy("difference"), [[0, 0]])
    assert result.as_numpy("sum") is None
    both = client.call("infer", "pair", inputs, outputs=client.outputs("difference", "sum"))
    response = both.get_response()
    outputs = response["outputs"] if client.is_http else response.outputs
    names = [o["name"] if client.is_http else o.name for o in outputs]
    assert names == ["difference", "sum"]


@every_client
def test_parameters_timeout_and_priority(client: TritonClient) -> None:
    result = client.add(
        [1, 2, 3, 4],
        parameters={"text": "value", "number": 3, "flag": True},
        priority=1,
        timeout=10_000_000,
    )
    np.testing.assert_array_equal(result.as_numpy("y"), [[2, 3, 4, 5]])


@every_client
def test_headers(client: TritonClient) -> None:
    x = client.tensor("x", "FP32", np.zeros((1, 4), np.float32))
    served = set()
    for _ in range(12):
        result = client.call("infer", "versions", [x], headers={"x-sluice-key": "somebody"})
        served.add(float(result.as_numpy("y")[0, 0]))
    assert len(served) == 1


@http_client
def test_query_parameters_are_ignored(client: TritonClient) -> None:
    result = client.add([1, 2, 3, 4], query_params={"a": "b", "c": ["d", "e"]})
    np.testing.assert_array_equal(result.as_numpy("y"), [[2, 3, 4, 5]])


@http_client
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("columns", [3, 2000, 200_000])
def test_http_compression(client: TritonClient, algorithm: str, columns: int) -> None:
    array = np.zeros((1, columns), np.float32)
    for binary in (True, False) if columns < 100_000 else (True,):
        result = client.call(
            "infer",
            "identity_fp32",
            [client.tensor("x", "FP32", array, binary_data=binary)],
            outputs=client.outputs("y", binary_data=binary),
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        np.testing.assert_array_equal(result.as_numpy("y"), array)


@grpc_client
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_grpc_compression(client: TritonClient, algorithm: str) -> None:
    for columns in (3, 200_000):
        x = client.tensor("x", "FP32", np.zeros((1, columns), np.float32))
        options = {"compression_algorithm": algorithm}
        if algorithm == "deflate" and client.gateway.grpc_server == "native":
            # The one thing of gRPC's that the native server does not do; it says so.
            with pytest.raises(InferenceServerException, match="deflate") as caught:
                client.call("infer", "identity_fp32", [x], **options)
            assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
        else:
            result = client.call("infer", "identity_fp32", [x], **options)
            assert not result.as_numpy("y").any()


# --- asynchronous calls


def test_http_async_infer(grpcio: GatewayProcess) -> None:
    with tritonclient_http(grpcio, concurrency=8) as client:
        pending = []
        for value in range(40):
            x = tritonclient.http.InferInput("x", [1, 4], "FP32")
            x.set_data_from_numpy(np.full((1, 4), value, np.float32))
            pending.append(client.async_infer("add", [x], request_id=str(value)))
        for value, each in enumerate(pending):
            result = each.get_result()
            assert result.get_response()["id"] == str(value)
            assert result.as_numpy("y")[0, 0] == value + 1


def tritonclient_http(gateway: GatewayProcess, **options: Any) -> Any:
    return tritonclient.http.InferenceServerClient(gateway.http_address, **options)


def test_grpc_async_infer(gateway: GatewayProcess) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(gateway.grpc) as client:
        for value in range(40):
            x = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
            x.set_data_from_numpy(np.full((1, 4), value, np.float32))
            client.async_infer(
                "add",
                [x],
                lambda result, error: answers.put((result, error)),
                request_id=str(value),
            )
        for _ in range(40):
            result, error = answers.get(timeout=30)
            assert error is None
            assert result.as_numpy("y")[0, 0] == int(result.get_response().id) + 1


@pytest.mark.parametrize(
    "client", [c for c in EVERY if c[0].endswith("aio")], indirect=True, ids=name_of
)
def test_many_at_once_with_asyncio(client: TritonClient) -> None:
    async def one(value: int) -> bool:
        x = client.tensor("x", "FP32", np.full((1, 4), value, np.float32))
        result = await client.client.infer("add", [x])
        return bool(result.as_numpy("y")[0, 0] == value + 1)

    async def all_of_them() -> list[bool]:
        return await asyncio.gather(*map(one, range(60)))

    assert all(client._run(all_of_them()))


def test_cancelled_async_infer_is_not_executed(gateway: GatewayProcess, slow: SlowModel) -> None:
    errors: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(gateway.grpc) as client:
        busy = slow.occupy(0.4)
        loops = tritonclient.grpc.InferInput("loops", [1], "INT64")
        loops.set_data_from_numpy(np.array([3], np.int64))
        calls = [
            client.async_infer(slow.name, [loops], lambda result, error: errors.put(error))
            for _ in range(5)
        ]
        slow.wait_pending(6)
        for call in calls:
            call.cancel()
        for _ in calls:
            assert errors.get(timeout=10).status() == "StatusCode.CANCELLED"
        slow.wait_pending(1)
        busy.join()
    assert slow.executions() == 1


@pytest.mark.parametrize("stream", [False, True])
def test_lost_grpc_connection_cancels(
    gateway: GatewayProcess, slow: SlowModel, stream: bool
) -> None:
    """The client says no word: its machine is gone."""
    with Relay(gateway.grpc) as relay:
        client = tritonclient.grpc.InferenceServerClient(relay.address)
        busy = slow.occupy(0.4)
        loops = tritonclient.grpc.InferInput("loops", [1], "INT64")
        loops.set_data_from_numpy(np.array([3], np.int64))
        errors: queue.Queue[Any] = queue.Queue()
        if stream:
            client.start_stream(lambda result, error: errors.put(error))
        for _ in range(3):
            if stream:
                client.async_stream_infer(slow.name, [loops])
            else:
                client.async_infer(slow.name, [loops], lambda result, error: errors.put(error))
        slow.wait_pending(4)
        relay.cut()
        slow.wait_pending(1)
        assert errors.get(timeout=10).status() == "StatusCode.UNAVAILABLE"
        client.stop_stream(cancel_requests=True)
        client.close()
    busy.join()
    assert slow.executions() == 1


# --- deadlines


@every_client
def test_timeout_parameter(client: TritonClient) -> None:
    slow = SlowModel(client.gateway)
    limit = slow.limit(0.1)
    busy = slow.occupy(2 * limit)
    x = client.tensor("loops", "INT64", np.array([1], np.int64))
    started = time.perf_counter()
    with pytest.raises(InferenceServerException, match="deadline passed") as caught:
        client.call("infer", slow.name, [x], timeout=int(limit * 1e6))
    assert caught.value.status() == client.status(504, "DEADLINE_EXCEEDED")
    assert time.perf_counter() - started > 0.8 * limit
    assert busy.is_alive()
    busy.join()
    assert slow.executions() == 1


@grpc_client
def test_client_timeout(client: TritonClient) -> None:
    slow = SlowModel(client.gateway)
    limit = slow.limit(0.15)
    busy = slow.occupy(2 * limit)
    x = client.tensor("loops", "INT64", np.array([1], np.int64))
    with pytest.raises(InferenceServerException) as caught:
        client.call("infer", slow.name, [x], client_timeout=limit)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    slow.wait_pending(1)
    busy.join()
    assert slow.executions() == 1


# --- errors


@every_client
def test_unknown_model(client: TritonClient) -> None:
    x = client.tensor("x", "FP32", np.zeros((1, 4), np.float32))
    with pytest.raises(InferenceServerException) as caught:
        client.call("infer", "nothing", [x])
    assert caught.value.message().startswith("Request for unknown model")
    assert caught.value.status() == client.status(404, "NOT_FOUND")
    for method in ("get_model_metadata", "get_model_config", "get_inference_statistics"):
        with pytest.raises(InferenceServerException) as caught:
            client.call(method, "nothing")
        assert caught.value.message().startswith("Request for unknown model"), method
        assert caught.value.status() == client.status(404, "NOT_FOUND")


@every_client
def test_unknown_model_with_a_strange_name(client: TritonClient) -> None:
    x = client.tensor("x", "FP32", np.zeros((1, 4), np.float32))
    for name in ("mödel ☂", "%", "a b", "line\nbreak", "n" * 300):
        with pytest.raises(InferenceServerException) as caught:
            client.call("infer", name, [x])
        assert caught.value.message().startswith("Request for unknown model")


@every_client
def test_bad_requests(client: TritonClient) -> None:
    x = np.zeros((1, 4), np.float32)
    good = client.tensor("x", "FP32", x)
    wide = client.tensor("x", "FP64", x.astype(np.float64))
    sequence = {"sequence_id": 5, "sequence_start": True}
    cases: list[tuple[dict[str, Any], int, str, str]] = [
        ({"inputs": [client.tensor("wrong", "FP32", x)]}, 400, "INVALID_ARGUMENT", "wrong"),
        ({"inputs": [wide]}, 400, "INVALID_ARGUMENT", "FP64"),
        ({"inputs": [client.tensor("x", "FP32", x[:, :3])]}, 400, "INVALID_ARGUMENT", "shape"),
        ({"inputs": []}, 400, "INVALID_ARGUMENT", "no inputs"),
        ({"inputs": [good], "outputs": client.outputs("z")}, 400, "INVALID_ARGUMENT", "'z'"),
        ({"inputs": [good], "model_version": "7"}, 404, "NOT_FOUND", "version"),
        ({"inputs": [good], **sequence}, 501, "UNIMPLEMENTED", "sequence"),
    ]
    for options, http, grpc, text in cases:
        with pytest.raises(InferenceServerException, match=text) as caught:
            client.call("infer", "add", **options)
        assert caught.value.status() == client.status(http, grpc), options
    # And the connection is still good.
    np.testing.assert_array_equal(client.add([1, 2, 3, 4]).as_numpy("y"), [[2, 3, 4, 5]])


# --- streams


class Stream:
    """start_stream and async_stream_infer, and what comes back."""

    def __init__(self, client: TritonClient, **options: Any) -> None:
        self.client = client.client
        self.answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.client.start_stream(lambda result, error: self.answers.put((result, error)), **options)

    def send(self, value: float, model: str = "add", **options: Any) -> None:
        x = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
        x.set_data_from_numpy(np.full((1, 4), value, np.float32))
        self.client.async_stream_infer(model, [x], **options)

    def next(self) -> tuple[Any, Any]:
        return self.answers.get(timeout=30)


@sync_grpc
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_stream_keeps_order_and_ids(client: TritonClient, compression: str | None) -> None:
    stream = Stream(client, compression_algorithm=compression)
    for value in range(300):
        stream.send(value, request_id=str(value))
    for value in range(300):
        result, error = stream.next()
        assert error is None
        response = result.get_response()
        assert response.id == str(value)
        assert response.model_name == "add" and response.model_version == "1"
        assert result.as_numpy("y")[0, 0] == value + 1
        assert len(response.raw_output_contents) == len(response.outputs) == 1
    client.client.stop_stream()


@sync_grpc
def test_error_inside_a_stream_leaves_it_alive(client: TritonClient) -> None:
    stream = Stream(client)
    stream.send(1, request_id="a")
    stream.send(2, model="nothing", request_id="b")
    stream.send(3, request_id="c", model_version="7")
    stream.send(4, request_id="d")
    result, error = stream.next()
    assert error is None and result.get_response().id == "a"
    result, error = stream.next()
    assert error.message().startswith("Request for unknown model")
    result, error = stream.next()
    assert "version" in error.message()
    result, error = stream.next()
    assert error is None and result.as_numpy("y")[0, 0] == 5
    client.client.stop_stream()


@sync_grpc
def test_stream_says_which_answer_is_the_last(client: TritonClient) -> None:
    """Clients written for decoupled models wait for this parameter."""
    stream = Stream(client)
    stream.send(1, request_id="a", enable_empty_final_response=True)
    result, error = stream.next()
    assert error is None
    assert result.get_response().parameters["triton_final_response"].bool_param is True
    client.client.stop_stream()
    assert stream.answers.empty()


@sync_grpc
def test_closed_stream_cancels_what_waits(client: TritonClient) -> None:
    slow = SlowModel(client.gateway)
    busy = slow.occupy(0.4)
    answers: queue.Queue[Any] = queue.Queue()
    client.client.start_stream(lambda result, error: answers.put(error))
    loops = tritonclient.grpc.InferInput("loops", [1], "INT64")
    loops.set_data_from_numpy(np.array([3], np.int64))
    for _ in range(4):
        client.client.async_stream_infer(slow.name, [loops])
    slow.wait_pending(5)
    client.client.stop_stream(cancel_requests=True)
    slow.wait_pending(1)
    busy.join()
    assert slow.executions() == 1


@sync_grpc
def test_many_streams_at_once(client: TritonClient) -> None:
    def work(start: int) -> None:
        with tritonclient.grpc.InferenceServerClient(client.gateway.grpc) as own:
            wrapped = type("Own", (), {"client": own})
            stream = Stream(wrapped)  # type: ignore[arg-type]
            for value in range(start, start + 50):
                stream.send(value, request_id=str(value))
            for value in range(start, start + 50):
                result, error = stream.next()
                assert error is None and result.as_numpy("y")[0, 0] == value + 1
                done.append(value)
            own.stop_stream()

    done: list[int] = []
    threads = [threading.Thread(target=work, args=(n * 1000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(done) == 200


@pytest.mark.parametrize("client", [("grpc.aio", s) for s in SERVERS], indirect=True, ids=name_of)
def test_stream_with_asyncio(client: TritonClient) -> None:
    async def requests() -> Any:
        for value in range(50):
            x = client.tensor("x", "FP32", np.full((1, 4), value, np.float32))
            model = "nothing" if value == 20 else "add"
            yield {"model_name": model, "inputs": [x], "request_id": str(value)}

    async def run() -> list[tuple[Any, Any]]:
        return [each async for each in client.client.stream_infer(requests())]

    answers = client._run(run())
    assert len(answers) == 50
    for value, (result, error) in enumerate(answers):
        if value == 20:
            assert error.message().startswith("Request for unknown model")
        else:
            assert result.get_response().id == str(value)
            assert result.as_numpy("y")[0, 0] == value + 1


def test_bfloat16_bits_are_kept(gateway: GatewayProcess) -> None:
    """Every positive, finite number, compared as bits."""
    bits = np.arange(0, 0x7F80, dtype=np.uint16)[None]
    with tritonclient.grpc.InferenceServerClient(gateway.grpc) as client:
        x = tritonclient.grpc.InferInput("x", list(bits.shape), "BF16")
        x.set_data_from_numpy(bits.view(ml_dtypes.bfloat16))
        result = client.infer("identity_bf16", [x])
        (raw,) = result.get_response().raw_output_contents
        np.testing.assert_array_equal(np.frombuffer(raw, np.uint16)[None], bits)
