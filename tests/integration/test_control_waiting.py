"""Changes beside a load that takes long, and others at a bad moment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as tc

from gateway.app import Gateway
from gateway.errors import RegistryError
from gateway.lifecycle.loader import Loader
from gateway.registries.directory import DirectoryRegistry
from tests.integration.test_admin import Client, gateway_of, serving, wait_until
from tests.support.gateway import PATIENCE, GatewayProcess
from tests.support.onnx_models import adding, write, write_adding


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    write_adding(root, "m", 1.0, 2.0, 3.0)
    return root


@pytest.fixture
def state(tmp_path: Path) -> dict[str, Any]:
    return {"state_dir": str(tmp_path / "state"), "history.gateway": tmp_path.name}


class Gate:
    """Where loads of version 2 wait."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    load = Loader.load

    def slow(self: Loader, name: str, aspired: Any, *args: Any, **more: Any) -> Any:
        if aspired.version == "2":
            made.reached.set()
            assert made.open.wait(PATIENCE)
        return load(self, name, aspired, *args, **more)

    monkeypatch.setattr(Loader, "load", slow)
    yield made
    made.open.set()


class Asking:
    """A request under way in a thread."""

    def __init__(self, client: Client, method: str, path: str, tree: Any = None) -> None:
        self.answer: Any = None

        def ask() -> None:
            self.answer = client.ask(method, path, tree)

        self.thread = threading.Thread(target=ask)
        self.thread.start()

    def end(self) -> tuple[int, Any]:
        self.thread.join(PATIENCE)
        assert self.answer is not None
        return self.answer  # type: ignore[no-any-return]


LOAD = "/admin/v1/models/m/versions/2/load"


@pytest.mark.parametrize("what", ["pause", "unload", "rollback"])
def test_what_people_do_need_not_wait_for_a_load(
    root: Path, state: dict[str, Any], gate: Gate, what: str
) -> None:
    def test(client: Client, gateway: Gateway) -> None:
        status, answer = client.admin("POST", "/models/m/versions/1/load")
        assert status == 200, answer
        status, answer = client.admin("POST", "/models/m/promote", {"version": "1"})
        assert status == 200, answer
        loading = Asking(client, "POST", LOAD)
        assert gate.reached.wait(PATIENCE)
        status, answer = client.admin("POST", f"/models/m/{what}", {})
        assert status == 200, answer
        status, answer = loading.end()
        assert (status, f"'{what}' came before it was done" in answer["error"]) == (409, True)
        assert "2" not in gateway.controls.of("m").with_versions
        if what == "rollback":
            assert client.versions(5) == {"3": 5}

    serving(test, root, **state)


def test_a_promotion_goes_beside_a_load(root: Path, state: dict[str, Any], gate: Gate) -> None:
    def test(client: Client, gateway: Gateway) -> None:
        client.admin("POST", "/models/m/versions/1/load")
        loading = Asking(client, "POST", LOAD)
        second = Asking(client, "POST", LOAD)
        assert gate.reached.wait(PATIENCE)
        status, answer = client.admin("POST", "/models/m/promote", {"version": "1"})
        assert status == 200, answer
        assert client.versions(5) == {"1": 5}
        gate.open.set()
        for each in (loading, second):
            status, answer = each.end()
            assert status == 200, answer
        assert set(gateway.controls.of("m").with_versions) == {"1", "2"}
        assert client.versions(5) == {"1": 5}

    serving(test, root, **state)


def test_a_change_that_the_end_cuts_off_is_answered(
    root: Path, state: dict[str, Any], gate: Gate
) -> None:
    async def main() -> None:
        gateway = gateway_of(root, **state)
        await gateway.start()
        client = Client(gateway.addresses()["http"])
        paths = (LOAD, "/v2/repository/models/m/versions/2/load")
        asking = [Asking(client, "POST", path, {}) for path in paths]
        await asyncio.to_thread(gate.reached.wait, PATIENCE)
        await gateway.drain(0)
        closing = asyncio.create_task(gateway.close())
        answers = [await asyncio.to_thread(each.end) for each in asking]
        gate.open.set()
        await closing
        for status, answer in answers:
            assert (status, "draining" in answer["error"]) == (503, True), answer

    state["control.enabled"] = True
    asyncio.run(main())


