"""The control API: splits, promotion, labels, who may use it, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.app import Gateway
from gateway.config import load_config
from gateway.registries.traffic import read_traffic
from tests.support.gateway import PATIENCE, GatewayProcess
from tests.support.onnx_models import adding, write, write_adding


class Client:
    """Asks one gateway, in words that urllib understands."""

    def __init__(self, base: str) -> None:
        self.base = base

    def ask(
        self, method: str, path: str, tree: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        body = None if tree is None else json.dumps(tree).encode()
        request = urllib.request.Request(self.base + path, body, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def admin(self, method: str, path: str, tree: Any = None, **more: Any) -> tuple[int, Any]:
        return self.ask(method, "/admin/v1" + path, tree, **more)

    def versions(self, count: int = 40, **headers: str) -> Counter[str]:
        """Which versions answer."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}
        found: Counter[str] = Counter()
        for _ in range(count):
            status, answer = self.ask("POST", "/v2/models/m/infer", {"inputs": [tensor]}, headers)
            assert status == 200, answer
            assert answer["outputs"][0]["data"][0] == float(answer["model_version"])
            found[answer["model_version"]] += 1
        return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    folder = write_adding(root, "m", 1.0, 2.0, 3.0)
    (folder / "model.yaml").write_text("versions: {all: true}\n")
    (folder / "traffic.yaml").write_text("weights: {1: 100}\nsticky: {header: X-User}\n")
    write(root / "broken" / "1", adding(1.0)[:-9])
    return root


def gateway_of(*sources: Path, **settings: Any) -> Gateway:
    flags = {
        "sources": tuple(map(str, sources)),
        "http.address": "127.0.0.1:0",
        "grpc.address": "127.0.0.1:0",
        "grpc.server": "grpcio",
        "registry.poll_seconds": 0.5,
    }
    config, _ = load_config(flags={**flags, **settings}, environment={})
    return Gateway(config)


def serving(test: Callable[[Client, Gateway], None], *sources: Path, **settings: Any) -> None:
    """Runs `test` in a thread beside a gateway."""

    async def main() -> None:
        gateway = gateway_of(*sources, **settings)
        try:
            await gateway.start()
            await asyncio.to_thread(test, Client(gateway.addresses()["http"]), gateway)
        finally:
            await gateway.drain(0)
            await gateway.close()

    asyncio.run(main())


def wait_until(condition: Callable[[], object]) -> None:
    import time

    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_split_takes_effect_at_the_next_request_and_survives_a_restart(root: Path) -> None:
    def first(client: Client, gateway: Gateway) -> None:
        assert client.versions() == {"1": 40}
        status, model = client.admin("PUT", "/models/m/split", {"weights": {"2": 1, "3": 0}})
        assert (status, model["weights"], model["stable"]) == (200, {"2": 1, "3": 0}, "2")
        assert client.versions() == {"2": 40}
        client.admin("PUT", "/models/m/split", {"weights": {"2": 50, "3": 50}})
        assert set(client.versions(80)) == {"2", "3"}
        # Where the routing key is stays as it was, and the header's name is no matter of case.
        assert len(client.versions(**{"X-User": "ada"})) == 1
        shares = {v["version"]: v["share"] for v in client.admin("GET", "/models/m")[1]["versions"]}
        assert shares == {"1": 0.0, "2": 50.0, "3": 50.0}

    def second(client: Client, gateway: Gateway) -> None:
        assert set(client.versions(80)) == {"2", "3"}

    serving(first, root)
    serving(second, root)
    traffic = read_traffic(root / "m")
    assert traffic.weights == {"2": 50, "3": 50}
    assert traffic.sticky is not None
    assert traffic.sticky.header == "X-User"


def test_promote_gives_a_version_everything(root: Path) -> None:
    def test(client: Client, gateway: Gateway) -> None:
        client.admin("PUT", "/models/m/split", {"weights": {"1": 90, "2": 10}})
        assert client.admin("POST", "/models/m/promote", {"version": "canary"})[0] == 200
        assert client.versions() == {"2": 40}
        status, model = client.admin("POST", "/models/m/promote", {"version": 3})
        assert (status, model["stable"], model["weights"]) == (200, "3", {"3": 100.0})
        assert client.versions() == {"3": 40}

    serving(test, root)


def test_labels_can_be_called(root: Path) -> None:
    def test(client: Client, gateway: Gateway) -> None:
        status, model = client.admin("PUT", "/models/m/labels", {"labels": {"blue": "3"}})
        assert (status, model["labels"]["blue"]) == (200, "3")
        assert client.ask("GET", "/v2/models/m/versions/blue")[1]["versions"] == ["3"]
        client.admin("PUT", "/models/m/labels", {"labels": {"green": 2}})
        assert client.ask("GET", "/v2/models/m/versions/blue")[0] == 404
        assert client.ask("GET", "/v2/models/m/versions/green")[1]["versions"] == ["2"]

    serving(test, root)


