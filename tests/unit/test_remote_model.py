"""Models on other servers, over real sockets: what is tried again, and what never is."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from gateway.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidInput,
    ModelLoadError,
    ModelNotReady,
    NotAllowed,
    QueueFull,
    SluiceError,
    Unavailable,
)
from gateway.model_settings import ModelSettings, RemoteSettings, TensorSettings
from gateway.tensors import DATATYPES, InferenceRequest, InferenceResponse, Tensor
from runtimes.hosts import LoopHost
from runtimes.interface import Artifact
from runtimes.remote import opening
from runtimes.remote.http_transport import Response
from runtimes.remote.model import RemoteModel
from runtimes.remote.oip import OipRuntime
from tests.support.gateway import wait_until
from tests.support.stand_in import (
    BROKEN,
    EXHAUSTED,
    INVALID,
    LATE,
    LISTED,
    MISSING,
    MODEL,
    SLOW,
    UNAVAILABLE,
    Process,
    StandIn,
)

FP32 = DATATYPES["FP32"]
TRANSPORTS = ("grpc", "http")


@pytest.fixture(scope="module")
def host() -> Iterator[LoopHost]:
    with LoopHost() as host:
        yield host


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server


@pytest.fixture
def other() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server


@pytest.fixture
def load(host: LoopHost, tmp_path: Path) -> Iterator[Callable[..., RemoteModel]]:
    loaded: list[RemoteModel] = []

    def load(*urls: str, settings: Mapping[str, Any] | None = None, **remote: Any) -> RemoteModel:
        there = RemoteSettings(urls=urls, **{"health_seconds": 0.2, "model": "add", **remote})
        own = ModelSettings(runtime="oip", remote=there, **(settings or {}))
        artifact = Artifact("ours", "7", tmp_path / "ours" / "7", own, host)
        model = OipRuntime().load(artifact)
        assert isinstance(model, RemoteModel)
        loaded.append(model)
        return model

    yield load
    for model in loaded:
        model.close()


def url(server: StandIn, transport: str) -> str:
    return server.grpc_url if transport == "grpc" else server.http_url


def ends(server: StandIn) -> list[str]:
    """What became of each call that has come to the server."""
    return [each["end"] for each in server.calls]


def request(first: float = 0.0, second: float = 0.0, id: str = "") -> InferenceRequest:
    x = np.array([[first, second, 2.0, 3.0]], np.float32)
    return InferenceRequest("ours", "7", (Tensor("x", FP32, (1, 4), array=x),), id=id)


def start(
    model: RemoteModel,
    what: InferenceRequest,
    seconds: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> Future[InferenceResponse]:
    deadline = None if seconds is None else perf_counter() + seconds
    work = model.forward(what, deadline, (headers or {}).get)
    return asyncio.run_coroutine_threadsafe(work, model.loop)


def forward(model: RemoteModel, first: float = 0.0, **arguments: Any) -> InferenceResponse:
    return start(model, request(first), **arguments).result(30)


def idle(model: RemoteModel) -> bool:
    return all(endpoint.outstanding == 0 for endpoint in model.pool.endpoints)


# --- answers and errors


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_request_there_and_back(load: Any, server: StandIn, transport: str) -> None:
    model = load(url(server, transport))
    assert [repr(spec) for spec in model.inputs] == ["x FP32 [-1, 4]"]
    assert model.platform == "stand_in"
    response = start(model, request(-5, id="nr 1")).result(30)
    assert (response.model, response.version) == ("ours", "7")
    assert response.outputs[0].array.tolist() == [[-4, 1, 3, 4]]
    assert model.status()["endpoints"][0]["state"] == "ready"
    assert idle(model)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("first", "kind", "text"),
    [
        (INVALID, InvalidInput, "x is wrong"),
        (LATE, DeadlineExceeded, "deadline"),
        (BROKEN, InferenceFailed, "broken in model.py"),
        (LISTED, NotAllowed, "you may not"),
    ],
)
def test_final_errors_are_passed_on_and_never_tried_again(
    load: Any, server: StandIn, other: StandIn, transport: str, first: int, kind: type, text: str
) -> None:
    model = load(url(server, transport), url(other, transport), settings={"idempotent": True})
    with pytest.raises(kind) as caught:
        forward(model, first)
    assert type(caught.value) is kind
    assert text in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(server.calls) + len(other.calls) == 1
    assert idle(model)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("first", "kind"),
    [(UNAVAILABLE, ModelNotReady), (EXHAUSTED, QueueFull), (MISSING, ModelNotReady)],
)
def test_what_a_server_refuses_itself_is_tried_elsewhere(
    load: Any, server: StandIn, other: StandIn, transport: str, first: int, kind: type
) -> None:
    model = load(url(server, transport), url(other, transport), retries=1)
    with pytest.raises(kind) as caught:
        forward(model, first)
    assert (len(server.calls), len(other.calls)) == (1, 1)
    assert caught.value.retry_after == 1.0  # type: ignore[attr-defined]
    assert model.retried == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_replica_that_refuses_is_ejected_and_comes_back(
    load: Any, server: StandIn, other: StandIn, transport: str
) -> None:
    server.refuses = True
    model = load(url(server, transport), url(other, transport))
    for _ in range(40):
        forward(model)
    states = {each["url"]: each["state"] for each in model.status()["endpoints"]}
    assert len(server.calls) < 20
    server.refuses = False
    before = len(server.calls)

    def comes_back() -> bool:
        forward(model)
        return len(server.calls) > before + 5

    wait_until(comes_back, f"the replica to come back: {states}")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("first", "kind"), [(EXHAUSTED, QueueFull), (MISSING, ModelNotReady)])
def test_who_has_too_much_to_do_is_not_asked_again(
    load: Any, server: StandIn, transport: str, first: int, kind: type
) -> None:
    model = load(url(server, transport))
    with pytest.raises(kind):
        forward(model, first)
    assert (len(server.calls), model.retried) == (1, 0)
    assert idle(model)


def test_retries_can_be_turned_off(load: Any, server: StandIn, other: StandIn) -> None:
    model = load(server.grpc_url, other.grpc_url, retries=0)
    with pytest.raises(ModelNotReady):
        forward(model, UNAVAILABLE)
    assert len(server.calls) + len(other.calls) == 1


def test_retries_end_with_the_budget(load: Any, server: StandIn) -> None:
    model = load(server.grpc_url, retries=1, retry_share=0.0)
    model.budget._floor = 0.0
    with pytest.raises(ModelNotReady):
        forward(model, UNAVAILABLE)
    assert len(server.calls) == 1


# --- broken connections


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_server_killed_in_mid_call(load: Any, transport: str) -> None:
    with Process() as victim:
        model = load(victim.urls[transport])
        future = start(model, request(SLOW))
        wait_until(lambda: not idle(model), "the request to be under way")
        forward(model)  # by now the slow one is there as well
        victim.kill()
        with pytest.raises(Unavailable) as caught:
            future.result(30)
    assert "may have been executed" in str(caught.value)
    assert not isinstance(caught.value, ModelNotReady)
    assert model.retried == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_server_killed_in_mid_call_of_an_idempotent_model(
    load: Any, server: StandIn, transport: str
) -> None:
    with Process() as victim:
        model = load(victim.urls[transport], url(server, transport), settings={"idempotent": True})
        busy = []
        while not any("127.0.0.1" in e.url and e.outstanding for e in model.pool.endpoints[:1]):
            busy.append(start(model, request(SLOW)))
            wait_until(lambda: sum(e.outstanding for e in model.pool.endpoints) == len(busy), "it")
        wait_until(lambda: len(server.calls) == model.pool.endpoints[1].outstanding, "them")
        there = len(server.calls)
        lost = model.pool.endpoints[0].outstanding
        victim.kill()
        wait_until(lambda: len(server.calls) == there + lost, "the lost requests to be retried")
        assert model.retried == lost
        for future in busy:
            future.cancel()
    wait_until(lambda: idle(model), "all to be cancelled")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_when_nobody_listens_requests_fail_quickly_and_traffic_comes_back(
    load: Any, server: StandIn, transport: str
) -> None:
    model = load(url(server, transport))
    server.pause()
    for _ in range(5):
        with pytest.raises(Unavailable) as caught:
            forward(model)
        assert "127.0.0.1" not in str(caught.value), "addresses are no concern of the caller's"
        assert caught.value.retry_after == 1.0
    wait_until(lambda: model.status()["endpoints"][0]["state"] == "unreachable", "it to be noticed")
    assert "127.0.0.1" in model.status()["endpoints"][0]["cause"]
    server.resume()
    wait_until(lambda: model.status()["endpoints"][0]["state"] == "ready", "it to be back")
    assert forward(model).outputs[0].array[0, 0] == 1


class Rude:
    """Accepts connections and closes them, at once or after the first bytes."""

    def __init__(self, *, reads: bool, says: bytes = b"") -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._reads = reads
        self._says = says
        self.port = self._socket.getsockname()[1]
        self.accepted = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self.accepted += 1
                if self._reads:
                    connection.recv(65536)
                if self._says:
                    connection.sendall(self._says)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("reads", [False, True])
def test_a_server_that_accepts_and_closes(
    load: Any, server: StandIn, transport: str, reads: bool
) -> None:
    model = load(url(server, transport))
    rude = Rude(reads=reads)
    try:
        (endpoint,) = model.pool.endpoints
        location = model.replicas._locations[0].__class__(transport, "127.0.0.1", rude.port)

        async def connect() -> Any:
            return model.transport.connect(location, "127.0.0.1")

        real = endpoint.connection
        endpoint.connection = asyncio.run_coroutine_threadsafe(connect(), model.loop).result(30)
        with pytest.raises(Unavailable) as caught:
            forward(model)
        # gRPC has no connection before the server has greeted; HTTP sends at once.
        sent = transport == "http"
        assert ("may have been executed" in str(caught.value)) == sent
        if sent:
            assert model.retried == 0
        asyncio.run_coroutine_threadsafe(endpoint.connection.close(), model.loop).result(30)
        endpoint.connection = real
    finally:
        rude.close()


def test_a_connection_that_brought_a_server_error_is_not_used_again(
    load: Any, server: StandIn
) -> None:
    # Starlette closes it behind an exception, and the next request of somebody else met that.
    model = load(server.http_url)
    for _ in range(3):
        with pytest.raises(InferenceFailed, match=r"broken in model\.py"):
            forward(model, BROKEN)
        assert forward(model).outputs[0].array[0, 0] == 1


@pytest.mark.parametrize("status", [301, 302, 307])
def test_redirects_are_not_followed(load: Any, server: StandIn, status: int) -> None:
    says = (
        f"HTTP/1.1 {status} Moved\r\nlocation: {server.http_url}/v2/models/add/infer\r\n"
        "content-length: 0\r\nconnection: close\r\n\r\n"
    ).encode()
    rude = Rude(reads=True, says=says)
    try:
        with pytest.raises(ModelLoadError, match="redirect"):
            load(f"http://127.0.0.1:{rude.port}")
    finally:
        rude.close()


# --- deadlines, cancellation, headers


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_deadline_goes_with_the_request(load: Any, server: StandIn, transport: str) -> None:
    model = load(url(server, transport))
    with pytest.raises(DeadlineExceeded):
        forward(model, SLOW, seconds=0.3)
    wait_until(lambda: ends(server) == ["cancelled"], "the server to stop")
    if transport == "http":
        assert 0 < float(server.calls[0]["x-request-timeout-ms"]) <= 300
    assert idle(model)
    with pytest.raises(DeadlineExceeded):
        forward(model, 0, seconds=-1.0)
    assert len(server.calls) == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_one_attempt_may_take_timeout_ms(load: Any, server: StandIn, transport: str) -> None:
    model = load(url(server, transport), timeout_ms=200, settings={"idempotent": True})
    with pytest.raises(DeadlineExceeded, match="timeout_ms"):
        forward(model, SLOW, seconds=30)
    assert len(server.calls) == 1
    assert model.status()["endpoints"][0]["failures"] == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_cancelling_reaches_the_server(load: Any, server: StandIn, transport: str) -> None:
    model = load(url(server, transport))
    future = start(model, request(SLOW))
    wait_until(lambda: len(server.calls) == 1, "the request to be there")
    future.cancel()
    wait_until(lambda: ends(server) == ["cancelled"], "the server to hear of it")
    wait_until(lambda: idle(model), "nothing to be under way")
    assert model.status()["endpoints"][0]["failures"] == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_headers(load: Any, server: StandIn, transport: str) -> None:
    model = load(
        url(server, transport),
        headers={"x-team": "blue", "x-request-id": "fixed"},
        forward_headers=("authorization", "x-odd"),
    )
    forward(
        model,
        headers={
            "traceparent": "00-1", "tracestate": "a=b", "x-b3-traceid": "2", "x-request-id": "own",
            "authorization": "Bearer t", "cookie": "secret", "x-odd": "caf\xe9",
        },
    )  # fmt: skip
    (call,) = server.calls
    expected = {
        "traceparent": "00-1", "tracestate": "a=b", "x-b3-traceid": "2", "x-request-id": "fixed",
        "authorization": "Bearer t", "x-team": "blue",
    }  # fmt: skip
    assert {name: call.get(name) for name in expected} == expected
    assert "cookie" not in call
    assert "x-odd" not in call, "gRPC could not carry it"


# --- streams


async def collect(model: RemoteModel, what: InferenceRequest, into: list[Any]) -> None:
    async for response in model.forward_stream(what, None, {}.get):
        into.append(response.outputs[0].array[0].tolist())


def stream(model: RemoteModel, first: float, count: int) -> list[Any]:
    answers: list[Any] = []
    work = collect(model, request(first, count), answers)
    asyncio.run_coroutine_threadsafe(work, model.loop).result(30)
    return answers


def test_streams(load: Any, server: StandIn, other: StandIn) -> None:
    model = load(server.grpc_url, other.grpc_url, settings={"decoupled": True}, retries=5)
    assert stream(model, 0, 3) == [[1, 4, 3, 4], [2, 5, 4, 5], [3, 6, 5, 6]]
    assert stream(model, 0, 0) == []
    with pytest.raises(InferenceFailed, match=r"broken in model\.py"):
        stream(model, BROKEN, 2)
    calls = len(server.calls) + len(other.calls)
    with pytest.raises(ModelNotReady):
        stream(model, UNAVAILABLE, 1)
    assert len(server.calls) + len(other.calls) == calls + 1, "not again behind the first answer"
    server.refuses = True
    for _ in range(4):
        assert stream(model, 0, 0) == []
    assert idle(model)


def test_streams_are_cancelled(load: Any, server: StandIn) -> None:
    model = load(server.grpc_url, settings={"decoupled": True})
    answers: list[Any] = []
    work = collect(model, request(SLOW, 2), answers)
    future = asyncio.run_coroutine_threadsafe(work, model.loop)
    wait_until(lambda: len(answers) == 2 and server.calls, "the first answers")
    future.cancel()
    wait_until(lambda: ends(server) == ["cancelled"], "the server to hear of it")
    wait_until(lambda: idle(model), "nothing to be under way")


# --- loading


def test_loading_waits_for_one_replica_alone(load: Any, server: StandIn) -> None:
    model = load("grpc://127.0.0.1:1", server.grpc_url)
    for _ in range(10):
        assert forward(model).outputs[0].array[0, 0] == 1


@pytest.mark.parametrize(
    ("urls", "text"),
    [
        (["grpc://127.0.0.1:1"], "grpc://127.0.0.1:1: it cannot be reached"),
        (["http://127.0.0.1:1"], "http://127.0.0.1:1: it cannot be reached"),
        (["grpc://nosuch.invalid:1"], "'nosuch.invalid' cannot be looked up"),
    ],
)
def test_loading_fails_when_nobody_answers(load: Any, urls: list[str], text: str) -> None:
    started = monotonic()
    with pytest.raises(ModelLoadError) as caught:
        load(*urls)
    assert text in str(caught.value)
    assert monotonic() - started < 25


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_loading_fails_when_the_model_is_not_there(
    load: Any, server: StandIn, transport: str
) -> None:
    with pytest.raises(ModelLoadError, match=r"unknown model 'nosuch'|404: Not Found"):
        load(url(server, transport), model="nosuch")
    server.model_ready = False
    with pytest.raises(ModelLoadError, match="is not ready"):
        load(url(server, transport))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_model_that_the_server_loses_and_finds_again(
    load: Any, server: StandIn, other: StandIn, transport: str
) -> None:
    model = load(url(server, transport), url(other, transport))
    server.model_ready = False
    states = model.status
    wait_until(lambda: states()["endpoints"][0]["state"] == "not ready", "it to be noticed")
    before = len(server.calls)
    for _ in range(20):
        forward(model)
    assert len(server.calls) == before
    server.model_ready = True
    wait_until(lambda: states()["endpoints"][0]["state"] == "ready", "it to be back")


@pytest.mark.parametrize(
    ("settings", "remote", "text"),
    [
        ({}, {"shared_memory": True}, "shared_memory"),
        ({"instances": 3}, {}, "remote.batching: gateway"),
        ({"device": "gpu"}, {}, "'device'"),
        ({"file": "x"}, {}, "'file'"),
        ({"options": {"threads": 1}}, {}, "'options.threads'"),
        ({"isolation": "process"}, {}, "'isolation'"),
        ({}, {"batching": "gateway"}, "max_batch_size"),
        ({"decoupled": True}, {"batching": "gateway"}, "decoupled"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(
    load: Any, server: StandIn, settings: dict[str, Any], remote: dict[str, Any], text: str
) -> None:
    with pytest.raises(SluiceError, match=text):
        load(server.grpc_url, settings=settings, **remote)


def test_settings_that_http_cannot_honour_are_refused(load: Any, server: StandIn) -> None:
    with pytest.raises(ModelLoadError, match="connections"):
        load(server.http_url, connections=2)
    with pytest.raises(ModelLoadError, match="grpc://"):
        load(server.http_url, settings={"decoupled": True})


def test_declared_tensors_must_agree_with_the_servers(load: Any, server: StandIn) -> None:
    y = TensorSettings(name="y", datatype="FP32", dims=(4,))

    def declared(**x: Any) -> dict[str, Any]:
        tensor = TensorSettings(**{"name": "x", "datatype": "FP32", "dims": (4,), **x})
        return {"inputs": (tensor,), "outputs": (y,), "max_batch_size": 8}

    assert load(server.grpc_url, settings=declared(optional=True)).inputs[0].optional
    for wrong, text in (
        ({"name": "z"}, "'z' is declared, but not there|'x' is not declared"),
        ({"datatype": "FP64"}, "declared FP64"),
        ({"dims": (5,)}, "declared FP32"),
        ({"reshape": (2, 2)}, "reshape"),
    ):
        with pytest.raises(SluiceError, match=text):
            load(server.grpc_url, settings=declared(**wrong))


# --- TLS


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate of its own for a host called `name`, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(built.public_bytes(Encoding.PEM))
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(text)
    return folder / "cert.pem", folder / "key.pem"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_tls(load: Any, tmp_path: Path, transport: str) -> None:
    paths = certificate(tmp_path, "localhost")
    (tmp_path / "ours").mkdir()
    with StandIn(paths) as server:
        port = server.grpc_port if transport == "grpc" else server.http_port
        by_name, by_number = (
            f"{transport}s://{host}:{port}" for host in ("localhost", "127.0.0.1")
        )
        model = load(by_name, ca_file="../cert.pem")  # relative to the model's folder
        assert forward(model).outputs[0].array[0, 0] == 1
        for url_, ca_file, text in (
            (by_number, "../cert.pem", "Hostname Verification|not valid for"),
            (by_name, None, "self.signed certificate"),
            (by_name, "nosuch.pem", "ca_file 'nosuch.pem': No such file"),
            (by_name, "../key.pem", "'key.pem' holds no certificate"),
        ):
            with pytest.raises(ModelLoadError, match=text):
                load(url_, ca_file=ca_file)
        model.close()


# --- the gateway's own batches, connections


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_batches_of_the_gateway(load: Any, server: StandIn, transport: str) -> None:
    model = load(url(server, transport), batching="gateway", settings={"max_batch_size": 8})
    assert not model.batches_itself
    assert model.instances == 4
    x = np.array([[0, 1, 2, 3], [-4, 5, 6, 7]], np.float32)
    work = model.infer_async({"x": x}, (), {"timeout": 5, "temperature": 1})
    outputs = asyncio.run_coroutine_threadsafe(work, model.loop).result(30)
    assert np.array_equal(outputs["y"], x + 1)


def test_several_connections(load: Any, server: StandIn) -> None:
    model = load(server.grpc_url, connections=3)
    for _ in range(6):
        forward(model)
    assert len(server.calls) == 6


def test_a_name_stands_for_all_its_addresses(
    load: Any, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ["127.0.0.1"]

    async def getaddrinfo(self: Any, host: str, port: int, **_: Any) -> list[Any]:
        assert host == "replicas.test"
        return [(2, 1, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    model = load(f"grpc://replicas.test:{server.grpc_port}")
    assert len(model.pool.endpoints) == 1
    found[:] = ["127.0.0.2", "127.0.0.1"]
    first = model.pool.endpoints[0]
    asyncio.run_coroutine_threadsafe(model.replicas.look_up(), model.loop).result(30)
    assert model.pool.endpoints[1] is first, "what is known of a replica is kept"
    assert [e.url for e in model.pool.endpoints] == [
        f"grpc://replicas.test:{server.grpc_port} ({address})" for address in found
    ]
    for _ in range(10):
        assert forward(model).outputs[0].array[0, 0] == 1
    found[:] = ["127.0.0.1"]
    asyncio.run_coroutine_threadsafe(model.replicas.look_up(), model.loop).result(30)
    assert model.pool.endpoints == (first,)


def test_batches_of_the_gateway_have_a_deadline_and_headers(load: Any, server: StandIn) -> None:
    model = load(server.grpc_url, batching="gateway", settings={"max_batch_size": 8})
    x = np.array([[SLOW, 1, 2, 3]], np.float32)
    headers = {"traceparent": "00-ab"}.get
    work = model.infer_until({"x": x}, (), {}, perf_counter() + 0.3, headers)
    with pytest.raises(DeadlineExceeded, match="may be executing"):
        asyncio.run_coroutine_threadsafe(work, model.loop).result(30)
    assert server.calls[0]["traceparent"] == "00-ab"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_warm_ups_end(
    load: Any, server: StandIn, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtimes.remote.model.WARM_UP_SECONDS", 0.2)
    model = load(url(server, transport))
    with pytest.raises(DeadlineExceeded):
        model.infer({"x": np.array([[SLOW, 1, 2, 3]], np.float32)}, (), {})


def test_warm_ups_of_streams(load: Any, server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(server.grpc_url, settings={"decoupled": True})
    x = np.array([[0, 2, 2, 3]], np.float32)
    found = [each["y"].tolist() for each in model.stream({"x": x}, (), {})]
    assert found == [[[1, 3, 3, 4]], [[2, 4, 4, 5]]]
    monkeypatch.setattr("runtimes.remote.model.WARM_UP_SECONDS", 0.2)
    with pytest.raises(DeadlineExceeded):
        list(model.stream({"x": x + np.float32(SLOW)}, (), {}))
    wait_until(lambda: idle(model), "the stream to end")


# --- what speaks against a replica


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_deadlines_are_no_good_answers(
    load: Any, server: StandIn, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtimes.remote.model.AMPLE_SECONDS", 30)
    model = load(url(server, transport), retries=0)
    (endpoint,) = model.pool.endpoints
    for _ in range(2):
        with pytest.raises(ModelNotReady):
            forward(model, UNAVAILABLE)
    failures = endpoint.failures
    assert failures == 2
    with pytest.raises(DeadlineExceeded):
        forward(model, SLOW, seconds=0.1)
    assert endpoint.failures == failures, "too little time: neither good nor bad"
    monkeypatch.setattr("runtimes.remote.model.AMPLE_SECONDS", 0.05)
    with pytest.raises(DeadlineExceeded):
        forward(model, SLOW, seconds=0.2)
    assert endpoint.failures == failures + 1, "it had time enough"
    forward(model)
    assert endpoint.failures == 0


def test_a_stream_that_has_begun_may_take_as_long_as_it_likes(
    load: Any, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtimes.remote.model.AMPLE_SECONDS", 0.05)
    model = load(server.grpc_url, settings={"decoupled": True})

    async def follow() -> None:
        async for _ in model.forward_stream(request(SLOW, 1), perf_counter() + 0.3, {}.get):
            pass

    with pytest.raises(DeadlineExceeded):
        asyncio.run_coroutine_threadsafe(follow(), model.loop).result(30)
    assert model.pool.endpoints[0].failures == 0
    assert idle(model)


def test_an_ejected_replica_is_back_with_the_first_answer_of_a_stream(
    load: Any, server: StandIn
) -> None:
    model = load(server.grpc_url, settings={"decoupled": True})
    (endpoint,) = model.pool.endpoints

    async def follow() -> float:
        for _ in range(3):
            model.pool.failed(endpoint, model.pool.started(endpoint), "broken")
        endpoint.until = perf_counter()
        answers = model.forward_stream(request(SLOW, 1), None, {}.get)
        await anext(answers)
        until = endpoint.until
        await answers.aclose()
        return until

    assert asyncio.run_coroutine_threadsafe(follow(), model.loop).result(30) == 0.0
    # Closed with the outer generator, not when the garbage is collected.
    wait_until(lambda: ends(server) == ["cancelled"], "the server to hear of it")
    assert idle(model)


# --- control calls, and what the servers can do


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_fixed_headers_go_with_every_call(load: Any, server: StandIn, transport: str) -> None:
    load(url(server, transport), headers={"authorization": "Bearer t"})
    asked = {what for what, _ in server.questions}
    if transport == "grpc":
        assert {"ServerReady", "ModelReady", "ModelMetadata"} <= asked
        assert "ServerMetadata" not in asked, "nobody would look at it"
    else:
        assert {"/v2", "/v2/health/ready", "/v2/models/add", "/v2/models/add/ready"} <= asked
    assert all(headers.get("authorization") == "Bearer t" for _, headers in server.questions)


def test_a_server_that_does_not_say_what_it_can_do_gets_json(
    load: Any, server: StandIn, other: StandIn
) -> None:
    server.extensions = ["binary_tensor_data"]
    assert load(server.http_url).transport.binary
    other.says_nothing = True
    model = load(server.http_url, other.http_url)
    assert not model.transport.binary
    assert forward(model).outputs[0].array[0, 0] == 1


def test_a_replica_that_comes_later_is_asked_what_it_can_do(
    load: Any, server: StandIn, other: StandIn
) -> None:
    server.extensions = ["binary_tensor_data"]
    other.pause()
    model = load(server.http_url, other.http_url)
    assert model.transport.binary, "who is not there does not count"
    other.resume()
    wait_until(lambda: model.pool.endpoints[1].missed == 0, "it to come")
    assert not model.transport.binary
    assert forward(model).outputs[0].array[0, 0] == 1


def test_http_connections_notice_hosts_that_are_gone(
    load: Any, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(server.http_url)
    seen: list[tuple[int, int]] = []

    class Spy(Response):
        async def start(self, connection: Any) -> Any:
            end = connection.transport.get_extra_info("socket")
            await super().start(connection)
            seen.append(
                (
                    end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                    end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
                )
            )
            return self

    model.transport.session._response_class = Spy
    forward(model)
    assert seen and set(seen) == {(1, 20_000)}


def test_a_closed_channel_is_no_connection(load: Any, server: StandIn) -> None:
    model = load(server.grpc_url, settings={"decoupled": True}, health_seconds=60)
    connection = model.pool.endpoints[0].connection
    asyncio.run_coroutine_threadsafe(connection.close(), model.loop).result(30)
    with pytest.raises(Unavailable, match="cannot be reached"):
        forward(model)
    with pytest.raises(Unavailable, match="cannot be reached"):
        stream(model, 0, 1)
    assert idle(model)


def test_a_channel_closed_under_a_stream(load: Any, server: StandIn) -> None:
    model = load(server.grpc_url, settings={"decoupled": True}, health_seconds=60)
    future = asyncio.run_coroutine_threadsafe(collect(model, request(SLOW, 0), []), model.loop)
    wait_until(lambda: bool(server.calls), "the request to be there")
    connection = model.pool.endpoints[0].connection
    asyncio.run_coroutine_threadsafe(connection.close(), model.loop).result(30)
    with pytest.raises(Unavailable, match="may have been executed"):
        future.result(30)
    assert idle(model)


# --- loading, again


def test_a_load_that_takes_too_long_leaves_nothing(
    load: Any, server: StandIn, host: LoopHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late:
        closed = threading.Event()

        def close(self) -> None:
            self.closed.set()

    gate = threading.Event()

    async def stubborn() -> Any:
        while not gate.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                gate.set()  # it is done all the same
        return Late()

    monkeypatch.setattr(opening, "OPEN_SECONDS", 0.1)
    monkeypatch.setattr(opening, "LISTEN", 0.05)
    artifact = Artifact("ours", "7", tmp_path, ModelSettings(), host)
    with pytest.raises(ModelLoadError, match="no answer within"):
        opening.load_on_loop(artifact, stubborn)
    assert Late.closed.wait(30)


def test_a_load_that_fails_with_a_timeout_says_so(host: LoopHost, tmp_path: Path) -> None:
    async def late() -> Any:
        raise TimeoutError("of its own")

    artifact = Artifact("ours", "7", tmp_path, ModelSettings(), host)
    with pytest.raises(TimeoutError, match="of its own"):
        opening.load_on_loop(artifact, late)


def test_rows_are_a_batch_only_where_the_first_dimension_is_one(
    load: Any, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(server.grpc_url, settings={"max_batch_size": 8}).max_batch_size == 8
    wrong = {**MODEL, "outputs": [{"name": "y", "datatype": "FP32", "shape": []}]}
    monkeypatch.setattr("tests.support.stand_in.MODEL", wrong)
    with pytest.raises(ModelLoadError, match="max_batch_size is 8, but tensor 'y'"):
        load(server.grpc_url, settings={"max_batch_size": 8})


def test_a_server_that_nobody_can_ask_if_it_is_ready(load: Any, server: StandIn) -> None:
    server.unasked = True
    assert forward(load(server.http_url)).outputs[0].array[0, 0] == 1
    server.model_ready = False
    with pytest.raises(ModelLoadError, match="is not ready"):
        load(server.http_url)
