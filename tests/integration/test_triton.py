"""A real tritonserver behind the gateway: the same answers as without it, whatever happens."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from gateway.codecs import client_grpc
from gateway.codecs.messages import ModelInferRequest
from gateway.errors import ModelLoadError
from gateway.model_settings import ModelSettings, RemoteSettings
from gateway.tensors import InferenceRequest, Tensor, datatype_of, objects
from runtimes.hosts import LoopHost
from runtimes.interface import Artifact
from runtimes.remote import triton_memory
from runtimes.remote.model import STREAMS, RemoteModel
from runtimes.remote.triton import TritonRuntime
from tests.support.gateway import GatewayProcess, wait_until
from tests.support.onnx_models import adding, write
from tests.support.triton import TritonProcess

PATIENCE = 60.0
INFER = "/inference.GRPCInferenceService/ModelInfer"
Arrays = dict[str, np.ndarray]
rng = np.random.default_rng(7)
TEXT = objects([b"", "h\u00e9llo".encode(), b"x" * 300, b"a"], (2, 2))


def serve_from(root: Path, name: str, url: str, version: str = "1", **keys: Any) -> None:
    """Declares a version that is on a Triton server."""
    folder = root / name / version
    folder.mkdir(parents=True)
    document = {"runtime": "triton", "urls": url.split(), **keys}
    (folder / "remote.yaml").write_text(json.dumps(document))


def settings(root: Path, name: str, **keys: Any) -> None:
    (root / name / "model.yaml").write_text(json.dumps(keys))


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    with TritonProcess(tmp_path_factory.mktemp("triton")) as server:
        yield server


@pytest.fixture(scope="module")
def served(
    triton: TritonProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway in front of everything that the server has."""
    folder = tmp_path_factory.mktemp("gateway")
    root = folder / "models"
    for name in ("add", "text", "kinds", "slow", "repeat", "boom", "sum"):
        serve_from(root, name, triton.url)
    serve_from(root, "batched", triton.url, model="add", batching="gateway")
    serve_from(root, "shared", triton.url, model="wide", shared_memory=True)
    serve_from(root, "shared-add", triton.url, model="add", shared_memory=True)
    serve_from(root, "shared-text", triton.url, model="text", shared_memory=True)
    serve_from(root, "shared-slow", triton.url, model="late", shared_memory=True)
    with GatewayProcess(folder, [root]) as gateway:
        yield gateway


class Stub:
    """ModelInfer as bytes, with a deadline."""

    def __init__(self, address: str) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(address, options)
        self._infer = self.channel.unary_unary(INFER)

    def __call__(self, payload: bytes, timeout: float = PATIENCE) -> bytes:
        answer: bytes = self._infer(payload, timeout=timeout)
        return answer

    def infer(self, model: str, timeout: float = PATIENCE, **arrays: np.ndarray) -> Arrays:
        return arrays_of(self(raw(model, arrays), timeout))

    def __enter__(self) -> Stub:
        return self

    def __exit__(self, *error: object) -> None:
        self.channel.close()


def raw(model: str, arrays: Arrays, **fields: Any) -> bytes:
    tensors = tuple(
        Tensor(name, datatype_of(array), array.shape, array=array) for name, array in arrays.items()
    )
    return client_grpc.encode_request(InferenceRequest(model, "", tensors, **fields), model, "")


def arrays_of(payload: bytes) -> Arrays:
    response = client_grpc.decode_response(payload, "", "", wire=False)
    return {tensor.name: tensor.array for tensor in response.outputs}


def equal(found: Arrays, wanted: Arrays) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == array.dtype
        and found[name].shape == array.shape
        and found[name].tolist() == array.tolist()
        for name, array in wanted.items()
    )


