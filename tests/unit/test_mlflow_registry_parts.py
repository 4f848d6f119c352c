"""Sources, versions, webhooks, artifacts: the parts of MLflow's registry by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.artifacts.base import RemoteFile
from gateway.artifacts.mlflow import MlflowOrigin, Rules
from gateway.artifacts.origins import LocalOrigin
from gateway.errors import ConfigError, FetchError, ModelLoadError, NotAllowed, RegistryError
from gateway.registries.mlflow.auth import tls
from gateway.registries.mlflow.client import RestClient
from gateway.registries.mlflow.documents import (
    Alias,
    ModelPage,
    Registered,
    RemoteEntry,
    Tag,
    Version,
    next_token,
)
from gateway.registries.mlflow.selection import choose, is_selected, parse_selector
from gateway.registries.mlflow.uri import Place, parse_source
from gateway.registries.mlflow.webhook import check, sign
from gateway.trust import Trust, local_sources

# --- sources


def test_sources_as_users_know_them() -> None:
    kept = {"MLFLOW_TRACKING_URI": "http://h:5000/ml/", "MLFLOW_REGISTRY_URI": ""}
    assert parse_source("mlflow+https://h/p/").place == Place("http", "https://h/p")
    assert parse_source("mlflow://", kept).name == "mlflow+http://h:5000/ml"
    one = parse_source("models:/m@champion", kept)
    assert (one.model, one.version) == ("m", "@champion")
    assert one.name == "mlflow+http://h:5000/ml/models:/m@champion"
    assert parse_source("models:/m/3", kept).version == "3"
    assert parse_source("models:/m/latest", kept).version == "latest"
    kept["MLFLOW_REGISTRY_URI"] = "sqlite:////tmp/m.db"
    assert parse_source("mlflow://", kept).place.file == Path("/tmp/m.db")


def test_passwords_are_not_shown() -> None:
    for password in ("pass", "pa/s@s:", "pa?ss", "pa/s?s"):
        url = f"postgresql://ann:{password}@h:5432/db?sslkey=secret"
        source = parse_source(f"mlflow+{url}")
        assert source.place.url == url
        assert source.name == "mlflow+postgresql://h:5432/db"
    for url, name in (
        ("mysql://h/db?password=p@ss", "mysql://h/db"),
        ("mysql://h:1/db?password=p@ss", "mysql://…"),
        ("sqlite:////a/b@c.db?x=1", "sqlite:////a/b@c.db"),
        ("http://h:1/p", "http://h:1/p"),
    ):
        assert parse_source(f"mlflow+{url}").name == f"mlflow+{name}"
    for wrong in ("mlflow+http://h?token=pass@", "mlflow://ann:pass@h", "mlflow+x://h?y=pass@"):
        with pytest.raises(RegistryError) as error:
            parse_source(wrong, {})
        assert "pass" not in str(error.value)
    with pytest.raises(RegistryError, match="set MLFLOW_TRACKING_USERNAME") as error:
        parse_source("mlflow+http://ann:pass@h")
    assert "pass@" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("mlflow://host:5000", "mlflow[+]http://host:5000"),
        ("mlflow://", "needs MLFLOW_REGISTRY_URI or MLFLOW_TRACKING_URI"),
        ("mlflow+ftp://h", "is no registry that can be read"),
        ("mlflow+http://", "must be http"),
        ("mlflow+http://h:port", "must be http"),
        ("mlflow+http://h?x=1", "must be http"),
        ("mlflow+sqlite://", "is no registry|must name a file"),
        ("mlflowx", "is no MLflow registry"),
        ("models:/m", "must be models:/NAME/VERSION"),
        ("models:/m/champion", "models:/m@champion"),
        ("models:/m/0", "is no version"),
        ("models:/m@*", "is no one alias"),
        ("models:/a/b/c", "must be models:/NAME/VERSION"),
    ],
)
def test_sources_that_are_none(source: str, problem: str) -> None:
    with pytest.raises(RegistryError, match=problem) as error:
        parse_source(source, {})
    assert "\n" not in str(error.value)


def test_trust_is_for_registries() -> None:
    trust = Trust(["mlflow+http://h:5000"])
    assert trust.covers(Path("/x"), "mlflow+http://h:5000/models:/m/3")
    assert not trust.covers(Path("/x"), "mlflow+http://h:50001/models:/m/3")
    assert not trust.covers(Path("/x"), "mlflow+http://h/models:/m/3")
    assert Trust(["mlflow+http://h/models:/m"]).covers(Path("/x"), "mlflow+http://h/models:/m/3")
    with pytest.raises(ModelLoadError, match=r"set trust\.code: \['mlflow\+http://h'\]"):
        Trust([]).check("it", Path("/x"), "mlflow+http://h/models:/m/3")
    with pytest.raises(ConfigError, match="names no registry"):
        Trust(["models:/m/3"])
    assert local_sources(["models:/m/3", "mlflow+http://h", "models"]) == ("models",)


# --- versions

MODEL = Registered(
    "m",
    tags=(Tag("team", "vision"), Tag("live", "")),
    aliases=(Alias("champion", "2"), Alias("next", "4"), Alias("gone", "9")),
)
VERSIONS = [Version("m", str(number)) for number in (10, 1, 2, 3)]
VERSIONS.append(Version("m", "4", status="PENDING_REGISTRATION"))


@pytest.mark.parametrize(
    ("selectors", "named", "usable", "unready"),
    [
        (["@champion"], [], ["2"], []),
        (["@champion", "@absent", "@gone"], [], ["2"], []),
        (["latest"], [], ["10"], []),
        (["latest:2"], ["1"], ["1", "3", "10"], []),
        (["latest:99"], [], ["1", "2", "3", "10"], []),
        (["3", "@next"], [], ["3"], ["4"]),
        (["@*"], [], ["2"], ["4"]),
    ],
)
def test_choice(
    selectors: list[str], named: list[str], usable: list[str], unready: list[str]
) -> None:
    choice = choose(MODEL, VERSIONS, [parse_selector(each) for each in selectors], named)
    assert [each.version for each in choice.usable] == usable
    assert [each.version for each in choice.unready] == unready
    assert choice.missing == ({"9": "gone"} if {"@gone", "@*"} & set(selectors) else {})


@pytest.mark.parametrize("text", ["", "@", "latest:", "latest:0", "champion", "03", "latest:x"])
def test_choices_that_are_none(text: str) -> None:
    with pytest.raises(RegistryError, match=r"mlflow\.versions: .* give @ALIAS, .* latest:N"):
        parse_selector(text)


def test_models_are_selected_by_pattern_and_tags() -> None:
    assert is_selected(MODEL, ["a", "m*"], [])
    assert not is_selected(MODEL, ["M"], [])
    assert is_selected(MODEL, ["*"], ["team=vision", "live"])
    assert not is_selected(MODEL, ["*"], ["team=text"])
    assert not is_selected(MODEL, ["*"], ["team", "owner"])
    prompt = Registered("p", tags=(Tag("mlflow.prompt.is_prompt", "true"),))
    assert not is_selected(prompt, ["*"], [])


@given(st.text(), st.text(), st.text())
def test_the_next_page_is_found_without_parsing(token: str, key: str, value: str) -> None:
    models = tuple(Registered(str(n), tags=(Tag(key, value),)) for n in range(3))
    for tags in (value, 'x"next_page_token": "no"', '"next_page_token": "'):
        more = (*models, Registered("last", tags=(Tag("next_page_token", tags),)))
        assert next_token(msgspec.json.encode(ModelPage(more, token))) == token


# --- webhooks


def test_a_genuine_webhook_and_others() -> None:
    signed = sign("secret", "id", "1000", b"body")
    good = {
        "x-mlflow-signature": f"v1,{signed}",
        "x-mlflow-timestamp": "1000",
        "x-mlflow-delivery-id": "id",
    }
    check(good, b"body", "secret", 1299.0)
    check({**good, "x-mlflow-signature": f"v2,x v1,{signed}"}, b"body", "secret", 701.0)
    refused = [
        (good, b"body", "", "set mlflow.webhook_secret"),
        (good, b"other", "secret", "signature is wrong"),
        (good, b"body", "other", "signature is wrong"),
        ({**good, "x-mlflow-timestamp": "1001"}, b"body", "secret", "signature is wrong"),
        ({**good, "x-mlflow-delivery-id": "x"}, b"body", "secret", "signature is wrong"),
        ({**good, "x-mlflow-signature": f"v2,{signed}"}, b"body", "secret", "signature is wrong"),
        ({**good, "x-mlflow-signature": "é"}, b"body", "secret", "signature is wrong"),
        ({}, b"body", "secret", "is not signed"),
    ]
    for headers, body, secret, problem in refused:
        with pytest.raises(NotAllowed, match=problem):
            check(headers, body, secret, 1000.0)
    for now in (1301.0, 699.0):
        with pytest.raises(NotAllowed, match="more than 5 minutes"):
            check(good, b"body", "secret", now)


def test_mlflow_signs_as_we_do() -> None:
    delivery = pytest.importorskip("mlflow.webhooks.delivery")
    theirs = delivery._generate_hmac_signature("s", "id", "12", '{"a": "é"}')
    assert theirs == "v1," + sign("s", "id", "12", '{"a": "é"}'.encode())


# --- artifacts


class FakeServer:
    """What an MLflow server says of artifacts."""

    def __init__(self, uri: str, entries: dict[str, list[RemoteEntry]] | None = None) -> None:
        self.uris = {"m/3": uri, "m-" + "a" * 32: "mlflow-artifacts:/0/a", "run": "s3://b/run"}
        self.tree = entries or {}

    def artifact_uri(self, name: str, version: str) -> str:
        return self.uris[f"{name}/{version}"]

    def logged_model_uri(self, model_id: str) -> str:
        return self.uris[model_id]

    def run_uri(self, run_id: str) -> str:
        return self.uris[run_id]

    def entries(self, path: str) -> Sequence[RemoteEntry]:
        return self.tree.get(path, [])

    def content(self, path: str, start: int) -> Iterator[bytes]:
        yield path.encode()[start:]

    def serves(self, host: str) -> bool:
        return host == "h:5000"


def origin(server: FakeServer, *local: Path, source: str = "x", created: str = "1") -> MlflowOrigin:
    return MlflowOrigin("mlflow+http://h:5000", source, created, "m", "3", server, Rules(local))


@pytest.mark.parametrize(
    "uri",
    [
        "models:/m-" + "a" * 32,
        "mlflow-artifacts:/0/a",
        "mlflow-artifacts://h:5000/0/a",
        "http://h:5000/api/2.0/mlflow-artifacts/artifacts/0/a",
    ],
)
def test_files_behind_the_server(uri: str) -> None:
    entries = {
        "0/a": [RemoteEntry("MLmodel", file_size="7"), RemoteEntry("data", is_dir=True)],
        "0/a/data": [RemoteEntry("w.bin", file_size=9)],
    }
    where = origin(FakeServer(uri, entries))
    files = {file.name: file for file in where.files()}
    assert {name: file.size for name, file in files.items()} == {"1/MLmodel": 7, "1/data/w.bin": 9}
    assert all(file.identity for file in files.values())
    assert b"".join(where.read(files["1/data/w.bin"], 2)) == b"a/data/w.bin"


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("/etc/passwd", "set mlflow.local_artifacts: "),
        ("file:///etc", "set mlflow.local_artifacts: "),
        ("file:///proc/self", "set mlflow.local_artifacts: "),
        ("file://other/x", "is no absolute path"),
        ("mlruns/0/x", "is no absolute path"),
        ("//169.254.169.254/x", "is no absolute path"),
        ("http://169.254.169.254/api/2.0/mlflow-artifacts/artifacts/x", "another server"),
        ("http://h:5000@evil/api/2.0/mlflow-artifacts/artifacts/x", "another server"),
        ("http://h:5000/latest/meta-data", "is no artifact of MLflow's"),
        ("mlflow-artifacts://evil:80/x", "another server"),
        ("mlflow-artifacts:/../../x", "is no path of an artifact"),
        ("mlflow-artifacts:/a/%2e%2e/x", "is no path of an artifact"),
        ("oci://169.254.169.254/x", "cannot be read"),
        ("dbfs:/x", "cannot be read"),
        ("http://[x", "is no URI|another server"),
        ("models:/m/3", "leads from one to the next"),
    ],
)
def test_a_registrys_word_does_not_send_us_anywhere(uri: str, problem: str) -> None:
    with pytest.raises(FetchError, match=problem) as error:
        origin(FakeServer(uri)).files()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../x", "/../x", "a//b", "a\\b", "a\nb", "."])
def test_names_that_lead_out_are_refused(name: str) -> None:
    where = origin(FakeServer("mlflow-artifacts:/0", {"0": [RemoteEntry(name)]}))
    with pytest.raises(FetchError, match="is no path of an artifact"):
        where.files()


def test_a_folder_that_never_ends() -> None:
    class Endless(FakeServer):
        def entries(self, path: str) -> Sequence[RemoteEntry]:
            return [RemoteEntry("again", is_dir=True)]

    with pytest.raises(FetchError, match="files"):
        origin(Endless("mlflow-artifacts:/0")).files()


def test_local_files_where_they_are_allowed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "MLmodel").write_text(folder.name)
    where = origin(FakeServer(inside.as_uri()), inside)
    (file,) = where.files()
    assert b"".join(where.read(file, 0)) == b"in"
    with pytest.raises(FetchError, match="local_artifacts"):
        origin(FakeServer(str(outside)), inside).files()
    # A link in it leads nowhere else, whenever it was made.
    (inside / "MLmodel").unlink()
    (inside / "MLmodel").symlink_to(outside / "MLmodel")
    with pytest.raises(FetchError, match="local_artifacts"):
        where.files()
    with pytest.raises(FetchError, match="local_artifacts"):
        list(where.read(file, 0))


def test_runs_and_stores_are_found_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def origin_of(uri: str, *, folder: str) -> object:
        asked.append(uri)
        return LocalOrigin(Path("/nowhere-at-all"), folder)

    monkeypatch.setattr("gateway.artifacts.mlflow.origin_of", origin_of)
    with pytest.raises(FetchError, match="holds no files"):
        origin(FakeServer("runs:/run/model")).files()
    assert asked == ["s3://b/run/model"]


def test_versions_of_one_logged_model_have_one_origin() -> None:
    server = FakeServer("x")
    logged = "models:/m-" + "a" * 32
    one, two = (origin(server, source=logged, created=each) for each in "12")
    assert one == two and hash(one) == hash(two) and one.uri == "mlflow+http://h:5000/models:/m/3"
    one, two = (origin(server, source="s3://b/x", created=each) for each in "12")
    assert one != two and one.key != two.key
    assert isinstance(RemoteFile("1/x", 1).identity, str)


# --- the environment


def test_credentials_are_those_of_mlflow() -> None:
    place = Place("http", "http://127.0.0.1:1")
    user = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "pass"}
    with pytest.raises(RegistryError, match="cannot be reached") as error:
        RestClient(place, user).pages()
    assert "pass" not in str(error.value)
    with pytest.raises(RegistryError, match="both set; unset one"):
        tls({"MLFLOW_TRACKING_INSECURE_TLS": "true", "MLFLOW_TRACKING_SERVER_CERT_PATH": "/x"})
    with pytest.raises(RegistryError, match="MLFLOW_TRACKING_CLIENT_CERT_PATH '/x' cannot be used"):
        tls({"MLFLOW_TRACKING_CLIENT_CERT_PATH": "/x"})
    assert tls({}) is True
