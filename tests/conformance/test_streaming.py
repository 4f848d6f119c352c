"""Models that answer any number of times, by real clients on both protocols."""

from __future__ import annotations

import asyncio
import json
import queue
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio

from gateway.codecs.messages import METHODS, ModelInferRequest, ModelStreamInferResponse
from tests.support.gateway import PATIENCE, GatewayProcess, wait_until
from tests.support.streaming import Journal, gateway_with_streams, write_model

SERVERS = ("native", "grpcio")
KINDS = ("counts", "counts-async")
"""Models, named like their kind: one works in a thread, the other on the loop."""
FOR_EVER = 2**40


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streaming-models")
    for kind in KINDS:
        write_model(folder, kind, kind)
        write_model(folder, f"single-{kind}", kind, instances=1)
    write_model(folder, "bounded", "counts", instances=1, limits={"max_in_flight": 2})
    write_model(folder, "split", "counts", count=2, versions={"all": True})
    (folder / "split" / "traffic.yaml").write_text(
        'weights: {"1": 50, "2": 50}\nstable: "1"\nsticky: {parameter: user}\n'
    )
    write_model(folder, "talker", "talker")
    write_model(folder, "blind", "blind")
    return folder


@pytest.fixture(scope="module", params=SERVERS)
def gateway(
    request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """Each gRPC server in turn."""
    if request.param == "native":
        pytest.importorskip("pygrpc_native")
    folder = tmp_path_factory.mktemp(f"streaming-{request.param}")
    with gateway_with_streams(folder, models, grpc_server=request.param) as running:
        yield running


class Watched:
    """A model under test: what it did since the test began."""

    def __init__(self, gateway: GatewayProcess, models: Path, name: str) -> None:
        self.gateway = gateway
        self.name = name
        self.path = f"/v2/models/{name}"
        self._journal = Journal(models / name / "1")
        self._before = len(self._journal.lines())

    def lines(self) -> list[str]:
        return self._journal.lines()[self._before :]

    def did(self, line: str) -> int:
        return self.lines().count(line)

    def wait_did(self, line: str, times: int = 1) -> None:
        wait_until(lambda: self.did(line) >= times, f"{times} times {line!r} of {self.name}")

    def wait_idle(self) -> None:
        """Until nothing waits or runs, in the model and in the gateway."""
        status = f"/admin/v1/models/{self.name}"
        wait_until(
            lambda: self.gateway.get(status)["versions"][0]["pending"] == 0, "the model to be idle"
        )
        wait_until(
            lambda: self.gateway.get("/admin/v1/status")["in_flight"] == 0, "nothing in flight"
        )

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = self.gateway.get(f"{self.path}/stats")["model_stats"][0]
        return found

    def settled(self) -> int:
        """How many answers it had made when it made no more for a while."""
        before = -1
        while before != (now := self.did("made")):
            before = now
            time.sleep(0.3)
        return now


@pytest.fixture(params=KINDS)
def model(
    request: pytest.FixtureRequest, gateway: GatewayProcess, models: Path
) -> Iterator[Watched]:
    watched = Watched(gateway, models, request.param)
    yield watched
    watched.wait_idle()


@pytest.fixture
def http(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.http, timeout=PATIENCE) as client:
        yield client


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream, which has nothing else in it."""
    found = []
    for each in text.split("\n\n")[:-1]:
        assert each.startswith("data: "), each
        found.append(json.loads(each.removeprefix("data: ")))
    return found


# --- server-sent events


def test_answers_come_as_events(model: Watched, http: httpx.Client) -> None:
    answer = http.post(f"{model.path}/generate_stream", json={"n": 3, "warmth": 0.5, "id": "a"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-sluice-version"] == "1"
    assert answer.headers["x-sluice-route"] == "split"
    like = {"model_name": model.name, "model_version": "1", "id": "a", "pad": "warmth"}
    assert events(answer.text) == [{**like, "y": value} for value in range(3)]


def test_each_event_is_sent_when_it_is_there(model: Watched, http: httpx.Client) -> None:
    with http.stream("POST", f"{model.path}/generate_stream", json={"n": FOR_EVER}) as answer:
        seen = answer.iter_lines()
        for value in range(20):
            assert json.loads(next(seen).removeprefix("data: "))["y"] == value
            assert next(seen) == ""
        assert not model.did("ended")
    model.wait_did("stopped")
    model.wait_did("ended")


def test_no_answers_are_an_empty_stream(model: Watched, http: httpx.Client) -> None:
    answer = http.post(f"{model.path}/generate_stream", json={"n": 0})
    assert answer.status_code == 200 and answer.text == ""
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_error_after_some_answers_is_the_last_event(model: Watched, http: httpx.Client) -> None:
    answer = http.post(f"{model.path}/generate_stream", json={"n": 9, "fail_at": 2})
    assert answer.status_code == 200
    *good, bad = events(answer.text)
    assert [each["y"] for each in good] == [0, 1]
    assert bad == {"error": "the runtime failed: ValueError: no more of these"}
    assert model.did("ended") == 1


def test_error_before_the_first_answer_has_its_status(model: Watched, http: httpx.Client) -> None:
    failed = http.post(f"{model.path}/generate_stream", json={"n": 9, "fail_at": 0})
    assert (failed.status_code, failed.headers["content-type"]) == (500, "application/json")
    assert failed.json() == {"error": "the runtime failed: ValueError: no more of these"}
    wrong = http.post(f"{model.path}/generate_stream", json={"n": "many"})
    assert (wrong.status_code, wrong.headers["content-type"]) == (400, "application/json")
    unknown = http.post("/v2/models/nobody/generate_stream", json={"n": 1})
    assert unknown.status_code == 404
    assert model.did("begun") == 1


def test_client_that_goes_away_stops_the_model(model: Watched) -> None:
    sock = posted(model, {"n": FOR_EVER, "pause": 0.01})
    assert b"data: " in read_until(sock, b"data: ")
    sock.close()
    model.wait_did("stopped")
    model.wait_idle()


def test_client_that_goes_away_before_the_first_answer(model: Watched) -> None:
    before = model.stats()["inference_stats"]["fail"]["count"]
    sock = posted(model, {"n": 3, "pause": 0.5})
    model.wait_did("begun")
    sock.close()
    model.wait_did("ended")
    model.wait_idle()
    assert model.did("made") <= 1
    assert model.stats()["inference_stats"]["fail"]["count"] == before + 1


def test_client_that_does_not_read_pauses_the_model(model: Watched) -> None:
    sock = posted(model, {"n": FOR_EVER, "pad": 65536})
    made = model.settled()
    # Buffers of both ends, and no more.
    assert 0 < made < 400
    read = 0
    while read < 65536 * (made + 8):
        read += len(sock.recv(1 << 20))
    assert model.did("made") > made
    sock.close()
    model.wait_did("stopped")


def test_deadline_ends_a_running_stream(model: Watched, http: httpx.Client) -> None:
    answer = http.post(
        f"{model.path}/generate_stream",
        json={"n": FOR_EVER, "pause": 0.02},
        headers={"x-request-timeout-ms": "400"},
    )
    *good, bad = events(answer.text)
    assert [each["y"] for each in good] == list(range(len(good)))
    assert "deadline passed" in bad["error"] and "the model was stopped" in bad["error"]
    model.wait_did("ended")


@pytest.mark.parametrize("kind", KINDS)
def test_deadline_passes_in_the_line(
    gateway: GatewayProcess, models: Path, http: httpx.Client, kind: str
) -> None:
    model = Watched(gateway, models, f"single-{kind}")
    with http.stream("POST", f"{model.path}/generate_stream", json={"n": FOR_EVER}) as busy:
        chunks = busy.iter_bytes()
        next(chunks)
        late = httpx.post(
            f"{gateway.http}{model.path}/generate_stream",
            json={"n": 1, "parameters": {"timeout": 50_000}},
            timeout=PATIENCE,
        )
        assert late.status_code == 504
        assert "the request was not executed" in late.json()["error"]
    model.wait_idle()
    assert model.did("begun") == 1


def test_bound_of_requests_in_flight(
    gateway: GatewayProcess, models: Path, http: httpx.Client
) -> None:
    model = Watched(gateway, models, "bounded")
    socks = [posted(model, {"n": FOR_EVER, "pause": 0.01}) for _ in range(2)]
    status = "/admin/v1/models/bounded"
    wait_until(lambda: gateway.get(status)["versions"][0]["pending"] == 2, "two in flight")
    refused = http.post(f"{model.path}/generate_stream", json={"n": 1})
    assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
    assert "2 requests in flight" in refused.json()["error"]
    for sock in socks:
        sock.close()
    model.wait_idle()


def posted(model: Watched, body: dict[str, Any]) -> socket.socket:
    """A raw connection that has asked for a stream."""
    url = urlsplit(model.gateway.http)
    assert url.hostname is not None and url.port is not None
    sock = socket.create_connection((url.hostname, url.port), timeout=PATIENCE)
    data = json.dumps(body).encode()
    sock.sendall(
        b"POST %b/generate_stream HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
        % (model.path.encode(), len(data), data)
    )
    return sock


def read_until(sock: socket.socket, text: bytes) -> bytes:
    """What comes, up to `text` at least."""
    got = b""
    while text not in got:
        chunk = sock.recv(65536)
        assert chunk, f"closed after {got[-200:]!r}"
        got += chunk
    return got


# --- the one answer of /generate


def test_generate_wants_exactly_one_answer(model: Watched, http: httpx.Client) -> None:
    one = http.post(f"{model.path}/generate", json={"n": 1})
    assert one.json() == {"model_name": model.name, "model_version": "1", "y": 0, "pad": ""}
    assert one.headers["x-sluice-version"] == "1"
    for count in (0, 2, FOR_EVER):
        other = http.post(f"{model.path}/generate", json={"n": count})
        assert other.status_code == 501
        assert "generate expects model to produce exactly 1 response" in other.json()["error"]
    model.wait_did("ended", 4)


def test_generate_as_language_models_have_it(http: httpx.Client) -> None:
    body = {"text_input": "hi", "parameters": {"times": 2, "stream": True}, "id": "7"}
    first, second = events(http.post("/v2/models/talker/generate_stream", json=body).text)
    assert first["text_output"] == second["text_output"] == "hi"
    assert (first["scores"], second["scores"]) == ([0, 0.5, 1], [1, 0.5, 1])
    assert first["id"] == "7"
    one = http.post("/v2/models/talker/versions/1/generate", json={"text_input": ["hi"]})
    assert one.json()["text_output"] == "hi"


def test_generate_works_with_every_model(http: httpx.Client) -> None:
    for path in ("generate", "generate_stream"):
        answer = http.post(f"/v2/models/blind/{path}", json={"x": [1, 2, 3, 4], "warm": True})
        data = answer.json() if path == "generate" else events(answer.text)[0]
        assert data["seen"] == "[[1.0, 2.0], [3.0, 4.0]] {'warm': True}"


def test_splits_and_stickiness(http: httpx.Client) -> None:
    for n in range(6):
        body = {"n": 1, "user": f"u{n}"}
        seen = {
            http.post(f"/v2/models/split/{path}", json=body).headers["x-sluice-version"]
            for path in ("generate", "generate_stream") * 3
        }
        assert len(seen) == 1
    seen = {
        http.post("/v2/models/split/generate", json={"n": 1}).headers["x-sluice-version"]
        for _ in range(40)
    }
    assert seen == {"1", "2"}
    named = http.post("/v2/models/split/versions/2/generate_stream", json={"n": 1})
    assert named.headers["x-sluice-route"] == "version"
    assert events(named.text)[0]["model_version"] == "2"


def test_other_endpoints_say_where_to_go(
    gateway: GatewayProcess, http: httpx.Client, model: Watched
) -> None:
    body = {"inputs": [{"name": "n", "shape": [1], "datatype": "INT64", "data": [1]}]}
    refused = http.post(f"{model.path}/infer", json=body)
    assert refused.status_code == 501 and "generate_stream" in refused.json()["error"]
    v1 = http.post(f"/v1/models/{model.name}:predict", json={"inputs": {"n": [1]}})
    assert v1.status_code == 501
    with tritonclient.grpc.InferenceServerClient(gateway.grpc) as client:
        with pytest.raises(tritonclient.grpc.InferenceServerException) as caught:
            client.infer(model.name, [number(1)])
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
        assert "ModelStreamInfer" in caught.value.message()
        config = client.get_model_config(model.name, as_json=True)["config"]
        assert config["model_transaction_policy"] == {"decoupled": True}
        assert model.name in str(client.get_inference_statistics(model.name))
    assert gateway.get(f"/admin/v1/models/{model.name}")["decoupled"] is True


def test_answers_are_counted(model: Watched, http: httpx.Client) -> None:
    before = model.stats()
    http.post(f"{model.path}/generate_stream", json={"n": 3})
    http.post(f"{model.path}/generate_stream", json={"n": 9, "fail_at": 1})
    model.wait_idle()
    after = model.stats()

    def grown(*keys: str) -> int:
        old: Any = before
        new: Any = after
        for key in keys:
            old, new = old.get(key, {}) if isinstance(old, dict) else old, new[key]
        return int(new) - int(old or 0)

    assert grown("execution_count") == grown("inference_stats", "success", "count") == 1
    assert grown("inference_stats", "fail", "count") == 1
    assert grown("response_stats", "0", "success", "count") == 2
    assert grown("response_stats", "2", "success", "count") == 1
    page = httpx.get(f"{model.gateway.http}/metrics").text
    labels = f'{{model="{model.name}",version="1"}}'
    assert f"sluice_streamed_answers_total{labels}" in page
    assert f"sluice_first_answer_seconds_count{labels}" in page


# --- ModelStreamInfer


class Stream:
    """A stream of tritonclient's, whose answers wait in a queue."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.client = tritonclient.grpc.InferenceServerClient(gateway.grpc)
        self._answers: queue.Queue[Any] = queue.Queue()
        self.client.start_stream(lambda result, error: self._answers.put((result, error)))

    def ask(self, model: str, n: int, **arguments: Any) -> None:
        self.client.async_stream_infer(model, [number(n)], **arguments)

    def next(self) -> Any:
        """The message of the next answer, or the text of an error."""
        result, error = self._answers.get(timeout=PATIENCE)
        return error.message() if error is not None else result

    def close(self, **arguments: Any) -> None:
        self.client.stop_stream(**arguments)
        self.client.close()

    def empty(self) -> bool:
        return self._answers.empty()


@pytest.fixture
def stream(gateway: GatewayProcess) -> Iterator[Stream]:
    stream = Stream(gateway)
    yield stream
    stream.close(cancel_requests=True)


def number(n: int) -> Any:
    tensor = tritonclient.grpc.InferInput("n", [1], "INT64")
    tensor.set_data_from_numpy(np.array([n], np.int64))
    return tensor


def final(result: Any) -> bool:
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


def test_answers_on_a_stream(model: Watched, stream: Stream) -> None:
    stream.ask(model.name, 3, request_id="a", parameters={"warm": True})
    for value in range(3):
        result = stream.next()
        assert result.get_response().id == "a"
        assert result.as_numpy("y").tolist() == [value]
        assert result.as_numpy("pad").tolist() == [b"warm"]
        assert not final(result)
    stream.close()
    assert stream.empty(), "an empty final answer comes to those alone who ask for it"


@pytest.mark.parametrize("count", [0, 2])
def test_empty_final_answer(model: Watched, stream: Stream, count: int) -> None:
    stream.ask(model.name, count, request_id="a", enable_empty_final_response=True)
    for _ in range(count):
        result = stream.next()
        assert not final(result)
        assert result.as_numpy("pad").tolist() == [b""], "the model does not see the parameter"
    result = stream.next()
    assert final(result)
    response = result.get_response()
    assert (response.id, response.model_name, list(response.outputs)) == ("a", model.name, [])
    stream.close()
    assert stream.empty()


def test_error_leaves_the_stream_alive(model: Watched, stream: Stream) -> None:
    stream.ask(model.name, 5, parameters={"fail_at": 1})
    assert stream.next().as_numpy("y").tolist() == [0]
    assert stream.next() == "the runtime failed: ValueError: no more of these"
    stream.ask("nobody", 1)
    assert stream.next().startswith("Request for unknown model")
    stream.client.async_stream_infer(model.name, [])
    assert "has no inputs" in stream.next()
    stream.ask(model.name, 1)
    assert stream.next().as_numpy("y").tolist() == [0]


def test_requested_outputs_alone_are_sent(model: Watched, stream: Stream) -> None:
    wanted = [tritonclient.grpc.InferRequestedOutput("y")]
    stream.ask(model.name, 1, outputs=wanted)
    assert [output.name for output in stream.next().get_response().outputs] == ["y"]
    stream.ask(model.name, 1, outputs=[tritonclient.grpc.InferRequestedOutput("z")])
    assert "no output 'z'" in stream.next()


def test_requests_of_one_stream_interleave(model: Watched, stream: Stream) -> None:
    stream.ask(model.name, FOR_EVER, request_id="long", parameters={"pause": 0.01})
    assert stream.next().get_response().id == "long"
    stream.ask(model.name, 2, request_id="short")
    tensor = tritonclient.grpc.InferInput("x", [1, 2], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 2), np.float32))
    for index in range(3):
        stream.client.async_stream_infer("blind", [tensor], request_id=f"blind-{index}")
    left = {"short": 2, "long": 3}
    blind = []
    while left["short"] > 0 or left["long"] > 0 or len(blind) < 3:
        result = stream.next()
        name = result.get_response().id
        if name.startswith("blind"):
            assert final(result), "who answers once says so"
            blind.append(name)
        else:
            left[name] -= 1
    assert blind == ["blind-0", "blind-1", "blind-2"]
    assert not model.did("stopped")
    stream.close(cancel_requests=True)
    model.wait_did("stopped")