def post(address: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", body, timeout=PATIENCE) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


INPUTS: dict[str, Arrays] = {
    "add": {"x": rng.normal(size=(3, 5)).astype("f4")},
    "batched": {"x": rng.normal(size=(3, 5)).astype("f4")},
    "shared": {"x": rng.normal(size=(2, 131072)).astype("f4")},
    "shared-add": {"x": rng.normal(size=(2, 60000)).astype("f4")},
    "shared-text": {"text": np.tile(TEXT, (1, 300))},
    "text": {"text": TEXT},
    "kinds": {"b": np.array([True, False]), "h": np.array([1.5, -2.25, 65504], "f2")},
}
THERE = {"batched": "add", "shared": "wide", "shared-add": "add", "shared-text": "text"}


def directly(triton: TritonProcess, model: str) -> Arrays:
    with Stub(triton.grpc) as stub:
        return stub.infer(THERE.get(model, model), **INPUTS[model])


# --- the same answers, by every protocol


@pytest.mark.parametrize("model", INPUTS)
def test_grpc_raw(triton: TritonProcess, served: GatewayProcess, model: str) -> None:
    wanted = directly(triton, model)
    outputs = tuple(wanted)
    with Stub(served.grpc) as stub:
        for id, names in (("", ()), ("the id", outputs[:1]), ("x", outputs)):
            payload = stub(raw(model, INPUTS[model], id=id, outputs=names))
            answer = client_grpc.decode_response(payload, "", "", wire=False)
            message = client_grpc.ModelInferResponse.FromString(payload)
            assert (message.model_name, message.model_version) == (model, "1")
            assert answer.id == id
            found = {tensor.name: tensor.array for tensor in answer.outputs}
            assert equal(found, {name: wanted[name] for name in names or outputs})


@pytest.mark.parametrize("model", ["add", "batched", "text"])
def test_grpc_typed(triton: TritonProcess, served: GatewayProcess, model: str) -> None:
    message = ModelInferRequest(model_name=model, id="typed")
    for name, array in INPUTS[model].items():
        kind = datatype_of(array).name
        tensor = message.inputs.add(name=name, datatype=kind, shape=array.shape)
        contents = "bytes_contents" if kind == "BYTES" else "fp32_contents"
        getattr(tensor.contents, contents).extend(array.ravel().tolist())
    with Stub(served.grpc) as stub:
        payload = stub(message.SerializeToString())
    assert client_grpc.ModelInferResponse.FromString(payload).id == "typed"
    assert equal(arrays_of(payload), directly(triton, model))


@pytest.mark.parametrize("model", ["add", "batched", "text", "shared-add"])
def test_http_json(triton: TritonProcess, served: GatewayProcess, model: str) -> None:
    tree = {
        "id": "json",
        "inputs": [
            {
                "name": name,
                "shape": array.shape,
                "datatype": datatype_of(array).name,
                "data": [e.decode() if isinstance(e, bytes) else e for e in array.ravel().tolist()],
            }
            for name, array in INPUTS[model].items()
        ],
    }
    body = json.dumps(tree).encode()
    there = THERE.get(model, model)
    code, wanted = post(triton.http, f"/v2/models/{there}/infer", body)
    assert code == 200
    code, found = post(served.http_address, f"/v2/models/{model}/infer", body)
    assert code == 200
    assert (found["model_name"], found["id"]) == (model, "json")
    for each in (*found["outputs"], *wanted["outputs"]):
        if each["datatype"] == "FP32":  # both write enough digits, but not the same
            each["data"] = np.array(each["data"], "f4").tolist()
    assert found["outputs"] == wanted["outputs"]


@pytest.mark.parametrize("model", INPUTS)
def test_http_binary(triton: TritonProcess, served: GatewayProcess, model: str) -> None:
    inputs = []
    for name, array in INPUTS[model].items():
        each = triton_http.InferInput(name, array.shape, datatype_of(array).name)
        inputs.append(each.set_data_from_numpy(array))
    with triton_http.InferenceServerClient(served.http_address) as client:
        answer = client.infer(model, inputs, request_id="binary")
        found = {
            each["name"]: answer.as_numpy(each["name"]) for each in answer.get_response()["outputs"]
        }
    assert answer.get_response()["id"] == "binary"
    assert equal(found, directly(triton, model))


def test_v1(triton: TritonProcess, served: GatewayProcess) -> None:
    for model in ("add", "batched"):
        body = json.dumps({"instances": INPUTS["add"]["x"].tolist()}).encode()
        code, found = post(served.http_address, f"/v1/models/{model}:predict", body)
        assert code == 200
        wanted = directly(triton, "add")["y"].tolist()
        assert np.array(found["predictions"], "f4").tolist() == wanted


# --- what is known of the model


def test_metadata_is_the_servers(triton: TritonProcess, served: GatewayProcess) -> None:
    with (
        triton_grpc.InferenceServerClient(triton.grpc) as there,
        triton_grpc.InferenceServerClient(served.grpc) as here,
    ):
        for model in ("add", "text", "kinds", "repeat", "sum"):
            wanted = there.get_model_metadata(model)
            found = here.get_model_metadata(model)
            assert found == wanted
            assert here.is_model_ready(model)
        assert here.get_model_config("add").config.max_batch_size == 64
    status = served.get("/admin/v1/models/add")["versions"][0]
    assert (status["runtime"], status["max_batch_size"]) == ("triton", 64)
    assert [each["url"] for each in status["endpoints"]] == [triton.url]
    assert status["endpoints"][0]["state"] == "ready"


# --- errors


def code_of(error: pytest.ExceptionInfo[Any]) -> tuple[grpc.StatusCode, str]:
    return error.value.code(), error.value.details()


def test_errors_of_the_model(served: GatewayProcess) -> None:
    x = np.ones((1, 2), "f4")
    with Stub(served.grpc) as stub:
        with pytest.raises(grpc.RpcError) as error:
            stub.infer("boom", x=x)
        code, text = code_of(error)
        assert code is grpc.StatusCode.INTERNAL
        assert "boom it says" in text
        assert "/" not in text
        with pytest.raises(grpc.RpcError) as error:
            stub.infer("add", x=np.ones((65, 1), "f4"))
        code, text = code_of(error)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "64" in text
        with pytest.raises(grpc.RpcError) as error:
            stub.infer("add", y=x)
        assert code_of(error)[0] is grpc.StatusCode.INVALID_ARGUMENT
    body = json.dumps(
        {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}
    ).encode()
    code, answer = post(served.http_address, "/v2/models/boom/infer", body)
    assert code == 500
    assert "boom it says" in answer["error"]


@pytest.mark.parametrize("model", ["text", "shared-text"])
def test_bytes_that_are_none_are_told_to_their_sender_alone(
    served: GatewayProcess, model: str
) -> None:
    good = INPUTS[model]
    wanted = {"echo": good["text"]}
    broken = bytearray(raw(model, good))
    at = broken.rindex(b"\x01\0\0\0a")
    broken[at] = 200  # an element that is longer than what is left
    with Stub(served.grpc) as stub:
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as error:
                stub(bytes(broken))
            assert code_of(error)[0] in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.INTERNAL,
            )
            assert equal(stub.infer(model, **good), wanted)


