"""Changes by people: load and unload, pause and resume, roll back, and what a restart keeps."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.app import Gateway
from tests.integration.test_admin import Client, serving, wait_until
from tests.support.onnx_models import adding, write, write_adding

ALL = "versions: {all: true}\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    write_adding(root, "m", 1.0, 2.0, 3.0)
    write_adding(root, "other", 1.0)
    return root


@pytest.fixture
def state(tmp_path: Path) -> dict[str, Any]:
    return {"state_dir": str(tmp_path / "state"), "history.gateway": tmp_path.name}


def ready(client: Client, model: str = "m") -> set[str]:
    """The versions that are ready."""
    versions = client.admin("GET", f"/models/{model}")[1]["versions"]
    return {v["version"] for v in versions if v["state"] == "ready"}


def change(client: Client, path: str, tree: Any = None, model: str = "m") -> Any:
    """Makes a change, which must succeed."""
    status, answer = client.admin("POST", f"/models/{model}/{path}", tree)
    assert status == 200, answer
    return answer


def refused(client: Client, path: str, code: int, words: str, tree: Any = None) -> None:
    status, answer = client.admin("POST", f"/models/m/{path}", tree)
    assert (status, words in answer["error"]) == (code, True), answer


# --- load and unload


def test_an_unloaded_model_stays_unloaded_until_it_is_loaded(
    root: Path, state: dict[str, Any]
) -> None:
    def unload(client: Client, gateway: Gateway) -> None:
        assert change(client, "unload", {"message": "too old"})["name"] == "m"
        gone(client, gateway)

    def gone(client: Client, gateway: Gateway) -> None:
        status, answer = client.ask("GET", "/v2/models/m")
        assert (status, "it is unloaded" in answer["error"]) == (503, True), answer
        assert client.ask("GET", "/v2/models/m/ready")[1] == {"name": "m", "ready": False}
        entry = {"name": "m", "state": "UNAVAILABLE", "reason": "unloaded"}
        wait_until(lambda: entry in client.ask("POST", "/v2/repository/index", {})[1])
        # A model that nobody wants is no reason not to be ready, nor one that failed.
        assert client.ask("GET", "/v2/health/ready") == (200, {"ready": True})

    def load(client: Client, gateway: Gateway) -> None:
        gone(client, gateway)
        assert change(client, "load")["state"] == "ready"
        assert client.versions(10) == {"3": 10}

    def back(client: Client, gateway: Gateway) -> None:
        assert client.versions(10) == {"3": 10}

    for part in (unload, load, back):
        serving(part, root, **state)


def test_one_version_is_loaded_and_unloaded(root: Path, state: dict[str, Any]) -> None:
    def load(client: Client, gateway: Gateway) -> None:
        assert ready(client) == {"3"}
        change(client, "versions/1/load")
        assert ready(client) == {"1", "3"}
        # It has no share by itself, and can be called.
        assert client.versions(10) == {"3": 10}
        assert client.ask("GET", "/v2/models/m/versions/1")[0] == 200
        refused(client, "versions/9/load", 404, "it has: 1, 2, 3")
        refused(client, "versions/9/unload", 404, "it has: 1, 2, 3")

    def unload(client: Client, gateway: Gateway) -> None:
        assert ready(client) == {"1", "3"}
        change(client, "versions/3/unload")
        assert client.versions(10) == {"1": 10}
        refused(client, "versions/1/unload", 409, "the only one of 'm' that is ready")

    def after(client: Client, gateway: Gateway) -> None:
        assert ready(client) == {"1"}
        change(client, "versions/3/load")
        assert client.versions(10) == {"3": 10}

    for part in (load, unload, after):
        serving(part, root, **state)


def test_a_version_that_has_traffic_is_not_unloaded(root: Path, state: dict[str, Any]) -> None:
    (root / "m" / "model.yaml").write_text(ALL)

    def test(client: Client, gateway: Gateway) -> None:
        client.admin("PUT", "/models/m/split", {"weights": {"1": 90, "2": 10}})
        refused(client, "versions/2/unload", 409, "has 10 % of the traffic")
        client.admin("PUT", "/models/m/split", {"weights": {"2": 1}, "stable": "1"})
        refused(client, "versions/1/unload", 409, "is the stable one")
        change(client, "versions/3/unload")
        assert ready(client) == {"1", "2"}

    serving(test, root, **state)


def test_a_load_that_fails_changes_nothing(root: Path, state: dict[str, Any]) -> None:
    write(root / "m" / "4", adding(4.0)[:-9])

    def test(client: Client, gateway: Gateway) -> None:
        wait_until(lambda: ready(client) == {"3"})
        refused(client, "versions/4/load", 400, "failed to load 'm': version 4: 'model.onnx' is")
        assert not (Path(state["state_dir"]) / "control").exists()
        assert client.versions(10) == {"3": 10}
        # The whole model is what its source wants, and that is broken.
        refused(client, "load", 400, "failed to load 'm': version 4")
        write(root / "m" / "4", adding(4.0))
        change(client, "load")
        assert client.versions(10) == {"4": 10}

    serving(test, root, **state)


def test_explicit_loads_nothing_until_asked(root: Path, state: dict[str, Any]) -> None:
    explicit = {**state, "control.explicit": True}

    def nothing(client: Client, gateway: Gateway) -> None:
        assert client.ask("GET", "/v2/health/ready")[0] == 200
        assert client.ask("GET", "/v2/models")[1] == {"models": []}
        change(client, "load")
        assert client.versions(5) == {"3": 5}
        # What has only just been copied is found.
        write_adding(root, "new", 7.0)
        assert change(client, "load", model="new")["state"] == "ready"
        status, answer = client.admin("POST", "/models/nobody/load")
        assert (status, "unknown model: 'nobody'" in answer["error"]) == (404, True)

    def kept(client: Client, gateway: Gateway) -> None:
        assert client.ask("GET", "/v2/models")[1] == {"models": ["m", "new"]}
        change(client, "unload", model="new")

    def named(client: Client, gateway: Gateway) -> None:
        assert client.ask("GET", "/v2/models")[1] == {"models": ["m", "other"]}

    def everything(client: Client, gateway: Gateway) -> None:
        assert client.ask("GET", "/v2/models")[1] == {"models": ["m", "new", "other"]}

    serving(nothing, root, **explicit)
    serving(kept, root, **explicit)
    serving(named, root, **explicit, **{"control.load": ("other",)})
    serving(everything, root, **explicit, **{"control.load": ("*",)})


def test_a_version_copied_just_now_is_loaded_by_a_load(root: Path, state: dict[str, Any]) -> None:
    def test(client: Client, gateway: Gateway) -> None:
        write(root / "m" / "4", adding(4.0))
        change(client, "load")
        assert client.versions(5) == {"4": 5}

    serving(test, root, **state)
    (root / "m" / "5").mkdir()
    write(root / "m" / "5", adding(5.0))
    serving(lambda client, gateway: None, root, **state)
    serving(test_unwatched, root, **state, **{"registry.watch": False})


def test_unwatched(client: Client, gateway: Gateway) -> None:
    folder = Path(gateway.registries[0].source) / "m"
    write(folder / "6", adding(6.0))
    change(client, "load")
    assert client.versions(5) == {"6": 5}
    change(client, "versions/2/load")
    assert ready(client) == {"2", "6"}


test_unwatched.__test__ = False  # type: ignore[attr-defined]


def test_unloading_under_load_loses_no_request(root: Path, state: dict[str, Any]) -> None:
    """Whoever was let in is answered; others hear 503. Versions come and go unnoticed."""
    (root / "m" / "model.yaml").write_text(ALL)

    def test(client: Client, gateway: Gateway) -> None:
        client.admin("PUT", "/models/m/split", {"weights": {"1": 100}})
        statuses: list[tuple[int, Any]] = []
        stop = threading.Event()
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}

        def ask() -> None:
            while not stop.is_set():
                statuses.append(client.ask("POST", "/v2/models/m/infer", {"inputs": [tensor]}))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                change(client, "versions/3/unload")
                change(client, "versions/3/load")
            wait_until(lambda: len(statuses) > 50)
            assert {status for status, _ in statuses} == {200}, statuses
            for _ in range(3):
                change(client, "unload")
                change(client, "load")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert {status for status, _ in statuses} <= {200, 503}
        for status, answer in statuses:
            assert status == 200 or "it is unloaded" in answer["error"] or "load" in answer["error"]

    serving(test, root, **state)


def test_changes_at_the_same_time_are_made_one_after_the_other(
    root: Path, state: dict[str, Any]
) -> None:
    (root / "m" / "model.yaml").write_text(ALL)

    def test(client: Client, gateway: Gateway) -> None:
        answers: list[int] = []

        def work(method: str, path: str, tree: Any) -> None:
            answers.append(client.admin(method, f"/models/m/{path}", tree)[0])

        asked: list[tuple[str, str, Any]] = [
            *(("PATCH", "labels", {"labels": {f"l{n}": "1"}}) for n in range(8)),
            ("POST", "unload", None),
            ("POST", "load", None),
            ("PUT", "split", {"weights": {"1": 1}}),
            ("POST", "versions/2/unload", None),
        ]
        threads = [threading.Thread(target=work, args=each) for each in asked]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(answers) <= {200, 409}
        model = client.admin("GET", "/models/m")[1]
        assert {f"l{n}" for n in range(8)} <= model["labels"].keys()
        assert model["weights"] == {"1": 1}

    serving(test, root, **state)


# --- pause


def test_a_paused_model_ignores_its_registry_and_catches_up(
    root: Path, state: dict[str, Any]
) -> None:
    def pause(client: Client, gateway: Gateway) -> None:
        status, model = client.admin(
            "POST", "/models/m/pause", {"message": "audit"}, headers={"x-sluice-actor": "ada"}
        )
        assert status == 200
        assert (model["paused"]["who"], model["paused"]["message"]) == ("ada (127.0.0.1)", "audit")
        write(root / "m" / "4", adding(4.0))
        (root / "m" / "traffic.yaml").write_text("weights: {1: 100}\n")
        write_adding(root, "witness", 1.0)
        wait_until(lambda: "witness" in gateway.manager.models)
        assert client.versions(10) == {"3": 10}
        for what, method, tree in (
            ("split", "PUT", {"weights": {"1": 1}}),
            ("promote", "POST", {"version": "1"}),
            ("labels", "PUT", {"labels": {"a": "1"}}),
            ("rollback", "POST", {}),
            ("pause", "POST", {}),
            ("load", "POST", {}),
            ("unload", "POST", {}),
            ("versions/1/load", "POST", {}),
        ):
            status, answer = client.admin(method, f"/models/m/{what}", tree)
            assert status == 409, (what, answer)
            assert "by ada (127.0.0.1): audit; 'sluice resume m' ends that" in answer["error"]

    def still(client: Client, gateway: Gateway) -> None:
        assert client.versions(10) == {"3": 10}
        assert client.admin("GET", "/models/m")[1]["paused"]["message"] == "audit"
        change(client, "resume")
        wait_until(lambda: client.versions(1) == {"1": 1})
        assert client.admin("GET", "/models/m")[1]["paused"] is None
        refused(client, "resume", 409, "'m' is not paused")

    serving(pause, root, **state)
    serving(still, root, **state)


def test_a_paused_model_that_left_its_registry_goes_on(root: Path, state: dict[str, Any]) -> None:
    import shutil

    def test(client: Client, gateway: Gateway) -> None:
        change(client, "pause")
        shutil.rmtree(root / "m")
        wait_until(lambda: "m" not in gateway.controls.raw)
        assert client.versions(10) == {"3": 10}
        change(client, "resume")
        wait_until(lambda: client.ask("GET", "/v2/models/m")[0] == 404)

    serving(test, root, **state)


# --- roll back


def traffic(client: Client) -> tuple[Any, Any, Any]:
    model = client.admin("GET", "/models/m")[1]
    return model["weights"], model["stable"], model["labels"]


def test_roll_back_takes_each_kind_of_change_back(root: Path, state: dict[str, Any]) -> None:
    (root / "m" / "model.yaml").write_text(ALL)

    def test(client: Client, gateway: Gateway) -> None:
        refused(client, "rollback", 409, "nothing to roll back")
        client.admin("PUT", "/models/m/split", {"weights": {"1": 90, "2": 10}})
        before = traffic(client)
        changes: list[Callable[[], Any]] = [
            lambda: change(client, "promote", {"version": "2"}),
            lambda: client.admin("PUT", "/models/m/split", {"weights": {"1": 5, "3": 5}}),
            lambda: client.admin("PUT", "/models/m/labels", {"labels": {"blue": "2"}}),
        ]
        for make in changes:
            make()
            after = traffic(client)
            assert after != before
            change(client, "rollback")
            assert traffic(client) == before
            # Taken back twice is not taken back.
            change(client, "rollback")
            assert traffic(client) == after
            change(client, "rollback", {"message": "no good"})
        assert set(client.versions(80)) == {"1", "2"}

    serving(test, root, **state)


def test_roll_back_after_a_new_version_took_over(root: Path, state: dict[str, Any]) -> None:
    """Version 3 is not loaded any more by then: it is loaded before anything moves."""

    def test(client: Client, gateway: Gateway) -> None:
        assert client.versions(5) == {"3": 5}
        write(root / "m" / "4", adding(4.0))
        wait_until(lambda: client.versions(1) == {"4": 1})
        wait_until(lambda: ready(client) == {"4"})
        model = change(client, "rollback", {"message": "4 is worse"})
        assert (model["weights"], model["stable"]) == ({"3": 100.0}, "3")
        assert client.versions(10) == {"3": 10}

    serving(test, root, **state)


def test_roll_back_to_an_entry_of_the_history(root: Path, state: dict[str, Any]) -> None:
    (root / "m" / "model.yaml").write_text(ALL)

    def test(client: Client, gateway: Gateway) -> None:
        for version in ("1", "2", "3"):
            change(client, "promote", {"version": version})
        entries = client.admin("GET", "/models/m/history")[1]["changes"]
        first = [entry["id"] for entry in entries if entry["action"] == "promote"][-1]
        change(client, "rollback", {"to": first})
        assert client.versions(10) == {"1": 10}
        refused(client, "rollback", 404, "has no entry 4711", {"to": 4711})
        refused(client, "rollback", 400, "must be the number", {"to": "x"})

    serving(test, root, **state)


def test_roll_back_to_what_is_gone_or_broken_is_refused(root: Path, state: dict[str, Any]) -> None:
    import shutil

    def test(client: Client, gateway: Gateway) -> None:
        client.admin("PUT", "/models/m/split", {"weights": {"1": 1}})
        wait_until(lambda: client.versions(1) == {"1": 1})
        client.admin("PUT", "/models/m/split", {"weights": {"3": 1}})
        wait_until(lambda: ready(client) == {"3"})
        write(root / "m" / "1", adding(1.0)[:-9])
        wait_until(lambda: not gateway.registries[0].unsettled)  # type: ignore[attr-defined]
        refused(client, "rollback", 400, "failed to load 'm': version 1")
        assert client.versions(10) == {"3": 10}
        assert traffic(client)[0] == {"3": 1}
        shutil.rmtree(root / "m" / "1")
        known = lambda: client.admin("GET", "/models/m")[1]["on_disk"]  # noqa: E731
        wait_until(lambda: known() == ["2", "3"])
        refused(client, "rollback", 409, "version 1 is not there any more; it has: 2, 3")
        assert client.versions(10) == {"3": 10}

    serving(test, root, **state)


def test_without_a_history_there_is_no_way_back(root: Path, state: dict[str, Any]) -> None:
    def test(client: Client, gateway: Gateway) -> None:
        client.admin("PUT", "/models/m/split", {"weights": {"3": 1}})
        refused(client, "rollback", 409, "history.enabled is false")

    serving(test, root, **state, **{"history.enabled": False})


def test_a_message_is_bounded_and_kept(root: Path, state: dict[str, Any]) -> None:
    def test(client: Client, gateway: Gateway) -> None:
        refused(client, "pause", 400, "'message' must be text", {"message": 1})
        refused(client, "pause", 400, "longer than 1000", {"message": "x" * 1001})
        refused(client, "pause", 400, "unknown key 'mesage'", {"mesage": "x"})
        change(client, "pause", {"message": "two\nlines"})
        assert client.admin("GET", "/models/m")[1]["paused"]["message"] == "two lines"
        latest = client.admin("GET", "/models/m/history")[1]["changes"][0]
        assert (latest["action"], latest["message"]) == ("pause", "two lines")
        assert "127.0.0.1" in latest["who"]

    serving(test, root, **state)


# --- the command line


def test_the_commands(
    root: Path, state: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from gateway.cli.commands import run

    def test(client: Client, gateway: Gateway) -> None:
        def sluice(*words: str) -> tuple[int, str, str]:
            code = run([*words, "--url", client.base])
            return code, *capsys.readouterr()

        code, out, _ = sluice("load", "m", "1", "-m", "to compare")
        assert (code, [line.split()[:3] for line in out.splitlines()[1:]]) == (
            0, [["m", "1", "ready"], ["m", "3", "ready"]],
        )  # fmt: skip
        assert sluice("split", "m", "1=10", "3=90", "-m", "canary")[0] == 0
        code, out, _ = sluice("label", "m", "blue=1", "green=3")
        assert "blue    1" in out
        assert "green" not in sluice("label", "m", "green=")[1]
        assert json.loads(sluice("labels", "m", "--json")[1])["labels"]["blue"] == "1"
        assert sluice("label", "m", "red=")[2].startswith("sluice: 'm' has no label 'red'")
        assert sluice("label", "m", "red")[0] == 2
        assert sluice("promote", "m", "blue")[0] == 0
        assert client.versions(5) == {"1": 5}
        assert sluice("rollback", "m", "-m", "worse")[0] == 0
        assert client.admin("GET", "/models/m")[1]["weights"] == {"1": 10, "3": 90}
        assert "paused" in sluice("pause", "m", "-m", "audit until Friday")[1]
        assert "audit until Friday" in sluice("models")[1]
        code, _, error = sluice("unload", "m")
        assert (code, "'sluice resume m' ends that" in error) == (1, True)
        assert "paused" not in sluice("resume", "m")[1]
        assert sluice("unload", "m", "1")[0] == 1
        assert sluice("unload", "m")[0] == 0
        wait_until(lambda: "unloaded" in sluice("models")[1])
        assert json.loads(sluice("load", "m", "--json")[1])["state"] == "ready"
        assert sluice("load", "nobody")[0] == 1
        changes = client.admin("GET", "/models/m/history")[1]["changes"]
        (split,) = [change for change in changes if change["action"] == "split"]
        assert (split["message"], "@" in split["who"]) == ("canary", True)

    serving(test, root, **state)


def test_a_split_over_another_signature_is_refused(root: Path, state: dict[str, Any]) -> None:
    write(root / "m" / "4", adding(4.0, width=5))
    (root / "m" / "model.yaml").write_text(ALL)

    def test(client: Client, gateway: Gateway) -> None:
        tree = {"weights": {"3": 90, "4": 10}}
        status, answer = client.admin("PUT", "/models/m/split", tree)
        assert (status, "version 4 of 'm' differs from stable version 3" in answer["error"]) == (
            409, True,
        ), answer  # fmt: skip
        text = ALL + "signature_change: allow\n"
        (root / "m" / "model.yaml").write_text(text)
        wait_until(
            lambda: client.admin("PUT", "/models/m/split", tree)[0] == 200,
        )

    serving(test, root, **state)
