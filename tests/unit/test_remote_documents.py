"""``remote`` in ``model.yaml``, and ``remote.yaml``: what they mean and what is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import Mock

import pytest

from gateway.config import BatchingConfig, RegistryConfig
from gateway.errors import InvalidModelSettings, ModelLoadError
from gateway.lifecycle.loader import Loader
from gateway.model_settings import ModelSettings, RemoteSettings
from gateway.registries.base import AspiredVersion
from gateway.registries.directory import DirectoryRegistry
from gateway.registries.model_documents import read_settings
from gateway.remote_document import location
from gateway.trust import Trust
from runtimes.discovery import choose, load_runtimes
from runtimes.interface import Artifact
from runtimes.remote.oip import OipRuntime
from runtimes.remote.replicas import Replicas
from runtimes.remote.settings import remote_of
from tests.support.onnx_models import write_adding

URL = "grpc://host:8001"


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


def settings_of(tmp_path: Path, text: str) -> ModelSettings:
    return read_settings(write(tmp_path / "m", "model.yaml", text), "m")


# --- urls


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("grpc://host:8001", "grpc://host:8001"),
        ("grpcs://host.example:443/", "grpcs://host.example:443"),
        ("grpc://[::1]:8001", "grpc://[::1]:8001"),
        ("http://host", "http://host:80"),
        ("https://host/models/here/", "https://host:443/models/here"),
    ],
)
def test_urls(url: str, shown: str) -> None:
    assert str(location(url)) == shown


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("host:8001", "does not begin with one of grpc://, grpcs://, http://, https://"),
        ("ftp://host:8001", "does not begin with"),
        ("grpc://host", "names no port"),
        ("grpc://:8001", "names no host"),
        ("grpc://host:99999", "is not a URL"),
        ("grpc://host:8001/path", "goes on behind the port"),
        ("http://host:1?x=1", "goes on behind the port"),
        ("http://me:secret@host:1", "headers"),
        ("http://ho st:1", "names no host"),
        ("", "does not begin with"),
    ],
)
def test_urls_that_cannot_be_called(url: str, text: str) -> None:
    with pytest.raises(InvalidModelSettings, match=text) as caught:
        location(url)
    assert "secret" not in str(caught.value)


# --- model.yaml


def test_url_is_short_for_urls(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, f"runtime: oip\nremote: {{url: '{URL}', model: other}}")
    assert settings.remote == RemoteSettings(urls=(URL,), model="other")


@pytest.mark.parametrize(
    ("remote", "text"),
    [
        (f"{{url: '{URL}', retrys: 3}}", "unknown key 'remote.retrys'; did you mean .*retries"),
        (f"{{url: '{URL}', urls: ['{URL}']}}", "both there"),
        ("{urls: []}", "'urls' is empty"),
        ("{model: x}", "urls"),
        (f"{{urls: ['{URL}', '{URL}']}}", "twice"),
        (f"{{urls: ['{URL}', 'http://host:1']}}", "mixes grpc and http"),
        ("{url: 'ftp://host:1'}", "does not begin"),
        (f"{{url: '{URL}', ca_file: ca.pem}}", "'ca_file' is for TLS"),
        (f"{{url: '{URL}', headers: {{X-Team: blue}}}}", "lower case"),
        (f"{{url: '{URL}', headers: {{'a b': blue}}}}", "cannot be sent"),
        (f"{{url: '{URL}', headers: {{grpc-timeout: 1S}}}}", "cannot be sent"),
        (f"{{url: '{URL}', headers: {{content-length: '1'}}}}", "set by the gateway"),
        (f"{{url: '{URL}', headers: {{x: \"a\\nb\"}}}}", "not printable"),
        (f"{{url: '{URL}', forward_headers: [Cookie]}}", "lower case"),
        (f"{{url: '{URL}', batching: both}}", "batching"),
        (f"{{url: '{URL}', retry_share: 2}}", "retry_share"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, remote: str, text: str) -> None:
    with pytest.raises(InvalidModelSettings, match=text):
        settings_of(tmp_path, f"runtime: oip\nremote: {remote}")


def test_remote_is_for_runtimes_that_reach_out(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelSettings, match="oip and triton, not for 'onnx'"):
        settings_of(tmp_path, f"runtime: onnx\nremote: {{url: '{URL}'}}")


# --- which version is where


def artifact(root: Path, version: str, settings: ModelSettings | None = None) -> Artifact:
    return Artifact("m", version, root / "m" / version, settings or ModelSettings())


REMOTE = ModelSettings(runtime="triton", remote=RemoteSettings(urls=(URL,)))


def test_a_version_without_files_is_where_the_model_is(tmp_path: Path) -> None:
    found = remote_of(artifact(tmp_path, "1", REMOTE))
    assert found is not None
    assert (found[0], found[1].urls) == ("triton", (URL,))
    (tmp_path / "m" / "2").mkdir(parents=True)
    assert remote_of(artifact(tmp_path, "2", REMOTE)) is not None


def test_a_version_with_files_of_its_own_is_here(tmp_path: Path) -> None:
    write_adding(tmp_path, "m", 1.0)
    here = artifact(tmp_path, "1", REMOTE)
    assert remote_of(here) is None
    assert choose(here, load_runtimes()).name == "onnx"
    assert choose(artifact(tmp_path, "2", REMOTE), load_runtimes()).name == "triton"


def test_remote_yaml_wins(tmp_path: Path) -> None:
    write(tmp_path / "m" / "2", "remote.yaml", "url: http://other:80\nbatching: gateway")
    version = artifact(tmp_path, "2", REMOTE)
    found = remote_of(version)
    assert found is not None
    assert found[0] == "oip", "which is what it says by not saying anything else"
    assert found[1].urls == ("http://other:80",)
    assert OipRuntime().probe(version)
    assert choose(version, load_runtimes()).name == "oip"


def test_remote_yaml_beside_a_model_without_settings(tmp_path: Path) -> None:
    write_adding(tmp_path, "m", 1.0)
    write(tmp_path / "m" / "2", "remote.yaml", f"runtime: triton\nurl: {URL}\nmodel: there")
    runtimes = load_runtimes()
    assert choose(artifact(tmp_path, "1"), runtimes).name == "onnx"
    assert choose(artifact(tmp_path, "2"), runtimes).name == "triton"
    assert not OipRuntime().probe(artifact(tmp_path, "2"))


def test_ca_file_is_relative_to_its_document(tmp_path: Path) -> None:
    text = "url: grpcs://host:1\nca_file: ca.pem"
    write(tmp_path / "m" / "2", "remote.yaml", text)
    found = remote_of(artifact(tmp_path, "2"))
    assert found is not None
    assert found[1].ca_file == str(tmp_path / "m" / "2" / "ca.pem")
    settings = settings_of(
        tmp_path, "runtime: oip\nremote: {url: 'grpcs://host:1', ca_file: c.pem}"
    )
    found = remote_of(artifact(tmp_path, "1", settings))
    assert found is not None
    assert found[1].ca_file == str(tmp_path / "m" / "c.pem")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("url: grpc://host:1\ntimeout: 5", "m/2/remote.yaml: unknown key 'timeout'; did you mean"),
        ("url: grpc://host:1\nruntime: onnx", "m/2/remote.yaml: .*onnx"),
        ("- grpc://host:1", "must hold keys and values"),
        ("url: [", "is not YAML"),
        ("", "m/2/remote.yaml"),
    ],
)
def test_a_remote_yaml_that_makes_no_sense(tmp_path: Path, text: str, expected: str) -> None:
    write(tmp_path / "m" / "2", "remote.yaml", text)
    version = artifact(tmp_path, "2")
    with pytest.raises(InvalidModelSettings, match=expected) as caught:
        remote_of(version)
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(InvalidModelSettings, match=expected):
        choose(version, load_runtimes())


def test_a_runtime_without_a_server_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"write into .*: remote"):
        OipRuntime().load(artifact(tmp_path, "1", ModelSettings(runtime="oip")))


def test_without_a_gateway_nothing_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="gateway"):
        OipRuntime().load(artifact(tmp_path, "1", ModelSettings(remote=REMOTE.remote)))


# --- the directory


class Registry:
    """A directory registry over `root`, and its clock."""

    def __init__(self, root: Path) -> None:
        self.now = 0.0
        self.registry = DirectoryRegistry(root, RegistryConfig(), now=lambda: self.now)

    def scan(self) -> dict[str, object]:
        """Model → version → fingerprint, once everything has settled."""
        for _ in range(3):
            snapshot = self.registry.scan()
            self.now += 2.0
        return {
            name: {v: each.fingerprint for v, each in model.versions.items()} or model.error
            for name, model in snapshot.items()
        }


def test_a_model_of_model_yaml_alone_has_version_1(tmp_path: Path) -> None:
    write(tmp_path / "m", "model.yaml", f"runtime: oip\nremote: {{url: '{URL}'}}")
    registry = Registry(tmp_path)
    first = registry.scan()
    assert list(first) == ["m"]
    assert isinstance(first["m"], dict)
    assert list(first["m"]) == ["1"]
    assert registry.scan() == first, "it stays"
    write(tmp_path / "m", "model.yaml", "runtime: oip\nremote: {url: 'grpc://elsewhere:1'}")
    second = registry.scan()
    assert isinstance(second["m"], dict)
    assert list(second["m"]) == ["1"]
    assert second != first, "another server means loading it anew"


def test_a_broken_model_yaml_keeps_the_version(tmp_path: Path) -> None:
    write(tmp_path / "m", "model.yaml", f"runtime: oip\nremote: {{url: '{URL}'}}")
    registry = Registry(tmp_path)
    first = registry.scan()
    write(tmp_path / "m", "model.yaml", "remote: [")
    assert registry.scan() == first
    assert "not YAML" in registry.registry.scan()["m"].error


def test_a_model_that_is_nowhere_any_more(tmp_path: Path) -> None:
    write(tmp_path / "m", "model.yaml", f"runtime: oip\nremote: {{url: '{URL}'}}")
    registry = Registry(tmp_path)
    registry.scan()
    write(tmp_path / "m", "model.yaml", "max_batch_size: 4")
    assert registry.scan() == {"m": "it has no version folders such as 1/"}


def test_a_changed_remote_yaml_is_seen(tmp_path: Path) -> None:
    write_adding(tmp_path, "m", 1.0)
    write(tmp_path / "m", "model.yaml", "versions: {all: true}")
    write(tmp_path / "m" / "2", "remote.yaml", f"url: {URL}")
    registry = Registry(tmp_path)
    first = registry.scan()["m"]
    assert isinstance(first, dict)
    assert list(first) == ["1", "2"]
    write(tmp_path / "m" / "2", "remote.yaml", f"url: {URL}\nretries: 0")
    second = registry.scan()["m"]
    assert isinstance(second, dict)
    assert second["1"] == first["1"]
    assert second["2"] != first["2"]


def test_one_models_folder_as_the_source(tmp_path: Path) -> None:
    write(tmp_path / "m", "model.yaml", f"runtime: oip\nremote: {{url: '{URL}'}}")
    found = Registry(tmp_path / "m").scan()
    assert isinstance(found["m"], dict)
    assert list(found["m"]) == ["1"]


# --- from afar


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254", "grpc://[fe80::1]:1", "http://metadata.google.internal"]
)
def test_metadata_services_are_never_called(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidModelSettings, match="metadata service; no model is called there"):
        settings_of(tmp_path, f"runtime: oip\nremote: {{url: '{url}'}}")


@pytest.mark.parametrize("document", [True, False])
def test_who_put_it_there_must_be_trusted(document: bool, tmp_path: Path) -> None:
    """Fetched from somewhere, it would let anybody send requests from here."""
    folder = tmp_path / "m" / "1"
    settings = ModelSettings()
    if document:
        write(folder, "remote.yaml", f"url: {URL}\nheaders: {{x: y}}")
    else:
        settings = ModelSettings(runtime="oip", remote=RemoteSettings(urls=[URL]))
    fetched = AspiredVersion("1", folder, 0, "s3://b/m/1")
    said = {
        (): r"may not name, as it is not trusted; .* trust\.code: \['s3://b/m/1'\]",
        ("s3://b/other",): "not trusted",
        ("s3://b",): "need a gateway to run in",  # it would be called
    }
    for sources, why in said.items():
        loader = Loader(load_runtimes(), BatchingConfig(), Mock(), Trust(sources))
        with pytest.raises(ModelLoadError, match=why):
            loader.load("m", fetched, settings, lambda _: None)
    here = AspiredVersion("1", folder, 0)
    with pytest.raises(ModelLoadError, match="need a gateway to run in"):
        Loader(load_runtimes(), BatchingConfig(), Mock(), Trust(())).load(
            "m", here, settings, lambda _: None
        )


def test_names_do_not_lead_to_metadata_services_either(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async def found(*_: object, **__: object) -> list[object]:
            return [(0, 0, 0, "", (address, 80)) for address in ("10.1.2.3", "169.254.169.254")]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found, raising=False)
        replicas = Replicas("m", Mock(asks=False), [location("http://harmless.example")])
        await replicas.look_up()
        assert not list(replicas.pool.endpoints)
        assert "'harmless.example' is a link-local address" in replicas.trouble

    asyncio.run(run())