def test_a_deadline_ends_the_request_and_the_servers_work(
    triton: TritonProcess, served: GatewayProcess
) -> None:
    triton.forget("slow-cancelled")
    with Stub(served.grpc) as stub:
        with pytest.raises(grpc.RpcError) as error:
            stub.infer("slow", timeout=0.3, seconds=np.array([60], "f4"))
        assert code_of(error)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: triton.noted("slow-cancelled"), "the model to hear of it")
        assert stub.infer("slow", seconds=np.array([0], "f4"))
    triton.forget("slow-cancelled")
    body = json.dumps(
        {"inputs": [{"name": "seconds", "shape": [1], "datatype": "FP32", "data": [60]}]}
    ).encode()
    asked = urllib.request.Request(f"http://{served.http_address}/v2/models/slow/infer", body)
    asked.add_header("x-request-timeout-ms", "300")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=PATIENCE)
    assert refused.value.code == 504
    refused.value.close()
    wait_until(lambda: triton.noted("slow-cancelled"), "the model to hear of it")


@pytest.mark.parametrize("model", ["slow", "shared-slow"])
def test_who_goes_away_cancels_the_servers_work(
    triton: TritonProcess, served: GatewayProcess, model: str
) -> None:
    arrays = {"seconds": np.array([60], "f4")}
    if model == "shared-slow":
        arrays["ballast"] = np.zeros(40000, "f4")
    with Stub(served.grpc) as stub:
        for _ in range(2):
            triton.forget("slow-started")
            triton.forget("slow-cancelled")
            call = stub._infer.future(raw(model, arrays))
            wait_until(lambda: triton.noted("slow-started"), "the model to begin")
            call.cancel()
            wait_until(lambda: triton.noted("slow-cancelled"), "the model to hear of it")
        arrays["seconds"] = np.zeros(1, "f4")
        assert stub.infer(model, **arrays)["y"].tolist() == [0.0]


# --- streams and sequences