REFUSED = [
    ("PUT", "/models/nobody/split", {"weights": {"1": 1}}, 404, "unknown model: 'nobody'"),
    ("PUT", "/models/m/split", {"weights": {"9": 1}}, 404, "it has: 1, 2, 3"),
    ("PUT", "/models/m/split", {"weights": {"1": 1}, "stable": "9"}, 404, "it has: 1, 2, 3"),
    ("PUT", "/models/m/split", {"weights": {"1": -1}}, 400, ">= 0"),
    ("PUT", "/models/m/split", {"weights": {"1": 0}}, 400, "add up to 0"),
    ("PUT", "/models/m/split", {"weights": {"1": "many"}}, 400, "float"),
    ("PUT", "/models/m/split", {"weights": []}, 400, "needs 'weights'"),
    ("PUT", "/models/m/split", {}, 400, "needs 'weights'"),
    ("PUT", "/models/m/split", {"weight": {"1": 1}}, 400, "weight"),
    ("PUT", "/models/m/split", [], 400, "object"),
    ("PUT", "/models/m/split", {"weights": {"1": 1}, "sticky": {"head": "x"}}, 400, "header"),
    ("POST", "/models/m/promote", {}, 400, "needs 'version'"),
    ("POST", "/models/m/promote", {"version": "9"}, 404, "it has: 1, 2, 3"),
    ("POST", "/models/broken/promote", {"version": "1"}, 503, "not ready"),
    ("PUT", "/models/m/labels", {"labels": {"7": "1"}}, 400, "use a word"),
    ("PUT", "/models/m/labels", {"labels": {"a": "9"}}, 404, "it has: 1, 2, 3"),
    ("PUT", "/models/m/labels", {"labels": ["a"]}, 400, "needs 'labels'"),
    ("PUT", "/models/m/labels", {}, 400, "needs 'labels'"),
    ("DELETE", "/models/m", None, 405, "not possible"),
]


def test_what_is_refused_changes_nothing(root: Path) -> None:
    before = (root / "m" / "traffic.yaml").read_text()

    def test(client: Client, gateway: Gateway) -> None:
        for method, path, tree, code, message in REFUSED:
            status, answer = client.admin(method, path, tree)
            assert status == code, (path, tree, status, answer)
            assert message in answer["error"], (path, tree, answer)
        assert client.versions() == {"1": 40}

    serving(test, root)
    assert (root / "m" / "traffic.yaml").read_text() == before


def test_a_directory_that_cannot_be_written_changes_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("gateway.registries.traffic.tempfile.mkstemp", refused)

    def test(client: Client, gateway: Gateway) -> None:
        status, answer = client.admin("PUT", "/models/m/split", {"weights": {"2": 1}})
        assert status == 503
        assert "models cannot be written, and neither can the state directory" in answer["error"]
        assert "Read-only file system" in caplog.text
        assert client.versions() == {"1": 40}

    serving(test, root)


def test_traffic_written_by_hand_takes_effect(root: Path) -> None:
    def test(client: Client, gateway: Gateway) -> None:
        (root / "m" / "traffic.yaml").write_text("weights: {3: 100}\n")
        wait_until(lambda: client.versions(1) == {"3": 1})
        (root / "m" / "traffic.yaml").write_text("weights: {3: 100\n")
        wait_until(lambda: "m" in gateway.facts.failed())
        assert client.versions() == {"3": 40}
        assert "not YAML" in client.admin("GET", "/models/m")[1]["error"]
        (root / "m" / "traffic.yaml").write_text("weights: {9: 50, 2: 50}\n")
        wait_until(lambda: client.versions(1) == {"2": 1})
        assert client.versions() == {"2": 40}

    serving(test, root)


def test_a_split_over_a_version_that_is_not_loaded_loads_it(root: Path) -> None:
    (root / "m" / "model.yaml").unlink()

    def test(client: Client, gateway: Gateway) -> None:
        assert set(gateway.router.table["m"].versions) == {"1", "3"}
        client.admin("PUT", "/models/m/split", {"weights": {"1": 50, "2": 50}})
        # Until then its part goes to the stable one.
        assert client.versions().keys() <= {"1", "2"}
        wait_until(lambda: "2" in gateway.router.table["m"].versions)
        assert set(client.versions(80)) == {"1", "2"}

    serving(test, root)


def test_without_watching_a_split_still_loads_what_it_names(root: Path) -> None:
    (root / "m" / "model.yaml").unlink()

    def test(client: Client, gateway: Gateway) -> None:
        assert set(gateway.router.table["m"].versions) == {"1", "3"}
        client.admin("PUT", "/models/m/split", {"weights": {"1": 50, "2": 50}})
        wait_until(lambda: "2" in gateway.router.table["m"].versions)

    serving(test, root, **{"registry.watch": False})


