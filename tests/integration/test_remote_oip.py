"""Models on other servers behind a real gateway: KServe, MLServer, a second gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.support.gateway import GatewayProcess, wait_until
from tests.support.load import Load
from tests.support.oip_servers import OtherServer, kserve, mlserver
from tests.support.onnx_models import write_adding
from tests.support.stand_in import SLOW, Process

TRANSPORTS = ("grpc", "http")
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def declare(root: Path, name: str, document: dict[str, Any], file: str = "model.yaml") -> None:
    """JSON is YAML."""
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / file).write_text(json.dumps(document))


def remote(url: str, model: str = "add", **settings: Any) -> dict[str, Any]:
    there = {"url": url, "model": model, **settings.pop("there", {})}
    return {"runtime": "oip", "remote": there, **settings}


class Clients:
    """tritonclient on both front ends of a gateway."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.grpc = triton_grpc.InferenceServerClient(gateway.grpc)
        self.http = triton_http.InferenceServerClient(gateway.http_address)

    def infer(self, front: str, model: str, x: Any = X, **arguments: Any) -> Any:
        module: Any = triton_grpc if front == "grpc" else triton_http
        tensor = module.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)
        return getattr(self, front).infer(model, [tensor], **arguments).as_numpy("y")

    def close(self) -> None:
        self.grpc.close()
        self.http.close()


@pytest.fixture
def gateways() -> Iterator[list[GatewayProcess]]:
    """Those that a test starts; they must end without complaints."""
    started: list[GatewayProcess] = []
    yield started
    for gateway in started:
        gateway.stop_cleanly()


# --- KServe


@pytest.fixture(scope="module")
def kserve_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kserve")


@pytest.fixture(scope="module")
def kserve_server(kserve_folder: Path) -> Iterator[OtherServer]:
    with kserve(kserve_folder) as server:
        yield server


@pytest.fixture(scope="module")
def before_kserve(
    kserve_server: OtherServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[GatewayProcess, Clients]]:
    root = tmp_path_factory.mktemp("before-kserve")
    models = root / "models"
    tensor = {"datatype": "FP32", "dims": [-1, 4]}
    for transport in TRANSPORTS:
        url = kserve_server.urls[transport]
        declare(models, transport, remote(url, there={"headers": {"x-team": "blue"}}))
        there = {"batching": "gateway"}
        declare(models, f"{transport}-batched", remote(url, there=there, max_batch_size=16))
        bare = {"inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}]}
        declare(models, f"{transport}-bare", remote(url, "bare", **bare))
    with GatewayProcess(root, [models]) as gateway:
        clients = Clients(gateway)
        yield gateway, clients
        clients.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("front", TRANSPORTS)
@pytest.mark.parametrize("kind", ["", "-batched", "-bare"])
def test_kserve(
    before_kserve: tuple[GatewayProcess, Clients], transport: str, front: str, kind: str
) -> None:
    _, clients = before_kserve
    model = f"{transport}{kind}"
    for rows in (1, 2):
        assert np.array_equal(clients.infer(front, model, X[:rows]), X[:rows] + 1)
    for first, code, text in ((-2e6, "400", "x is far too small"), (2e6, "500", "")):
        with pytest.raises(InferenceServerException) as caught:
            clients.infer(front, model, np.full((1, 4), first, np.float32))
        wanted = code if front == "http" else {"400": "INVALID_ARGUMENT", "500": "INTERNAL"}[code]
        assert wanted in str(caught.value.status())
        assert text in caught.value.message()
    # An error of one caller's is nobody else's.
    assert np.array_equal(clients.infer(front, model), X + 1)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_kserve_gets_the_headers(
    before_kserve: tuple[GatewayProcess, Clients], kserve_folder: Path, transport: str
) -> None:
    _, clients = before_kserve
    trace = f"00-{transport}"
    clients.infer("http", transport, headers={"traceparent": trace, "authorization": "no"})
    notes = (kserve_folder / "notes").read_text()
    assert f"traceparent: {trace}\n" in notes
    assert "x-team: blue\n" in notes
    assert "authorization" not in notes


def test_kserve_is_told_when_a_caller_goes_away(
    before_kserve: tuple[GatewayProcess, Clients], kserve_folder: Path
) -> None:
    gateway, clients = before_kserve
    slow = np.full((1, 4), 1e6, np.float32)

    def noted(text: str) -> int:
        return (kserve_folder / "notes").read_text().splitlines().count(text)

    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1e6] * 4}]}

    async def leave() -> None:
        async with httpx.AsyncClient() as client:
            post = client.post(f"{gateway.http}/v2/models/grpc/infer", json=body, timeout=60)
            task = asyncio.create_task(post)
            while noted("started") == 0:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    wait_until(lambda: noted("cancelled") == 1, "KServe to hear of it")
    # The deadline goes with the request as well.
    with pytest.raises(InferenceServerException, match=r"(?i)deadline"):
        clients.infer("grpc", "grpc", slow, client_timeout=0.5)
    wait_until(lambda: noted("cancelled") == 2, "KServe to hear of it")