def streamed(address: str, *times: int, stop_after: int = -1) -> list[int | str]:
    """The answers of `repeat` to each request, until all are there."""
    found: list[int | str] = []
    last = threading.Semaphore(0)

    def heard(result: Any, error: Any) -> None:
        if error is not None:
            found.append(str(error.message()))
        else:
            final = result.get_response().parameters["triton_final_response"].bool_param
            if result.get_response().outputs:
                found.append(int(result.as_numpy("y")[0]))
            if not final:
                if len(found) == stop_after:
                    last.release(len(times))
                return
        last.release()

    with triton_grpc.InferenceServerClient(address) as client:
        client.start_stream(heard)
        for number in times:
            tensor = triton_grpc.InferInput("times", [1], "INT32")
            tensor.set_data_from_numpy(np.array([number], np.int32))
            client.async_stream_infer(
                "repeat", [tensor], enable_empty_final_response=True, request_id=str(number)
            )
        for _ in times:
            assert last.acquire(timeout=PATIENCE)
        client.stop_stream(cancel_requests=stop_after >= 0)
    return found


def test_decoupled_models_stream(triton: TritonProcess, served: GatewayProcess) -> None:
    assert streamed(served.grpc, 3) == streamed(triton.grpc, 3) == [0, 1, 2]
    assert streamed(served.grpc, 0) == streamed(triton.grpc, 0) == []
    assert sorted(streamed(served.grpc, 2, 2)) == [0, 0, 1, 1]
    *numbers, error = streamed(served.grpc, -2)
    assert numbers == [0, 1]
    assert "below zero" in str(error)
    with Stub(served.grpc) as stub:
        with pytest.raises(grpc.RpcError) as refused:
            stub.infer("repeat", times=np.array([1], np.int32))
        assert "ModelStreamInfer" in code_of(refused)[1]


def test_how_many_streams_at_a_time(triton: TritonProcess, tmp_path: Path) -> None:
    with LoopHost() as host:

        def load(name: str, **keys: Any) -> RemoteModel:
            remote = RemoteSettings(urls=(triton.url,), model=name)
            own = ModelSettings(runtime="triton", remote=remote, **keys)
            model = TritonRuntime().load(Artifact("m", "1", tmp_path / "m" / "1", own, host))
            assert isinstance(model, RemoteModel)
            model.close()
            return model

        assert load("repeat").instances == STREAMS, "not as many as the server has instances"
        assert load("repeat", instances=7).instances == 7
        with pytest.raises(ModelLoadError, match="'instances'"):
            load("add", instances=7)


def test_who_leaves_a_stream_ends_it_there(triton: TritonProcess, served: GatewayProcess) -> None:
    triton.forget("repeat-cancelled")
    assert streamed(served.grpc, 100_000, stop_after=5)[:5] == [0, 1, 2, 3, 4]
    wait_until(lambda: triton.noted("repeat-cancelled"), "the model to hear of it")
    assert streamed(served.grpc, 2) == [0, 1]


def test_sequences_are_the_servers(served: GatewayProcess) -> None:
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        totals = dict.fromkeys((5, 6), 0)
        for step in range(4):
            for sequence, total in totals.items():
                tensor = triton_grpc.InferInput("x", [1, 1], "INT32")
                tensor.set_data_from_numpy(np.array([[step * sequence]], np.int32))
                answer = client.infer(
                    "sum",
                    [tensor],
                    sequence_id=sequence,
                    sequence_start=step == 0,
                    sequence_end=step == 3,
                )
                totals[sequence] = total + step * sequence
                assert answer.as_numpy("y").tolist() == [[totals[sequence]]]


# --- shared memory