def test_many_streams_of_one_model_share_its_places(
    gateway: GatewayProcess, models: Path, stream: Stream
) -> None:
    model = Watched(gateway, models, "single-counts")
    for index in range(5):
        stream.ask(model.name, 3, request_id=str(index))
    got: dict[str, list[int]] = {}
    for _ in range(15):
        result = stream.next()
        got.setdefault(result.get_response().id, []).append(int(result.as_numpy("y")[0]))
    assert got == {str(index): [0, 1, 2] for index in range(5)}
    model.wait_idle()
    # One after the other, though what they made may overtake on its way.
    assert model.lines() == ["begun", *["made"] * 3, "ended"] * 5


def test_half_closed_stream_lets_models_end(model: Watched, stream: Stream) -> None:
    stream.ask(model.name, 30, parameters={"pause": 0.01})
    stream.next()
    stream.close()  # waits for the answers
    for value in range(1, 30):
        assert stream.next().as_numpy("y").tolist() == [value]
    assert not model.did("stopped")


def test_cancelled_stream_stops_models_that_run_and_wait(
    gateway: GatewayProcess, models: Path, stream: Stream
) -> None:
    for kind in KINDS:
        model = Watched(gateway, models, f"single-{kind}")
        own = Stream(gateway)
        for _ in range(4):
            own.ask(model.name, FOR_EVER, parameters={"pause": 0.01})
        own.next()
        own.close(cancel_requests=True)
        model.wait_did("stopped")
        model.wait_idle()
        assert model.did("begun") == 1