def test_a_stable_version_outside_the_split_is_kept(root: Path) -> None:
    def test(client: Client, gateway: Gateway) -> None:
        tree = {"weights": {"2": 100}, "stable": "1"}
        status, answer = client.admin("PUT", "/models/m/split", tree)
        assert (status, answer["stable"]) == (200, "1")
        # One that was only inherited goes when the split no longer names it.
        client.admin("PUT", "/models/m/split", {"weights": {"2": 60, "3": 40}})
        assert client.admin("GET", "/models/m")[1]["stable"] == "2"

    serving(test, root)


def test_who_may_use_it(root: Path) -> None:
    def loopback(client: Client, gateway: Gateway) -> None:
        assert client.admin("GET", "/status")[0] == 200
        refused: list[dict[str, str]] = [
            {"x-forwarded-for": "10.0.0.1"},
            {"forwarded": "for=10.0.0.1"},
            {"host": "evil.example"},  # a name that leads here, out of a browser
            {"origin": "https://evil.example"},  # a page of somebody else's
            {"origin": "http://[::1"},  # no URL at all
        ]
        for headers in refused:
            status, answer = client.admin(
                "POST", "/models/m/promote", {"version": "2"}, headers=headers
            )
            assert status == 403, headers
            assert "admin" in answer["error"]
        assert client.versions() == {"1": 40}
        port = gateway.http.port
        for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
            assert client.admin("GET", "/status", headers={"host": host})[0] == 200
        own = {"origin": f"http://127.0.0.1:{port}"}
        assert client.admin("GET", "/status", headers=own)[0] == 200

    def token(client: Client, gateway: Gateway) -> None:
        assert client.admin("GET", "/status")[0] == 403
        assert client.admin("GET", "/status", headers={"authorization": "Bearer wrong"})[0] == 403
        right = {"authorization": "Bearer secret", "host": "gateway.example"}
        assert client.admin("GET", "/status", headers=right)[0] == 200

    serving(loopback, root)
    serving(token, root, **{"admin.token": "secret"})


def test_the_status_tells_what_happened(root: Path) -> None:
    def test(client: Client, gateway: Gateway) -> None:
        client.versions(10)
        status = client.admin("GET", "/status")[1]
        assert status["ready"] is True
        assert list(status["failed"]) == ["broken/1"]
        models = {model["name"]: model for model in client.admin("GET", "/models")[1]["models"]}
        assert models["broken"]["state"] == "failed"
        assert "damaged" in models["broken"]["versions"][0]["cause"]
        (one, *_) = models["m"]["versions"]
        assert (one["version"], one["state"], one["requests"]) == ("1", "ready", 10)
        assert one["p50_ms"] > 0
        index = client.ask("POST", "/v2/repository/index", {})[1]
        (broken,) = [entry for entry in index if entry["name"] == "broken"]
        assert broken["state"] == "UNAVAILABLE"
        assert "damaged" in broken["reason"]

    serving(test, root)


def test_two_sources_with_a_model_of_the_same_name(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_adding(other, "m", 1.0, 2.0, 3.0, 4.0)

    def test(client: Client, gateway: Gateway) -> None:
        assert client.versions(5) == {"1": 5}
        client.admin("PUT", "/models/m/split", {"weights": {"2": 1}})
        assert read_traffic(root / "m").weights == {"2": 1}
        shutil.rmtree(root / "m")
        # When the first one has it no more, the other takes over.
        wait_until(lambda: client.versions(1) == {"4": 1})
        client.admin("PUT", "/models/m/split", {"weights": {"3": 1}})
        assert read_traffic(other / "m").weights == {"3": 1}
        wait_until(lambda: client.versions(1) == {"3": 1})

    serving(test, root, other)


@pytest.fixture
def killed(root: Path, tmp_path: Path) -> Iterator[GatewayProcess]:
    gateway = GatewayProcess(tmp_path, [root], grpc_server="grpcio")
    yield gateway
    if gateway.process.poll() is None:
        gateway.process.kill()
        gateway.process.wait()


def test_killed_and_started_again_it_serves_the_same_split(
    killed: GatewayProcess, root: Path, tmp_path: Path
) -> None:
    client = Client(killed.http)
    assert client.admin("PUT", "/models/m/split", {"weights": {"3": 1}})[0] == 200
    killed.process.kill()
    killed.process.wait()
    again = GatewayProcess(tmp_path, [root], grpc_server="grpcio")
    try:
        assert Client(again.http).versions() == {"3": 40}
    finally:
        assert again.stop() == 0
