"""The registry over a stand-in for MLflow: what it asks, what it believes, what it remembers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.config import Config, MlflowConfig, RegistryConfig
from gateway.errors import RegistryError
from gateway.model_settings import ModelSettings
from gateway.registries.base import Elsewhere, Snapshot
from gateway.registries.mlflow import registry as module
from gateway.registries.mlflow.documents import (
    Alias,
    ModelPage,
    Registered,
    RemoteEntry,
    Tag,
    Version,
)
from gateway.registries.mlflow.registry import MlflowRegistry
from gateway.registries.mlflow.watching import Watching
from gateway.registries.traffic import Traffic
from gateway.state import StateDir

SOURCE = "mlflow+http://h:5000"


class FakeMlflow:
    """Registered models in memory, and what was asked of them."""

    def __init__(self) -> None:
        self.models: dict[str, Registered] = {}
        self.all_versions: dict[str, list[Version]] = {}
        self.asked: list[str] = []
        self.down = ""
        self.a_page = 1000
        self.fail_at = ""

    def add(self, name: str, versions: int, aliases: dict[str, str], **tags: str) -> None:
        self.models[name] = Registered(
            name,
            tags=tuple(Tag(f"sluice.{key}", value) for key, value in tags.items()),
            aliases=tuple(Alias(*each) for each in aliases.items()),
        )
        self.all_versions[name] = [
            Version(name, str(number), source=f"models:/m-{number:032x}")
            for number in range(1, versions + 1)
        ]

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.down:
            raise RegistryError(self.down)

    def pages(self) -> list[bytes]:
        self._ask("pages")
        names = list(self.models.values())
        pages = [names[at : at + self.a_page] for at in range(0, len(names), self.a_page)] or [[]]
        return [msgspec.json.encode(ModelPage(tuple(page))) for page in pages]

    def registered(self, name: str) -> Registered | None:
        self._ask(f"get {name}")
        return self.models.get(name)

    def versions(self, name: str = "") -> Iterator[Version]:
        self._ask(f"versions {name}")
        for each in [name] if name else list(self.all_versions):
            yield from self.all_versions.get(each, [])

    def _change(self, name: str, **more: Any) -> None:
        what = f"{more}"
        self._ask(what)
        if self.fail_at and self.fail_at in what:
            raise RegistryError("MLflow answered 500")
        self.models[name] = msgspec.structs.replace(self.models[name], **more)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        others = [each for each in self.models[name].aliases if each.alias != alias]
        self._change(name, aliases=(*others, Alias(alias, version)))

    def delete_alias(self, name: str, alias: str) -> None:
        self._change(name, aliases=tuple(e for e in self.models[name].aliases if e.alias != alias))

    def set_tag(self, name: str, key: str, value: str) -> None:
        others = [each for each in self.models[name].tags if each.key != key]
        self._change(name, tags=(*others, Tag(key, value)))

    def delete_tag(self, name: str, key: str) -> None:
        self._change(name, tags=tuple(e for e in self.models[name].tags if e.key != key))

    def artifact_uri(self, name: str, version: str) -> str:
        raise NotImplementedError

    logged_model_uri = run_uri = artifact_uri  # type: ignore[assignment]

    def entries(self, path: str) -> tuple[RemoteEntry, ...]:
        raise NotImplementedError

    def content(self, path: str, start: int) -> Iterator[bytes]:
        raise NotImplementedError

    def serves(self, host: str) -> bool:
        return False


@pytest.fixture
def mlflow() -> FakeMlflow:
    fake = FakeMlflow()
    fake.add("m", 3, {"champion": "1"})
    return fake


def registry(
    mlflow: FakeMlflow, state: Path | None = None, source: str = SOURCE, **keys: Any
) -> MlflowRegistry:
    config = Config(mlflow=MlflowConfig(**keys), registry=RegistryConfig(poll_seconds=0.01))
    return MlflowRegistry(source, config, StateDir(state) if state else None, mlflow)


def served(snapshot: Snapshot) -> dict[str, list[str]]:
    return {name: list(model.versions) for name, model in snapshot.items()}


def test_what_is_served(mlflow: FakeMlflow, caplog: pytest.LogCaptureFixture) -> None:
    mlflow.add("two", 12, {"champion": "2", "challenger": "11", "old": "1"})
    mlflow.add("named by the split", 2, {})
    mlflow.add("none", 2, {"other": "1"})
    mlflow.add("split", 5, {"champion": "2"}, traffic="champion=9, 4=1")
    own = registry(mlflow)
    snapshot = own.scan()
    assert served(snapshot) == {"m": ["1"], "two": ["2", "11"], "split": ["2", "4"]}
    two = snapshot["two"]
    assert two.on_disk == tuple(str(number) for number in range(1, 13))
    assert two.traffic.weights == {"2": 100} and two.traffic.labels["old"] == "1"
    assert two.settings == ModelSettings(isolation="code")
    version = two.versions["11"]
    assert version.source == "mlflow+http://h:5000/models:/two/11"
    assert version.origin is not None and version.origin.folder == "1"
    assert own.ignored == {
        "named by the split": "a model's name in a URL has letters, digits, '.', '_' and '-'",
        "none": "it has no version that is @champion, @challenger",
    }
    own.scan()
    assert caplog.text.count("not serving model 'none'") == 1


def test_nothing_is_asked_but_the_list_while_nothing_changes(mlflow: FakeMlflow) -> None:
    mlflow.add("other", 1, {"champion": "1"})
    own = registry(mlflow)
    first = own.scan()
    mlflow.asked.clear()
    assert own.scan() is first
    assert mlflow.asked == ["pages"]
    # An alias leaves the model's own times alone; only that model is looked at.
    mlflow.set_alias("m", "champion", "3")
    mlflow.asked.clear()
    assert served(own.scan()) == {"m": ["3"], "other": ["1"]}
    assert mlflow.asked == ["pages", "versions m"]


def test_many_new_models_are_asked_for_at_once(mlflow: FakeMlflow) -> None:
    for number in range(50):
        mlflow.add(f"m{number}", 2, {"champion": "2"})
    assert len(registry(mlflow).scan()) == 51
    assert mlflow.asked == ["pages", "versions "]


def test_models_that_slip_from_page_to_page_are_not_lost(mlflow: FakeMlflow) -> None:
    mlflow.add("n", 1, {"champion": "1"})
    mlflow.a_page = 1
    own = registry(mlflow)
    assert len(own.scan()) == 2
    pages = mlflow.pages()
    mlflow.pages = lambda: [pages[0], msgspec.json.encode(ModelPage(()))]  # type: ignore[method-assign]
    assert len(own.scan()) == 2
    del mlflow.models["n"]
    mlflow.add("x", 1, {})
    pages[0] = msgspec.json.encode(ModelPage((mlflow.models["m"], mlflow.models["x"])))
    assert served(own.scan()) == {"m": ["1"]}


def test_an_answer_without_models_is_checked(mlflow: FakeMlflow, tmp_path: Path) -> None:
    own = registry(mlflow, tmp_path)
    before = own.scan()
    for wrong in (
        b"", b"[]", b"<html>", b'{"registered_models": 3}', b"\xff",
        b'{"status": "maintenance"}', b'{"next_page_token": "", "status": "maintenance"}',
    ):  # fmt: skip
        mlflow.pages = lambda wrong=wrong: [wrong]  # type: ignore[method-assign]
        with pytest.raises(RegistryError, match="something else than was asked"):
            own.scan()
    mlflow.pages = lambda: [b"{}"]  # type: ignore[method-assign]
    with pytest.raises(RegistryError, match="lists no models, and yet it has 'm'"):
        own.scan()
    mlflow.down = "away"
    mlflow.pages = lambda: mlflow._ask("pages") or []  # type: ignore[method-assign,func-returns-value]
    assert registry(mlflow, tmp_path).scan() == before, "what is remembered is what it was"
    mlflow.down = ""
    del mlflow.models["m"]
    mlflow.pages = lambda: [b"{}"]  # type: ignore[method-assign]
    assert own.scan() == {}
    assert registry(mlflow).scan() == {}


def test_an_alias_on_a_version_that_mlflow_does_not_list(mlflow: FakeMlflow) -> None:
    own = registry(mlflow)
    before = own.scan()["m"]
    mlflow.set_alias("m", "champion", "4")
    now = own.scan()["m"]
    assert (now.versions, now.traffic) == (before.versions, before.traffic)
    assert now.error == "version 4, which the alias 'champion' names, is not in MLflow's list"
    mlflow.all_versions["m"].append(Version("m", "4"))
    now = own.scan()["m"]
    assert list(now.versions) == ["4"] and now.traffic.stable == "4" and not now.error
    # Nor is what serves unloaded when the list of versions is empty all at once.
    mlflow.all_versions["m"].clear()
    mlflow.set_tag("m", "any", "thing")
    now = own.scan()["m"]
    assert list(now.versions) == ["4"] and now.traffic.stable == "4" and now.error


def test_versions_that_stay_pending_are_asked_for_less_and_less(mlflow: FakeMlflow) -> None:
    mlflow.add("other", 1, {"champion": "1"})
    mlflow.all_versions["m"].append(Version("m", "4", status="PENDING_REGISTRATION"))
    own = registry(mlflow)
    own.scan()
    mlflow.asked.clear()
    for _ in range(200):
        own.scan()
    assert set(mlflow.asked) == {"pages", "versions m"}
    assert 4 < mlflow.asked.count("versions m") < 12
    mlflow.all_versions["m"][-1] = Version("m", "4")
    mlflow.set_alias("m", "champion", "4")
    assert served(own.scan())["m"] == ["4"]
    mlflow.asked.clear()
    own.scan()
    assert mlflow.asked == ["pages"]


def test_what_is_remembered_stands_in_for_a_look_that_takes_long(
    mlflow: FakeMlflow, tmp_path: Path
) -> None:
    before = registry(mlflow, tmp_path).scan()
    own = registry(mlflow, tmp_path)
    assert isinstance(own, Elsewhere)
    asked, answer = threading.Event(), threading.Event()
    pages = mlflow.pages

    def slow() -> list[bytes]:
        asked.set()
        assert answer.wait(30)
        return pages()

    mlflow.pages = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as thread:
        try:
            look = thread.submit(own.scan)
            assert asked.wait(30)
            assert registry(mlflow).stand_in("it is slow") is None
            assert own.stand_in("it is slow") == before
            assert "it is slow; serving what it said at" in own.trouble
            mlflow.set_alias("m", "champion", "2")
        finally:
            answer.set()
        assert served(look.result()) == {"m": ["2"]} and not own.trouble
    assert own.stand_in("it is slow") == look.result()


def test_every_alias(mlflow: FakeMlflow) -> None:
    mlflow.set_alias("m", "old", "2")
    own = registry(mlflow, versions=("@*",))
    model = own.scan()["m"]
    assert list(model.versions) == ["1", "2"]
    assert model.traffic.labels["old"] == "2" and model.traffic.weights == {"1": 100}


def test_a_split_does_not_wait_for_a_registry_that_hangs(
    mlflow: FakeMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_WAIT", 0.01)
    own = registry(mlflow)
    own.scan()
    with own._lock, pytest.raises(RegistryError, match=r"is being read, .* nothing was written"):
        own.write_traffic("m", Traffic(stable="1"))


def test_a_look_that_fails_in_any_way_is_a_failed_look(
    mlflow: FakeMlflow, caplog: pytest.LogCaptureFixture
) -> None:
    own = registry(mlflow)
    watching = own._watching
    mlflow.pages = lambda: [][1]  # type: ignore[method-assign]
    assert asyncio.run(watching._look()) is None
    assert watching._failures == 1
    assert "cannot be read: IndexError: list index out of range" in own.trouble
    assert "Traceback" not in caplog.text


def test_an_alias_on_a_version_that_is_not_there_yet(mlflow: FakeMlflow) -> None:
    own = registry(mlflow)
    before = own.scan()["m"]
    pending = Version("m", "4", status="PENDING_REGISTRATION")
    mlflow.all_versions["m"].append(pending)
    mlflow.set_alias("m", "champion", "4")
    now = own.scan()["m"]
    assert (now.versions, now.traffic) == (before.versions, before.traffic)
    assert now.error == "version 4 is PENDING_REGISTRATION in MLflow"
    # The list of models does not say when it is; so it is looked at until it is.
    mlflow.all_versions["m"][-1] = Version("m", "4")
    now = own.scan()["m"]
    assert list(now.versions) == ["4"] and now.traffic.stable == "4" and not now.error


def test_wrong_tags_keep_what_was_good(mlflow: FakeMlflow) -> None:
    mlflow.add("m", 2, {"champion": "1"}, settings="max_batch_size: 8\nisolation: none")
    own = registry(mlflow)
    good = own.scan()["m"]
    assert good.settings.max_batch_size == 8 and good.settings.isolation == "none"
    wrong = [
        ("sluice.settings", "max_batch: 8", "max_batch"),
        ("sluice.settings", "a: [", "is no YAML"),
        ("sluice.settings", "text", "must hold keys of model.yaml"),
        ("sluice.settings", "versions: {all: true}", "set mlflow.versions"),
        ("sluice.settings", "remote: {url: http://h}", "'remote' is not for models in MLflow"),
        ("sluice.traffic", "x", "must be NAME=WEIGHT"),
        ("sluice.sticky", "x", "must be header=NAME"),
    ]
    for key, value, problem in wrong:
        mlflow.set_tag("m", key, value)
        now = own.scan()["m"]
        assert problem in now.error and "\n" not in now.error
        assert (now.versions, now.settings, now.traffic) == (
            good.versions, good.settings, good.traffic,
        )  # fmt: skip
        if key != "sluice.settings":
            mlflow.delete_tag("m", key)
    mlflow.delete_tag("m", "sluice.settings")
    now = own.scan()["m"]
    assert not now.error and now.settings == ModelSettings(isolation="code")
    # Other settings load it anew.
    assert now.versions["1"].fingerprint != good.versions["1"].fingerprint


def test_pinned_versions_are_served_besides(mlflow: FakeMlflow) -> None:
    own = registry(mlflow)
    own.scan()
    own.pin("m", frozenset({"2", "99"}))
    assert served(own.scan()) == {"m": ["1", "2"]}
    own.pin("m", frozenset())
    assert served(own.scan()) == {"m": ["1"]}


def test_what_is_remembered_stands_in(mlflow: FakeMlflow, tmp_path: Path) -> None:
    before = registry(mlflow, tmp_path).scan()
    mlflow.down = "it cannot be reached"
    own = registry(mlflow, tmp_path)
    assert own.scan() == before
    assert "serving what it said at" in own.trouble and "from the cache" in own.trouble
    with pytest.raises(RegistryError):
        own.scan()
    assert own.trouble
    mlflow.down = ""
    mlflow.set_alias("m", "champion", "2")
    assert served(own.scan()) == {"m": ["2"]} and not own.trouble
    mlflow.down = "it cannot be reached"
    with pytest.raises(RegistryError, match="must be there for the first start"):
        registry(mlflow).scan()
    for kept in (tmp_path / "remembered").iterdir():
        kept.write_bytes(b"{")
    with pytest.raises(RegistryError, match="what is remembered of it cannot be read"):
        registry(mlflow, tmp_path).scan()


@pytest.mark.parametrize(("version", "number"), [("/2", "2"), ("@champion", "1"), ("/latest", "3")])
def test_one_model(
    mlflow: FakeMlflow, version: str, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://h:5000")
    mlflow.add("other", 1, {"champion": "1"})
    mlflow.set_alias("m", "challenger", "3")
    mlflow.set_tag("m", "sluice.traffic", "champion=50, challenger=50")
    own = registry(mlflow, source=f"models:/m{version}")
    snapshot = own.scan()
    assert served(snapshot) == {"m": [number]}
    assert snapshot["m"].traffic.weights == {}
    with pytest.raises(RegistryError, match="has no split"):
        own.write_traffic("m", Traffic(stable="1"))


def test_writing_fails_in_the_middle(mlflow: FakeMlflow) -> None:
    mlflow.set_alias("m", "challenger", "2")
    own = registry(mlflow)
    own.scan()
    mlflow.fail_at = "champion', version='2"
    with pytest.raises(RegistryError) as error:
        own.write_traffic("m", Traffic(weights={"2": 100.0}, stable="2"))
    assert str(error.value) == (
        "MLflow answered 500; done: set tag 'sluice.traffic' to '2=100'; "
        "not done: set alias 'champion' to '2'"
    )
    # What is there now is what was asked for, in other words.
    assert own.scan()["m"].traffic.weights == {"2": 100}
    mlflow.fail_at = ""
    own.write_traffic("m", Traffic(weights={"2": 100.0}, stable="2"))
    assert mlflow.models["m"].by_alias == {"champion": "2"} and not mlflow.models["m"].tags


def test_a_change_at_the_same_time_is_found_afterwards(mlflow: FakeMlflow) -> None:
    own = registry(mlflow)
    own.scan()
    ask, count = mlflow.registered, 0

    def meddled(name: str) -> Registered | None:
        nonlocal count
        count += 1
        if count == 2:
            mlflow.set_alias("m", "champion", "3")
        return ask(name)

    mlflow.registered = meddled  # type: ignore[method-assign]
    with pytest.raises(RegistryError, match=r"somebody else has changed 'm' .* at the same time"):
        own.write_traffic("m", Traffic(weights={"2": 100.0}, stable="2"))


def test_a_model_that_is_gone(mlflow: FakeMlflow) -> None:
    own = registry(mlflow)
    own.scan()
    del mlflow.models["m"]
    with pytest.raises(RegistryError, match="not in MLflow any more; nothing was written"):
        own.write_traffic("m", Traffic(stable="2"))


def test_watching_goes_on_through_errors_and_hints(
    mlflow: FakeMlflow, caplog: pytest.LogCaptureFixture
) -> None:
    own = registry(mlflow)
    seen: list[dict[str, list[str]]] = []

    async def changed(snapshot: Snapshot) -> None:
        seen.append(served(snapshot))

    async def until(condition: Any) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.005)

    async def run() -> None:
        watch = asyncio.create_task(own.watch(changed))
        await until(lambda: seen)
        mlflow.down = "it cannot be reached"
        await until(lambda: own.trouble)
        asked = len(mlflow.asked)
        own.hint()
        await until(lambda: len(mlflow.asked) > asked + 1)
        mlflow.down = ""
        mlflow.set_alias("m", "champion", "2")
        own.hint()
        await until(lambda: len(seen) > 1)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)

    asyncio.run(run())
    assert seen == [{"m": ["1"]}, {"m": ["2"]}]
    assert caplog.text.count("serving goes on with what is loaded") == 1
    assert not own.trouble


def test_the_two_aliases_are_two(mlflow: FakeMlflow) -> None:
    for keys in ({"stable": "a", "canary": "a"}, {"stable": ""}):
        with pytest.raises(RegistryError, match="must be two aliases"):
            registry(mlflow, **keys)


def test_pauses_grow_and_vary(mlflow: FakeMlflow) -> None:
    watching = Watching(registry(mlflow), 2.0)
    assert all(1.8 <= watching.pause() <= 2.2 for _ in range(100))
    assert len({watching.pause() for _ in range(10)}) > 1
    watching._failures = 2
    assert 7.2 <= watching.pause() <= 8.8
    watching._failures = 1000
    assert 27 <= watching.pause() <= 33