def raw_stream(gateway: GatewayProcess) -> tuple[grpc.Channel, Callable[..., Any]]:
    channel = grpc.insecure_channel(gateway.grpc)
    return channel, channel.stream_stream(METHODS["ModelStreamInfer"].path)


def message(model: str, n: int, **parameters: Any) -> bytes:
    request = ModelInferRequest(model_name=model)
    request.inputs.add(name="n", datatype="INT64", shape=[1])
    request.raw_input_contents.append(np.array([n], np.int64).tobytes())
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    encoded: bytes = request.SerializeToString()
    return encoded


def test_client_that_does_not_read_a_stream_pauses_the_model(model: Watched) -> None:
    channel, method = raw_stream(model.gateway)
    asked: queue.Queue[bytes | None] = queue.Queue()
    asked.put(message(model.name, FOR_EVER, pad=65536))
    call = method(iter(asked.get, None))
    next(call)
    made = model.settled()
    assert made < 1000
    for _ in range(made + 8):
        next(call)
    assert model.did("made") > made
    asked.put(None)
    call.cancel()
    channel.close()
    model.wait_did("stopped")


def test_deadline_of_the_call_stops_the_model(model: Watched) -> None:
    channel, method = raw_stream(model.gateway)
    call = method(iter([message(model.name, FOR_EVER, pause=0.01)]), timeout=0.5)
    said = ""
    try:
        for each in call:
            said = said or ModelStreamInferResponse.FromString(each).error_message
    except grpc.RpcError as error:
        # The RPC may end before our own message has come through.
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    else:
        assert "the model was stopped" in said
    channel.close()
    model.wait_did("stopped")