def test_shared_memory_leaves_no_files(served: GatewayProcess) -> None:
    def ask() -> None:
        with Stub(served.grpc) as stub:
            for _ in range(5):
                x = rng.normal(size=(2, 131072)).astype("f4")
                assert np.array_equal(stub.infer("shared", x=x)["y"], x + 1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    shared = served.get("/admin/v1/models/shared")["versions"][0]["shared_memory"]
    # 1 MiB in, 1 MiB out, and what was tried when the model was loaded.
    assert 2 * 2**20 <= shared["bytes"] <= 4 * 2 * 2**20 + 65536
    assert not list(Path("/dev/shm").glob(f"sluicegate-{served.pid}-*"))


def test_without_room_in_shared_memory_requests_are_sent_plainly(
    triton: TritonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_memory, "MAX_REGION", 4 * 65536)
    with LoopHost() as host:
        remote = RemoteSettings(urls=(triton.url,), model="wide", shared_memory=True)
        own = ModelSettings(runtime="triton", remote=remote)
        model = TritonRuntime().load(Artifact("m", "1", tmp_path / "m" / "1", own, host))
        assert isinstance(model, RemoteModel)
        x = rng.normal(size=(2, 131072)).astype("f4")
        tensor = Tensor("x", datatype_of(x), x.shape, array=x)
        work = model.forward(InferenceRequest("m", "1", (tensor,)), None, {}.get)
        answer = asyncio.run_coroutine_threadsafe(work, host.loop).result(PATIENCE)
        assert np.array_equal(answer.outputs[0].array, x + 1)
        assert model.status()["shared_memory"] == {"regions": 1, "bytes": 65536, "leaving": 0}
        model.close()


def test_shared_memory_with_a_server_that_was_started_again(tmp_path: Path) -> None:
    (tmp_path / "triton").mkdir()
    with TritonProcess(tmp_path / "triton", ["wide", "add"]) as server:
        root = tmp_path / "models"
        serve_from(root, "shared", server.url, model="wide", shared_memory=True, health_seconds=0.2)
        with GatewayProcess(tmp_path, [root]) as gateway, Stub(gateway.grpc) as stub:
            x = rng.normal(size=(2, 131072)).astype("f4")
            assert np.array_equal(stub.infer("shared", x=x)["y"], x + 1)
            server.restart()

            def back() -> bool:
                try:
                    return np.array_equal(stub.infer("shared", x=x)["y"], x + 1)
                except grpc.RpcError as error:
                    code = error.code()  # type: ignore[attr-defined]
                    assert code is grpc.StatusCode.UNAVAILABLE
                    return False

            wait_until(back, "traffic to be back", PATIENCE)
            for _ in range(3):
                assert back()
            server.pause()
            for _ in range(3):  # nobody knows when it will have done with what these wrote
                with pytest.raises(grpc.RpcError) as error:
                    stub.infer("shared", timeout=0.5, x=-x)
                assert code_of(error)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
            server.resume()
            wait_until(back, "traffic to be back", PATIENCE)
            wait_until(lambda: server_regions(server) == 1, "regions to be given up", PATIENCE)
            before = server_regions(server)
        # The gateway has given back what the server had mapped.
        assert before
        assert server_regions(server) == 0


def server_regions(server: TritonProcess) -> int:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        return len(client.get_system_shared_memory_status().regions)


# --- servers die and come back


class Asking:
    """Threads that ask `model` to add, again and again, and keep what became of it."""

    def __init__(self, address: str, model: str, threads: int = 4) -> None:
        self.codes: Counter[str] = Counter()
        self.longest = 0.0
        self._address = address
        self._model = model
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(threads)]

    def _ask(self, number: int) -> None:
        with Stub(self._address) as stub:
            step = 0
            while not self._stopping.is_set():
                step += 1
                x = np.array([[number, step]], "f4")
                begun = time.monotonic()
                try:
                    y = stub.infer(self._model, timeout=20.0, x=x)["y"]
                    code = "OK" if np.array_equal(y, x + 1) else f"wrong: {y}"
                except grpc.RpcError as error:
                    code = error.code().name  # type: ignore[attr-defined]
                    self._stopping.wait(0.01)
                except Exception as error:
                    code = repr(error)
                self.codes[code] += 1
                self.longest = max(self.longest, time.monotonic() - begun)

    def more(self, count: int = 40) -> None:
        """Waits for that many further answers."""
        wanted = self.codes["OK"] + count
        wait_until(lambda: self.codes["OK"] >= wanted, f"answers: {self.codes}", PATIENCE)

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.mark.parametrize("batching", ["server", "gateway"])
def test_a_server_is_killed_under_load_and_comes_back(tmp_path: Path, batching: str) -> None:
    (tmp_path / "triton").mkdir()
    with TritonProcess(tmp_path / "triton", ["add"]) as server:
        root = tmp_path / "models"
        serve_from(root, "add", server.url, batching=batching, health_seconds=0.3)
        kind = "native" if batching == "gateway" else "grpcio"
        with GatewayProcess(tmp_path, [root], grpc_server=kind) as gateway:
            with Asking(gateway.grpc, "add") as asking:
                asking.more()
                server.kill()
                wait_until(lambda: asking.codes["UNAVAILABLE"] >= 8, "refusals", PATIENCE)
                with triton_grpc.InferenceServerClient(gateway.grpc) as client:
                    assert client.is_server_live()
                server.start()
                asking.more()
            assert set(asking.codes) == {"OK", "UNAVAILABLE"}
            assert asking.longest < 15


