"""What a real gateway writes down, and what it answers when it is asked."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import PATIENCE, ROOT, GatewayProcess, wait_until
from tests.support.onnx_models import adding, write, write_adding


@pytest.fixture
def models(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    folder = write_adding(root, "m", 1.0, 2.0)
    (folder / "model.yaml").write_text("versions: {all: true}\n")
    (folder / "traffic.yaml").write_text("weights: {1: 100}\n")
    return root


def serving(tmp_path: Path, models: Path, **settings: object) -> GatewayProcess:
    state = tmp_path / "state"
    more = {"registry.poll_seconds": 0.2, "state_dir": state} | settings
    return GatewayProcess(tmp_path, [models], settings=more)


def sluice(*words: str, code: int = 0) -> str:
    """One command; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *words],
        capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def ask(gateway: GatewayProcess, path: str, **query: str) -> Any:
    return gateway.get(f"/admin/v1{path}?{urllib.parse.urlencode(query)}")


def change(gateway: GatewayProcess, method: str, path: str, tree: Any) -> None:
    request = urllib.request.Request(
        gateway.http + "/admin/v1/models/m" + path, json.dumps(tree).encode(), method=method
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        answer.read()


def moved(entry: Any) -> tuple[str, Any, Any]:
    return entry["action"], entry["before"].get("shares", {}), entry["after"].get("shares", {})


def test_who_changed_what_when_and_why(tmp_path: Path, models: Path) -> None:
    with serving(tmp_path, models) as gateway:
        change(gateway, "PUT", "/split", {"weights": {"1": 90, "2": 10}})
        change(gateway, "POST", "/promote", {"version": "2"})
        entries = ask(gateway, "/models/m/history")["changes"]
        assert [moved(each) for each in entries[:2]] == [
            ("promote", {"1": 90.0, "2": 10.0}, {"2": 100.0}),
            ("split", {"1": 100.0}, {"1": 90.0, "2": 10.0}),
        ]
        assert all(each["who"] for each in entries)
        facts = entries[0]["after"]["versions"]["2"]
        assert (facts["source"], facts["runtime"]) == (str(models / "m" / "2"), "onnx")
        # A version whose files are replaced, and one that comes: nobody asked the gateway.
        old = facts["digest"]
        write(models / "m" / "2", adding(20.0))

        def anew() -> Any:
            return [
                each
                for each in ask(gateway, "/models/m/history")["changes"]
                if each["after"].get("versions", {}).get("2", {}).get("digest", old) != old
            ]

        wait_until(anew, "the new files to be noticed")
        entry = anew()[-1]
        assert (entry["action"], entry["who"]) == ("served", str(models))
        assert "version 2 was loaded anew with other files" in entry["message"]
        (models / "m" / "traffic.yaml").write_text("weights: {1: 50, 2: 50}\n")
        wait_until(
            lambda: (
                ask(gateway, "/models/m/history")["changes"][0]["after"]["shares"]
                == {"1": 50.0, "2": 50.0}
            ),
            "the split to be noticed",
        )
        # At any moment: before the first entry, at one, between two, and now.
        split, promote = entries[1]["at"], entries[0]["at"]
        assert ask(gateway, "/models/m/history", at="2020-01-01")["served"] == []
        assert ask(gateway, "/models/m/history", at=split)["served"][0]["shares"]["2"] == 10.0
        then = ask(gateway, "/models/m/history", at=promote)["served"][0]
        assert (then["shares"], then["since"], then["until"]) == (
            {"2": 100.0}, promote, anew()[-1]["at"],
        )  # fmt: skip
        now = ask(gateway, "/history", at="now")["served"]
        assert [each["shares"] for each in now] == [{"1": 50.0, "2": 50.0}]
        assert len(ask(gateway, "/history", limit="2")["changes"]) == 2
        until = ask(gateway, "/models/m/history", until=split)["changes"]
        assert until[0]["at"] == split
        check_refusals(gateway)
        table = sluice("history", "m", "--url", gateway.http)
        assert "1 90, 2 10 → 2 100" in table
        assert "50 %" in sluice("history", "m", "--at", "now", "--url", gateway.http)
        assert "the record begins" in sluice("history", "--at", "2020-01-01", "--url", gateway.http)


def check_refusals(gateway: GatewayProcess) -> None:
    for path, query, status, said in (
        ("/models/nobody/history", {}, 404, "nobody"),
        ("/history", {"limit": "0"}, 400, "limit"),
        ("/history", {"limit": "1e3"}, 400, "limit"),
        ("/history", {"limit": "9" * 5000}, 400, "limit"),
        ("/history", {"at": "someday"}, 400, "no time"),
        ("/history", {"at": "2999-01-01"}, 400, "still to come"),
        ("/history", {"at": "now", "limit": "3"}, 400, "leave out"),
        ("/history", {"since": "now"}, 400, "unknown parameter 'since'"),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(gateway, path, **query)
        with caught.value as error:
            assert (error.code, said in (text := error.read().decode())) == (status, True), text


def test_a_version_that_fails_is_in_the_record(tmp_path: Path, models: Path) -> None:
    (models / "m" / "traffic.yaml").write_text("weights: {1: 50, 2: 50}\n")
    gateway = serving(tmp_path, models)
    try:
        write(models / "m" / "3", b"no model")
        (models / "m" / "traffic.yaml").write_text("weights: {2: 50, 3: 50}\nstable: '2'\n")
        wait_until(
            lambda: (
                ask(gateway, "/models/m/history")["changes"][0]["after"]["shares"] == {"2": 100.0}
            ),
            "the split to be in effect",
        )
        entry = ask(gateway, "/models/m/history")["changes"][0]
        assert entry["after"]["traffic"]["weights"] == {"2": 50.0, "3": 50.0}
        assert "version 1" in entry["message"]
    finally:
        gateway.stop()


def test_a_kill_in_the_middle_of_changes(tmp_path: Path, models: Path) -> None:
    gateway = serving(tmp_path, models)
    told: list[dict[str, int]] = []
    try:
        for number in range(1, 30):
            weights = {"1": 100 - number, "2": number}
            change(gateway, "PUT", "/split", {"weights": weights})
            told.append(weights)
        ask(gateway, "/history")
        change(gateway, "PUT", "/split", {"weights": {"1": 1, "2": 99}})
    finally:
        gateway.process.send_signal(signal.SIGKILL)
        gateway.process.wait(PATIENCE)
    # Without a gateway, out of the database itself.
    words = ("history", "--state-dir", str(tmp_path / "state"))
    entries = json.loads(sluice(*words, "--json"))["changes"]
    splits = [each["after"]["traffic"]["weights"] for each in entries if each["action"] == "split"]
    assert splits[::-1][: len(told)] == told
    with closing(sqlite3.connect(tmp_path / "state" / "history.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with serving(tmp_path, models) as gateway:
        entries = ask(gateway, "/history")["changes"]
        actions = [each["action"] for each in entries]
        crash = entries[actions.index("crash")]
        assert actions.count("start") == 2
        assert "stop" not in actions
        assert actions.index("start") < actions.index("crash")
        # Between the last sign of life and the start nobody knows.
        told_since = crash["since"]
        past = ask(gateway, "/models/m/history", at=told_since)["served"]
        assert [each["state"] for each in past] == ["running"]
    past = json.loads(sluice(*words, "--at", "now", "--json"))
    assert past["served"] == []
    assert "stopped at" in past["note"]


def test_without_history_everything_else_works(tmp_path: Path, models: Path) -> None:
    with serving(tmp_path, models, **{"history.enabled": "false"}) as gateway:
        change(gateway, "PUT", "/split", {"weights": {"1": 90, "2": 10}})
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(gateway, "/models/m/history")
        with caught.value as error:
            assert error.code == 404
            assert b"history.enabled" in error.read()
    assert not (tmp_path / "state" / "history.db").exists()


def test_a_database_that_cannot_be_meant_ends_the_start(tmp_path: Path, models: Path) -> None:
    said = sluice(
        "serve", str(models), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0",
        "--set", "history.url=nosuch://u:secret@h/d", code=2,
    )  # fmt: skip
    assert "history.url 'nosuch://u:***@h/d'" in said
    assert "secret" not in said


def test_the_command_needs_one_place_to_look(tmp_path: Path) -> None:
    assert "there is no history at" in sluice("history", "--state-dir", str(tmp_path), code=2)
    both = ("history", "--state-dir", str(tmp_path), "--database", "sqlite:///x.db")
    assert "not both" in sluice(*both, code=2)
    assert "leave out" in sluice("history", "--at", "now", "--limit", "3", code=2)
    assert "is no time" in sluice("history", "--at", "soon", code=2)