def test_reserved_parameter_of_a_wrong_kind(model: Watched) -> None:
    channel, method = raw_stream(model.gateway)
    payload = message(model.name, 1, triton_enable_empty_final_response=1)
    (answer,) = (ModelStreamInferResponse.FromString(each) for each in method(iter([payload])))
    assert "must be a bool_param" in answer.error_message
    channel.close()


def test_asyncio_client(model: Watched) -> None:
    async def run() -> list[int]:
        async def requests() -> Any:
            for n in (2, 3):
                yield {
                    "model_name": model.name,
                    "inputs": [number(n)],
                    "enable_empty_final_response": True,
                }

        values, ends = [], 0
        async with tritonclient.grpc.aio.InferenceServerClient(model.gateway.grpc) as client:
            answers = client.stream_infer(requests())
            async for result, error in answers:
                assert error is None
                if final(result):
                    ends += 1
                else:
                    values.append(int(result.as_numpy("y")[0]))
                if ends == 2:
                    break
            answers.cancel()
        return sorted(values)

    assert asyncio.run(run()) == [0, 0, 1, 1, 2]


# --- the end of the gateway


@pytest.mark.parametrize("patience", [0.5, 20])
def test_drain_waits_for_streams(models: Path, tmp_path: Path, patience: float) -> None:
    settings = {"drain.grace": 0, "drain.timeout": patience}
    gateway = gateway_with_streams(tmp_path, models, settings=settings)
    with gateway:
        n = 50 if patience > 1 else FOR_EVER
        body = {"n": n, "pause": 0.02}
        with httpx.stream(
            "POST", f"{gateway.http}/v2/models/counts/generate_stream", json=body, timeout=PATIENCE
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            gateway.process.send_signal(signal.SIGTERM)
            rest = [json.loads(each.removeprefix("data: ")) for each in lines if each]
        gateway.process.wait(PATIENCE)
    if patience > 1:
        assert [each["y"] for each in rest] == list(range(1, n))
    else:
        assert "draining" in rest[-1]["error"]


# --- a Python model


TELLER = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            n = int(pb_utils.get_input_tensor_by_name(request, "n").as_numpy()[0])
            sender = request.get_response_sender()
            for value in range(n):
                if sender.is_cancelled():
                    break
                y = pb_utils.Tensor("y", np.array([value], np.int64))
                sender.send(pb_utils.InferenceResponse([y]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
CONFIG = """
backend: "python"
input [ { name: "n" data_type: TYPE_INT64 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_INT64 dims: [ 1 ] } ]
model_transaction_policy { decoupled: true }
"""


def test_decoupled_python_model_of_tritons(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "teller" / "1").mkdir(parents=True)
    (models / "teller" / "1" / "model.py").write_text(TELLER)
    (models / "teller" / "config.pbtxt").write_text(CONFIG)
    with GatewayProcess(tmp_path, [models]) as gateway:
        path = f"{gateway.http}/v2/models/teller/generate_stream"
        answer = httpx.post(path, json={"n": 3}, timeout=PATIENCE)
        assert [each["y"] for each in events(answer.text)] == [0, 1, 2]
        stream = Stream(gateway)
        stream.ask("teller", 2, enable_empty_final_response=True)
        assert [stream.next().as_numpy("y").tolist() for _ in range(2)] == [[0], [1]]
        assert final(stream.next())
        stream.close()
        with httpx.stream("POST", path, json={"n": FOR_EVER}, timeout=PATIENCE) as endless:
            lines = endless.iter_lines()
            assert json.loads(next(lines).removeprefix("data: "))["y"] == 0
        status = "/admin/v1/models/teller"
        wait_until(
            lambda: gateway.get(status)["versions"][0]["pending"] == 0, "the model to be stopped"
        )
