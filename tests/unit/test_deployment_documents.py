"""Deployments: their documents, splits that are asked for, what is read after a restart, trust."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.artifacts.base import Origin
from gateway.artifacts.origins import LocalOrigin
from gateway.deployments.settings import body_of
from gateway.errors import FetchError, InvalidModelSettings, InvalidRequest, RegistryError
from gateway.registries.deployment_documents import (
    KEPT,
    Deployment,
    Version,
    asked,
    check_name,
    new_traffic,
    of_text,
    to_text,
    without_old,
)
from gateway.registries.deployment_sources import pinned
from gateway.registries.deployments import DeploymentsRegistry
from gateway.registries.traffic import StickyKey, Traffic
from gateway.state import StateDir
from gateway.trust import Trust
from gateway.uris import public


def version(source: str = "s3://b/m") -> Version:
    return Version(uri=source, source=source, created=1.0)


def deployment(count: int = 2, **more: Any) -> Deployment:
    versions = {str(n): version() for n in range(1, count + 1)}
    return Deployment(name="m", versions=versions, traffic={"weights": {"1": 100}}, **more)


def in_mlflow(source: str, created: float) -> Origin:
    raise FetchError(f"{source} is not known")


VERSIONS = {"1": version(), "2": version(), "3": version()}
OLD = Traffic(weights={"1": 60.0, "2": 20.0}, stable="1", labels={"a": "2"})


@pytest.mark.parametrize(
    ("given", "new", "weights", "stable"),
    [
        (None, "3", {"3": 100}, "3"),
        (None, None, {"1": 60, "2": 20}, "1"),
        ({"weights": {"new": 20}}, "3", {"1": 60, "2": 20, "3": 20}, "1"),
        ({"weights": {"new": 100}}, "3", {"1": 0, "2": 0, "3": 100}, "1"),
        ({"weights": {"new": 1, "2": 3}}, "3", {"2": 3, "3": 1}, "2"),
        ({"weights": {"2": 100}}, None, {"2": 100}, "2"),
        ({"labels": {"b": "1"}}, None, {"1": 60, "2": 20}, "1"),
        ({"weights": {"1": 1, "2": 3}, "stable": "2"}, None, {"1": 1, "2": 3}, "2"),
    ],
)
def test_splits(given: Any, new: str | None, weights: dict[str, float], stable: str) -> None:
    traffic = new_traffic(given, OLD, VERSIONS, new)
    assert traffic.weights == pytest.approx(weights)
    assert traffic.stable == stable
    assert traffic.labels == ({"b": "1"} if given and "labels" in given else {"a": "2"})


@pytest.mark.parametrize(
    ("given", "new", "said"),
    [
        ({"weights": {"new": 10}}, None, "comes with a 'uri'"),
        ({"weights": {"new": 101}}, "3", "from 0 to 100"),
        ({"weights": {"7": 1}}, None, "no version '7'"),
        ({"weights": {"1": 0}}, None, "add up to 0"),
        ({"weight": {"1": 1}}, None, "unknown key 'weight'"),
        ({"stable": "9"}, None, "no version '9'"),
    ],
)
def test_bad_splits(given: Any, new: str | None, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        new_traffic(given, OLD, VERSIONS, new)


def test_sticky_keys_stay() -> None:
    old = Traffic(weights={"1": 1.0}, sticky=StickyKey(header="x"))
    assert new_traffic({"weights": {"2": 1}}, old, VERSIONS, None).sticky == old.sticky


def test_requests() -> None:
    assert asked({"name": "m", "uri": "s3://b"}).uri == "s3://b"
    for tree, said in (
        ({"uris": 1}, "unknown key 'uris'"),
        ({"uri": 1}, "str"),
        ({"flavor": "onnx"}, "give its 'uri'"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            asked(tree)
    for name in (None, "", ".hidden", "a/b", "a" * 201, "ä"):
        with pytest.raises(InvalidRequest):
            check_name(name)


def test_documents_say_the_same_when_read_again() -> None:
    one = deployment(settings={"max_batch_size": 8}, flavor="onnx")
    again = of_text(to_text(one), "it")
    assert to_text(again) == to_text(one)
    settings = again.model_settings()
    assert settings.max_batch_size == 8 and settings.options == {"flavor": "onnx"}
    assert settings.isolation == "code"
    with pytest.raises(InvalidModelSettings, match="max_batch_siz"):
        deployment(settings={"max_batch_siz": 8}).model_settings()
    with pytest.raises(InvalidModelSettings, match="say it once"):
        deployment(settings={"options": {"flavor": "x"}}, flavor="y").model_settings()


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"name: m\nversions: {}\n", b"a: [", b"name: m\nversions: {x: {}}\n"]
)
def test_broken_documents_are_left_out(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(RegistryError):
        of_text(content, "it")
    state = StateDir(tmp_path)
    state.write(content, "deployments", "bad.yaml")
    DeploymentsRegistry(state, in_mlflow).put(deployment())
    again = DeploymentsRegistry(state, in_mlflow)
    assert again.names() == ["m"]
    assert list(again.scan()["m"].versions) == ["1", "2"]


def test_old_versions_are_forgotten_unless_they_are_named() -> None:
    many = without_old(deployment(KEPT + 5))
    assert list(many.versions) == ["1", *(str(n) for n in range(6, KEPT + 6))]


def test_a_trial_leaves_nothing_behind(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    registry = DeploymentsRegistry(state, in_mlflow)
    registry.try_out(deployment(), frozenset({"2"}))
    assert list(registry.scan()["m"].versions) == ["1", "2"]
    assert DeploymentsRegistry(state, in_mlflow).names() == []  # killed now
    registry.end_trial("m")
    assert registry.scan() == {}


def test_a_split_is_written_to_the_document(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    registry = DeploymentsRegistry(state, in_mlflow)
    registry.put(deployment())
    registry.write_traffic("m", Traffic(weights={"2": 1.0}))
    assert DeploymentsRegistry(state, in_mlflow).scan()["m"].traffic.weights == {"2": 1.0}
    with pytest.raises(RegistryError):
        registry.write_traffic("other", Traffic())


def test_a_source_that_is_not_known_any_more_is_an_error_of_the_model(tmp_path: Path) -> None:
    registry = DeploymentsRegistry(StateDir(tmp_path), in_mlflow)
    registry.put(
        Deployment(name="m", versions={"1": version("mlflow+http://h/models:/m/1")}, traffic={})
    )
    model = registry.scan()["m"]
    assert not model.versions and "is not known" in model.error


def test_paths_are_for_callers_on_this_machine(tmp_path: Path) -> None:
    def resolve(uri: str) -> str:
        return f"mlflow+http://h/{uri}"

    assert pinned(f"{tmp_path}", resolve, local=True) == f"file://{tmp_path}"
    assert pinned(f"file://{tmp_path}", resolve, local=True) == f"file://{tmp_path}"
    assert pinned("models:/m/1", resolve, local=False) == "mlflow+http://h/models:/m/1"
    for uri in (str(tmp_path), f"file://{tmp_path}", "relative"):
        with pytest.raises(Exception, match="only callers on it may"):
            pinned(uri, resolve, local=False)
    for uri in ("", "models:/", "relative", f"{tmp_path}/nothing"):
        with pytest.raises(InvalidRequest):
            pinned(uri, resolve, local=True)


def nowhere(uri: str) -> str:
    raise AssertionError("nobody is asked")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("ftp://ann:secret@x/y?sig=secret", "'ftp://x/y[?]…'.*'ftp' is not known"),
        ("hf://x", "names no model repository"),
        ("s3:///secret?sig=secret" + "x" * 100, "names no bucket"),
        ("http://h/trusted/../secret-less/model.py", r"holds '\.' or '\.\.'"),
        ("http://ann:secret@h/a/%2e%2e/b", r"'http://h/a/%2e%2e/b' holds"),
        ("models:/../1", r"holds '\.' or '\.\.'"),
        ("runs:/abc/a/../../b", r"holds '\.' or '\.\.'"),
    ],
)
def test_uris_that_cannot_be_one_are_bad_requests(uri: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as error:
        pinned(uri, nowhere, local=True)
    assert "sig=" not in str(error.value) and "ann" not in str(error.value)


def test_uris_are_kept_as_they_are_asked_for() -> None:
    given = "http://ann:secret@H:80/m/plus.py?sig=secret"
    kept = pinned(given, nowhere, local=False)
    assert kept == "http://ann:secret@h/m/plus.py?sig=secret"


def test_secrets_stay_in_the_document(tmp_path: Path) -> None:
    source = "https://ann:secret@h/m/plus.py?sig=secret"
    registry = DeploymentsRegistry(StateDir(tmp_path), in_mlflow)
    registry.put(Deployment(name="m", versions={"1": version(source)}, traffic={}))
    (document,) = (tmp_path / "deployments").iterdir()
    assert source in document.read_text() and document.stat().st_mode & 0o777 == 0o600
    model = DeploymentsRegistry(StateDir(tmp_path), in_mlflow).scan()["m"]
    assert model.versions["1"].source == "https://h/m/plus.py?…"
    assert Trust(["https://h/m"]).covers(Path("/x"), model.versions["1"].source)


def test_what_may_be_shown() -> None:
    for uri, shown in (
        ("models:/m@champion", "models:/m@champion"),
        ("mlflow+http://h/models:/m/1", "mlflow+http://h/models:/m/1"),
        ("abfss://container@account.dfs.core.windows.net/m",) * 2,
        ("abfss://ann:pass@account/m", "abfss://account/m"),
        ("https://a:b@c@h:1/m?x#sha256=1", "https://h:1/m?…"),
        ("/a/path@b?c", "/a/path@b?c"),
    ):
        assert public(uri) == shown


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("https://h/a/plus%20one.py?x=1", "plus one.py"),
        ("https://h/weights.tar.gz", ""),
        ("s3://b/a/m.onnx", "m.onnx"),
        ("s3://b/a/m", ""),
        ("hf://o/m.onnx", ""),
        ("hf://o/r/m.pt2", "m.pt2"),
        ("mlflow+http://h/models:/m/1", ""),
        ("oci://h/r:1", ""),
    ],
)
def test_a_single_file_keeps_its_name(source: str, file: str, tmp_path: Path) -> None:
    def somewhere(source: str, created: float) -> Origin:
        return LocalOrigin(tmp_path)

    registry = DeploymentsRegistry(StateDir(tmp_path), somewhere)
    registry.put(Deployment(name="m", versions={"1": version(source)}, traffic={}))
    assert registry.scan()["m"].settings.version_files.get("1", "") == file


def test_deployments_may_be_stored_while_they_are_read(tmp_path: Path) -> None:
    registry = DeploymentsRegistry(StateDir(tmp_path), in_mlflow)
    registry.put(deployment())

    class Growing(dict[str, Deployment]):
        """A thread that stores one more at the worst moment."""

        def __iter__(self) -> Iterator[str]:
            for name in super().__iter__():
                yield name
                self["n"] = deployment()

    registry._documents = Growing(registry._documents)
    assert list(registry.scan()) == ["m"] and registry.names() == ["m"]


def test_trust_covers_paths_named_by_uri(tmp_path: Path) -> None:
    trust = Trust([str(tmp_path / "a")])
    assert trust.covers(Path("/fetched"), f"file://{tmp_path}/a/model")
    assert not trust.covers(tmp_path / "a" / "model", f"file://{tmp_path}/b/model")
    assert Trust([f"file://{tmp_path}/b"]).covers(Path("/x"), f"file://{tmp_path}/b")


@pytest.mark.parametrize(
    ("config", "body"),
    [
        ({}, {}),
        (
            {"settings.batching.max_delay_us": "500", "settings.max_batch_size": "8"},
            {"settings": {"batching": {"max_delay_us": 500}, "max_batch_size": 8}},
        ),
        ({"settings": {"on_demand": True}}, {"settings": {"on_demand": True}}),
        (
            {"traffic.new": "10", "stable": 1, "labels.blue": "2", "sticky.header": "x-user"},
            {
                "traffic": {
                    "weights": {"new": 10.0},
                    "stable": "1",
                    "labels": {"blue": "2"},
                    "sticky": {"header": "x-user"},
                }
            },
        ),
        ({"weights": '{"1": 90}', "message": "x"},
         {"traffic": {"weights": {"1": 90.0}}, "message": "x"}),
    ],
)  # fmt: skip
def test_config(config: Any, body: Any) -> None:
    assert body_of(config) == body


@pytest.mark.parametrize(
    "config",
    [
        {"replicas": "1"}, {"traffic.1": "much"}, {"weights": "[1]"}, {"settings": "x"},
        {"settings.a": "1", "settings.a.b": "2"}, {"settings.a": "["}, {"labels.": "1"},
        {"traffic.1": "1", "weights": {"1": 2}},
    ],
)  # fmt: skip
def test_bad_config(config: Any) -> None:
    with pytest.raises(Exception, match="config"):
        body_of(config)