def test_one_of_two_servers_is_killed_under_load(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with (
        TritonProcess(tmp_path / "one", ["add"]) as one,
        TritonProcess(tmp_path / "two", ["add"]) as two,
    ):
        root = tmp_path / "models"
        urls = f"{one.url} {two.url}"
        serve_from(root, "add", urls, health_seconds=0.3)
        serve_from(root, "again", urls, model="add", health_seconds=0.3)
        settings(root, "again", idempotent=True)

        def served(model: str) -> dict[str, int]:
            endpoints = gateway.get(f"/admin/v1/models/{model}")["versions"][0]["endpoints"]
            return {each["url"]: each["requests"] for each in endpoints}

        with GatewayProcess(tmp_path, [root]) as gateway:
            with Asking(gateway.grpc, "add") as once, Asking(gateway.grpc, "again") as again:
                once.more()
                again.more()
                one.kill()
                once.more(200)
                again.more(200)
                one.start()
                before = served("add")[one.url]
                wait_until(lambda: served("add")[one.url] > before + 20, "traffic", PATIENCE)
                once.more()
                again.more()
            assert set(again.codes) == {"OK"}
            assert set(once.codes) <= {"OK", "UNAVAILABLE"}
            # Those that were under way there when it died, and no others.
            assert once.codes["UNAVAILABLE"] <= 4


def test_one_canary_in_process_and_on_triton(triton: TritonProcess, tmp_path: Path) -> None:
    root = tmp_path / "models"
    write(root / "add" / "1", adding(10.0))
    serve_from(root, "add", triton.url, version="2")
    settings(root, "add", versions={"all": True})
    (root / "add" / "traffic.yaml").write_text("weights: {1: 50, 2: 50}\nstable: '1'\n")
    found: Counter[tuple[str, float]] = Counter()
    with GatewayProcess(tmp_path, [root]) as gateway, Stub(gateway.grpc) as stub:
        x = np.zeros((1, 4), "f4")
        for _ in range(60):
            payload = stub(raw("add", {"x": x}))
            version = client_grpc.ModelInferResponse.FromString(payload).model_version
            found[version, float(arrays_of(payload)["y"][0, 0])] += 1
    assert found.keys() == {("1", 10.0), ("2", 1.0)}
    assert min(found.values()) > 10


# --- what cannot be served


@pytest.mark.parametrize(
    ("model", "document", "more", "says"),
    [
        ("nope", {}, {}, "nope"),
        ("repeat", {"batching": "gateway"}, {}, "decoupled"),
        ("sum", {"batching": "gateway"}, {}, "sequences"),
        ("sum", {}, {"idempotent": True}, "idempotent is set"),
        ("kinds", {"batching": "gateway"}, {}, "no batch dimension"),
        ("add", {}, {"max_batch_size": 65}, "max_batch_size is 65, but .* says 64"),
        ("add", {}, {"decoupled": True}, "decoupled is set"),
        ("add", {"shared_memory": True, "urls": ["grpc://192.0.2.1:8001"]}, {}, "192.0.2.1"),
        ("add", {"urls": ["http://127.0.0.1:8000"]}, {}, "grpc://127.0.0.1:8001"),
        (
            "add",
            {},
            {"inputs": [{"name": "z", "datatype": "FP32", "dims": [4]}]},
            "'(z|x)' is",
        ),
    ],
)
def test_what_cannot_be_is_said_when_the_model_is_loaded(
    triton: TritonProcess, tmp_path: Path, model: str, document: Any, more: Any, says: str
) -> None:
    from gateway.errors import SluiceError

    with pytest.raises(SluiceError, match=says) as told:
        load(tmp_path, {"urls": [triton.url], "model": model, **document}, more)
    assert "\n" not in str(told.value)


def load(tmp_path: Path, document: Any, more: Any) -> None:
    """Loads a version as the gateway does, on a loop in a thread."""
    import asyncio

    from gateway.model_settings import ModelSettings
    from gateway.registries.model_documents import read_settings
    from runtimes.interface import Artifact
    from runtimes.remote.triton import TritonRuntime

    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "remote.yaml").write_text(json.dumps({"runtime": "triton", **document}))
    own = ModelSettings()
    if more:
        settings(tmp_path, "m", **more)
        own = read_settings(tmp_path / "m", "m")

    class Host:
        loop = asyncio.new_event_loop()

    host: Any = Host()
    thread = threading.Thread(target=host.loop.run_forever)
    thread.start()
    try:
        TritonRuntime().load(Artifact("m", "1", folder, own, host)).close()
    finally:
        host.loop.call_soon_threadsafe(host.loop.stop)
        thread.join()
        host.loop.close()