# --- MLServer


@pytest.fixture(scope="module")
def mlserver_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherServer]:
    with mlserver(tmp_path_factory.mktemp("mlserver")) as server:
        yield server


def test_mlserver(
    mlserver_server: OtherServer, tmp_path: Path, gateways: list[GatewayProcess]
) -> None:
    for transport in TRANSPORTS:
        url = mlserver_server.urls[transport]
        declare(tmp_path / "models", transport, remote(url))
        there = {"batching": "gateway"}
        document = remote(url, there=there, max_batch_size=16)
        declare(tmp_path / "models", f"{transport}-batched", document)
    gateway = GatewayProcess(tmp_path, [tmp_path / "models"])
    gateways.append(gateway)
    clients = Clients(gateway)
    for front in TRANSPORTS:
        for model in (*TRANSPORTS, *(f"{each}-batched" for each in TRANSPORTS)):
            assert np.array_equal(clients.infer(front, model), X + 1)
            with pytest.raises(InferenceServerException, match="x is far too small"):
                clients.infer(front, model, np.full((1, 4), -2e6, np.float32))
    clients.close()


# --- a second gateway


def rows_and_runs(gateway: GatewayProcess, model: str) -> tuple[int, int]:
    stats = gateway.get(f"/v2/models/{model}/stats")["model_stats"][0]
    return stats["inference_count"], stats["execution_count"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_second_gateway(tmp_path: Path, gateways: list[GatewayProcess], transport: str) -> None:
    write_adding(tmp_path / "far", "add", 1.0)
    far = GatewayProcess(tmp_path, [tmp_path / "far"])
    gateways.append(far)
    url = far.http if transport == "http" else f"grpc://{far.grpc}"
    models = tmp_path / "near"
    declare(models, "plain", remote(url))
    there = {"batching": "gateway"}
    declare(models, "batched", remote(url, there=there, max_batch_size=16, instances=1))
    # One model with version 1 here and version 2 there.
    write_adding(models, "both", 10.0)
    declare(models, "both", {"url": url, "model": "add"}, file="../both/2.yaml")
    (models / "both" / "2").mkdir()
    (models / "both" / "2.yaml").rename(models / "both" / "2" / "remote.yaml")
    (models / "both" / "traffic.yaml").write_text("weights: {'1': 50, '2': 50}\n")
    near = GatewayProcess(tmp_path, [models])
    gateways.append(near)
    clients = Clients(near)
    for front in TRANSPORTS:
        for model in ("plain", "batched"):
            assert np.array_equal(clients.infer(front, model), X + 1)
            with pytest.raises(InferenceServerException, match=r"\[2, 5\]"):
                clients.infer(front, model, np.zeros((2, 5), np.float32))
        added = {float((clients.infer(front, "both") - X)[0, 0]) for _ in range(60)}
        assert added == {1.0, 10.0}
    clients.close()
    endpoint = near.get("/admin/v1/models/plain")["versions"][0]["endpoints"][0]
    assert (endpoint["url"], endpoint["state"], endpoint["outstanding"]) == (url, "ready", 0)

    async def burst(model: str, count: int) -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            path = f"{near.http}/v2/models/{model}/infer"
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
            posts = [client.post(path, json={"inputs": [tensor]}) for _ in range(count)]
            for answer in await asyncio.gather(*posts):
                assert answer.json()["outputs"][0]["data"] == [2, 3, 4, 5]

    rows, runs = rows_and_runs(near, "batched")
    asyncio.run(burst("batched", 100))
    after = rows_and_runs(near, "batched")
    assert after[0] - rows == 100
    assert after[1] - runs < 100, "the gateway has put rows together"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_a_second_gateway_may_have_executed_is_not_tried_again(
    tmp_path: Path, gateways: list[GatewayProcess], transport: str
) -> None:
    with Process() as victim:
        declare(tmp_path / "far", "add", remote(victim.urls[transport]))
        far = GatewayProcess(tmp_path, [tmp_path / "far"])
        gateways.append(far)
        url = far.http if transport == "http" else f"grpc://{far.grpc}"
        declare(tmp_path / "near", "add", remote(url))
        near = GatewayProcess(tmp_path, [tmp_path / "near"])
        gateways.append(near)

        def facts(gateway: GatewayProcess) -> dict[str, Any]:
            facts: dict[str, Any] = gateway.get("/admin/v1/models/add")["versions"][0]
            return facts

        def post(client: httpx.AsyncClient, first: int) -> asyncio.Task[httpx.Response]:
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [first, 2, 3, 4]}
            path = f"{near.http}/v2/models/add/infer"
            return asyncio.create_task(client.post(path, json={"inputs": [tensor]}))

        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(timeout=60) as client:
                slow = post(client, SLOW)
                there = lambda: facts(far)["endpoints"][0]["outstanding"] == 1  # noqa: E731
                await asyncio.to_thread(wait_until, there, "the request to be there")
                # By the time that another is answered, the slow one is there as well.
                assert (await post(client, 0)).status_code == 200
                victim.kill()
                return await slow

        answer = asyncio.run(ask())
    assert answer.status_code == 503
    assert "may have been executed" in answer.json()["error"]
    assert "retry-after" not in answer.headers
    assert (facts(far)["retries"], facts(near)["retries"]) == (0, 0)