def test_a_split_that_is_stored_is_made_even_if_the_source_cannot_be_looked_at(
    root: Path,
    state: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def test(client: Client, gateway: Gateway) -> None:
        client.admin("POST", "/models/m/versions/1/load")

        def scan(self: DirectoryRegistry) -> Any:
            raise RegistryError("it is away")

        with monkeypatch.context() as patch:
            patch.setattr(DirectoryRegistry, "scan", scan)
            status, answer = client.admin("POST", "/models/m/promote", {"version": "1"})
        assert (status, answer["weights"]) == (200, {"1": 100})
        assert client.versions(5) == {"1": 5}
        assert (
            "m: the change is made, but its source cannot be looked at: it is away" in caplog.text
        )
        changes = client.admin("GET", "/models/m/history")[1]["changes"]
        assert changes[0]["action"] == "promote"

    serving(test, root, **state, **{"registry.watch": False})


def test_a_look_that_began_before_a_promotion_does_not_undo_it(
    root: Path, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, go_on = threading.Event(), threading.Event()

    def test(client: Client, gateway: Gateway) -> None:
        client.admin("POST", "/models/m/versions/1/load")
        scan = DirectoryRegistry.scan
        seen: list[Any] = []

        def slow(self: DirectoryRegistry) -> Any:
            found = scan(self)
            if not read.is_set():
                read.set()
                assert go_on.wait(PATIENCE)
            return found

        def changed(name: str) -> None:
            seen.append(dict(gateway.manager.models[name].traffic.weights))

        monkeypatch.setattr(DirectoryRegistry, "scan", slow)
        other = Asking(client, "POST", "/admin/v1/models/m/versions/2/load")
        assert read.wait(PATIENCE)
        status, answer = client.admin("POST", "/models/m/promote", {"version": "1"})
        assert status == 200, answer
        gateway.manager.on_change.append(changed)
        go_on.set()
        assert other.end()[0] == 200
        assert [weights for weights in seen if weights != {"1": 100}] == []
        assert client.versions(5) == {"1": 5}

    serving(test, root, **state, **{"registry.watch": False})


# --- on demand


@pytest.mark.parametrize("path", ["load", "versions/1/load"])
def test_a_load_on_demand_that_fails_is_answered(
    root: Path, state: dict[str, Any], path: str
) -> None:
    write(root / "broken" / "1", adding(1.0)[:-9])
    (root / "broken" / "model.yaml").write_text("on_demand: true\n")
    (root / "m" / "model.yaml").write_text("on_demand: true\n")

    def test(client: Client, gateway: Gateway) -> None:
        for _ in range(2):
            status, answer = client.admin("POST", f"/models/broken/{path}")
            assert (status, "version 1: 'model.onnx' is not an ONNX" in answer["error"]) == (
                400, True,
            ), answer  # fmt: skip
        status, answer = client.admin("POST", "/models/m/load")
        assert (status, answer["state"]) == (200, "ready"), answer
        client.admin("PUT", "/models/m/split", {"weights": {"1": 1}})
        status, answer = client.admin("POST", "/models/m/rollback", {})
        assert status in (200, 409), answer

    serving(test, root, **state)


def test_names_that_are_nearly_right_are_suggested(root: Path, state: dict[str, Any]) -> None:
    write_adding(root, "digits", 1.0)

    def test(client: Client, gateway: Gateway) -> None:
        for path in ("load", "unload", "pause"):
            status, answer = client.admin("POST", f"/models/digit/{path}")
            assert (status, "did you mean 'digits'?" in answer["error"]) == (404, True), answer
        assert gateway.changes._turns._lines == {}

    serving(test, root, **state)


# --- over gRPC


@pytest.mark.parametrize("server", ["native", "grpcio"])
def test_whoever_waits_for_metadata_may_go_and_has_a_deadline(
    root: Path, state: dict[str, Any], gate: Gate, server: str
) -> None:
    (root / "m" / "model.yaml").write_text("on_demand: true\nversions: {specific: [2]}\n")

    def test(client: Client, gateway: Gateway) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{gateway.grpc_port}") as channel:
            stub = tc.service_pb2_grpc.GRPCInferenceServiceStub(channel)
            asked = tc.service_pb2.ModelMetadataRequest(name="m")
            # To be counted is no reason to be loaded.
            for version in ("", "2"):
                counted = tc.service_pb2.ModelStatisticsRequest(name="m", version=version)
                try:
                    assert not stub.ModelStatistics(counted, timeout=PATIENCE).model_stats
                except grpc.RpcError as error:
                    assert version
                    assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert not gate.reached.is_set()
            waiting = stub.ModelMetadata.future(asked, timeout=PATIENCE)
            assert gate.reached.wait(PATIENCE)
            with pytest.raises(grpc.RpcError) as late:
                stub.ModelMetadata(asked, timeout=0.2)
            assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            waiting.cancel()
            if server == "native":
                wait_until(lambda: not gateway.native._tasks)
            gate.open.set()
            assert stub.ModelMetadata(asked, timeout=PATIENCE).versions == ["2"]

    serving(test, root, **state, **{"grpc.server": server})


# --- kill -9


def test_a_paused_model_served_by_a_stand_in_is_there_after_a_crash(
    root: Path, tmp_path: Path
) -> None:
    write(root / "m" / "4", adding(4.0)[:-9])
    settings = {"state_dir": tmp_path / "state"}

    def served(check: Callable[[Client], None], name: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        gateway = GatewayProcess(folder, [root], settings=settings)
        try:
            check(Client(gateway.http))
        finally:
            gateway.process.kill()
            gateway.process.wait(PATIENCE)

    def pause(client: Client) -> None:
        wait_until(lambda: client.ask("GET", "/v2/models/m/ready")[1].get("ready"))
        assert client.versions(3) == {"3": 3}
        assert client.admin("POST", "/models/m/pause")[0] == 200

    def still(client: Client) -> None:
        wait_until(lambda: client.ask("GET", "/v2/models/m/ready")[1].get("ready"))
        assert client.versions(3) == {"3": 3}

    served(pause, "first")
    # One copied meanwhile would be the next stand-in.
    write(root / "m" / "5", adding(5.0))
    served(still, "second")