def test_a_server_that_comes_late(tmp_path: Path, gateways: list[GatewayProcess]) -> None:
    with Process() as first:
        url = first.urls["grpc"]
    declare(tmp_path / "models", "m", remote(url))
    gateway = GatewayProcess(
        tmp_path, [tmp_path / "models"], settings={"lifecycle.retry_seconds": 0.2}, ready=False
    )
    wait_until(lambda: "cannot be reached" in gateway.log(), "the load to fail")
    with Process(*first.ports):
        gateway.wait_ready()
    gateway.stop()


# --- replicas


def right(version: str, difference: float) -> bool:
    return difference == 1.0


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("idempotent", [True, False])
def test_a_replica_killed_under_load(
    tmp_path: Path, gateways: list[GatewayProcess], transport: str, idempotent: bool
) -> None:
    with Process() as first, Process() as second:
        urls = [each.urls[transport] for each in (first, second)]
        document = {
            "runtime": "oip",
            "idempotent": idempotent,
            "remote": {"urls": urls, "model": "add", "health_seconds": 0.2},
        }
        declare(tmp_path / "models", "m", document)
        gateway = GatewayProcess(tmp_path, [tmp_path / "models"])
        gateways.append(gateway)

        def endpoints() -> list[dict[str, Any]]:
            found = gateway.get("/admin/v1/models/m")["versions"][0]["endpoints"]
            return sorted(found, key=lambda each: urls.index(each["url"]))

        async def test() -> None:
            workers = 4
            async with Load(
                gateway.http, gateway.grpc, "m", right, workers=workers, pause=0.001
            ) as load:

                async def sent(more: int) -> None:
                    end = load.sent + more
                    while load.sent < end:
                        await asyncio.sleep(0.01)

                async def until(condition: Any) -> None:
                    while not await asyncio.to_thread(condition):
                        await asyncio.sleep(0.05)

                await sent(100)
                before = endpoints()
                assert all(each["requests"] > 20 for each in before), "both get their share"
                await asyncio.to_thread(second.kill)
                await sent(100)
                await until(lambda: endpoints()[1]["state"] == "unreachable")
                with Process(*second.ports):
                    await until(lambda: endpoints()[1]["state"] == "ready")
                    back = endpoints()[1]["requests"]
                    await until(lambda: endpoints()[1]["requests"] > back + 20)
                    await load.stop()
            wrong = [text for tally in load.tallies.values() for text in tally.wrong]
            if idempotent:
                load.check()
            else:
                # Those alone that were under way on it.
                assert len(wrong) <= 2 * workers, wrong
                assert all("may have been executed" in text for text in wrong), wrong
            assert not any(tally.broken for tally in load.tallies.values())

        async def bounded() -> None:
            async with asyncio.timeout(60):
                await test()

        asyncio.run(bounded())


def test_when_all_replicas_are_gone_requests_fail_at_once(
    tmp_path: Path, gateways: list[GatewayProcess]
) -> None:
    with Process() as only:
        declare(tmp_path / "models", "m", remote(only.urls["grpc"]))
        gateway = GatewayProcess(tmp_path, [tmp_path / "models"])
        gateways.append(gateway)
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0] * 4}]}
        path = f"{gateway.http}/v2/models/m/infer"
        assert httpx.post(path, json=body).status_code == 200
        only.kill()
        for _ in range(3):
            answer = httpx.post(path, json=body, timeout=20)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
        assert gateway.get("/admin/v1/models/m")["versions"][0]["state"] == "ready"
        with Process(*only.ports):
            wait_until(lambda: httpx.post(path, json=body).status_code == 200, "traffic to be back")


def test_draining_waits_for_what_is_under_way_elsewhere(
    tmp_path: Path, gateways: list[GatewayProcess]
) -> None:
    with Process() as there:
        declare(tmp_path / "models", "m", remote(there.urls["grpc"]))
        gateway = GatewayProcess(tmp_path, [tmp_path / "models"], settings={"drain.timeout": 0.5})
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [SLOW] * 4}]}

        async def leave() -> None:
            async with httpx.AsyncClient() as client:
                post = client.post(f"{gateway.http}/v2/models/m/infer", json=body, timeout=60)
                task = asyncio.create_task(post)
                while not gateway.get("/admin/v1/models/m")["versions"][0]["pending"]:
                    await asyncio.sleep(0.02)
                code = await asyncio.to_thread(gateway.stop)
                assert code == 0
                await asyncio.gather(task, return_exceptions=True)

        asyncio.run(leave())
        assert "Traceback" not in gateway.log()
        assert "1 requests did not end in time" in gateway.log()
