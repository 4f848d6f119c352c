"""Origins: from URIs to files, and what is said where there are none."""

from __future__ import annotations

import importlib
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from gateway.artifacts import oci_session, origins
from gateway.artifacts.addresses import Reach
from gateway.artifacts.base import RemoteFile
from gateway.artifacts.hf import Repo, below, repo_of
from gateway.artifacts.http_client import request
from gateway.artifacts.oci import Image, OciOrigin, image_of
from gateway.artifacts.origins import origin_of
from gateway.artifacts.stores import Bucket, StoreOrigin, bucket_of
from gateway.artifacts.stores_access import profile, s3_endpoint, s3_options
from gateway.config import Config
from gateway.errors import FetchError, RegistryError
from gateway.registries.sources import open_registry
from tests.support.file_server import FileServer
from tests.support.hubs import Hub

DIGEST = "a" * 64


@pytest.mark.parametrize(
    ("uri", "bucket", "prefix"),
    [
        ("s3://b/p/q/", Bucket("s3", "b"), "p/q"),
        ("s3a://b", Bucket("s3", "b"), ""),
        ("gs://b/p", Bucket("gs", "b"), "p"),
        ("az://c/p", Bucket("az", "c"), "p"),
        ("abfss://c@account.dfs.core.windows.net/p", Bucket("az", "c", "account"), "p"),
        ("wasbs://c@account.blob.core.windows.net", Bucket("az", "c", "account"), ""),
    ],
)
def test_buckets(uri: str, bucket: Bucket, prefix: str) -> None:
    assert bucket_of(uri) == (bucket, prefix)
    assert origin_of(uri).uri == uri.rstrip("/")


@pytest.mark.parametrize(
    ("uri", "repo"),
    [
        ("hf://o/r", Repo("o/r")),
        ("hf://models/o/r", Repo("o/r")),
        ("hf://o/r@v1.0/onnx/model.onnx", Repo("o/r", "v1.0", "onnx/model.onnx")),
        ("hf://o/r@refs%2Fpr%2F1/onnx/", Repo("o/r", "refs/pr/1", "onnx")),
    ],
)
def test_repositories(uri: str, repo: Repo) -> None:
    assert repo_of(uri) == repo


@pytest.mark.parametrize(
    ("uri", "image"),
    [
        ("oci://ghcr.io/o/m", Image("ghcr.io", "o/m")),
        ("oci://h:5000/o/m:v1", Image("h:5000", "o/m", "v1")),
        (f"oci://h/m:v1@sha256:{DIGEST}", Image("h", "m", "v1", f"sha256:{DIGEST}")),
        ("oci://localhost:5000/m", Image("localhost:5000", "m", plain=True)),
        ("oci+http://inside:5000/m", Image("inside:5000", "m", plain=True)),
    ],
)
def test_images(uri: str, image: Image) -> None:
    assert image_of(uri) == image


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3:///p", "names no bucket"),
        ("s3://key:secret@b/p", "do not belong into a URI"),
        ("s3://b/p?versionId=3", "names no bucket"),
        ("hf://gpt2", "write hf://OWNER/REPO"),
        ("hf://datasets/o/r", "names no model repository"),
        ("oci://m", "write oci://HOST/REPO:TAG"),
        ("oci://h/M:v1", "names no image"),
        ("ftp://h/m", "the scheme 'ftp' is not known"),
        ("file://host/m", "names the host 'host'"),
        ("http://", "is no URL of a file"),
    ],
)
def test_what_is_no_origin(uri: str, message: str) -> None:
    with pytest.raises(FetchError, match=message) as caught:
        origin_of(uri)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    if not uri.startswith(("ftp", "file")):
        with pytest.raises(RegistryError, match=message):
            open_registry(uri, Config())


@pytest.mark.parametrize(
    ("uri", "module", "extra"),
    [
        ("s3://b/m", "obstore", "s3"), ("gs://b/m", "obstore", "gs"),
        ("abfs://b@a/m", "obstore", "az"), ("hf://o/r", "huggingface_hub", "hf"),
        ("oci://h/r", "oras", "oci"),
    ],
)  # fmt: skip
def test_a_missing_extra_is_named(
    uri: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def missing(name: str) -> object:
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name)

    monkeypatch.setattr(origins.importlib, "import_module", missing)
    with pytest.raises(FetchError, match=rf"pip install 'sluicegate\[{extra}\]'"):
        origin_of(uri)
    with pytest.raises(RegistryError, match=rf"sluicegate\[{extra}\]"):
        open_registry(uri, Config())


def test_a_broken_extra_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        raise ModuleNotFoundError("No module named 'pyo3'", name="pyo3")

    monkeypatch.setattr(origins.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="pyo3"):
        origin_of("s3://b/m")


def test_equal_origins_have_equal_keys_and_no_others() -> None:
    files = (RemoteFile("1/a", 3, "x"), RemoteFile("1/b", 3, "y"))
    changed = (RemoteFile("1/a", 3, "x"), RemoteFile("1/b", 3, "z"))
    keys = {
        StoreOrigin(uri, folder, listing).key
        for uri in ("s3://b/m/1", "s3://b/m/2")
        for folder in "12"
        for listing in ((), files, changed)
    }
    assert len(keys) == 12
    assert StoreOrigin("s3://b/m/1", "1", files).key == StoreOrigin("s3://b/m/1", "1", files).key


def test_files_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "m" / "deep").mkdir(parents=True)
    (tmp_path / "m" / "model.onnx").write_bytes(b"0123456789")
    (tmp_path / "m" / "deep" / "x").write_bytes(b"")
    for uri in (str(tmp_path / "m"), f"file://{tmp_path}/m", f"file://localhost{tmp_path}/m"):
        origin = origin_of(uri, folder="7")
        found = {file.name: file for file in origin.files()}
        assert set(found) == {"7/deep/x", "7/model.onnx"}
        assert b"".join(origin.read(found["7/model.onnx"], 4)) == b"456789"
    (tmp_path / "m" / "model.onnx").write_bytes(b"another")
    with pytest.raises(FetchError, match="changed"):
        list(origin.read(found["7/model.onnx"], 0))
    with pytest.raises(FetchError, match="holds no files"):
        origin_of(str(tmp_path / "none")).files()


# --- the Hub and OCI registries


def test_a_repository_at_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_abc")
        hub.token = "hf_abc"
        hub.repo("o/r", "a" * 40, {"onnx/model.onnx": b"0123456789", "config.json": b"{}"})
        origin = origin_of("hf://o/r", folder="3")
        files = {file.name: file for file in origin.files()}
        model = files["3/onnx/model.onnx"]
        assert set(files) == {"3/config.json", "3/onnx/model.onnx"}
        assert model.sha256 == sha256(b"0123456789").hexdigest() and model.size == 10
        hub.repo("o/r", "b" * 40, {"onnx/model.onnx": b"new"})
        assert b"".join(origin.read(model, 4)) == b"456789"  # at its commit
        assert list(origin.read(model, 10)) == []
        (only,) = origin_of(f"hf://o/r@{'a' * 40}/onnx/model.onnx").files()
        assert only.name == "1/model.onnx" and only.identity == model.identity
        with pytest.raises(FetchError, match="is not there, or private"):
            origin_of("hf://o/none").files()
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(FetchError, match="401") as caught:
            list(origin.read(model, 0))
        assert caught.value.final and "hf_" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "prefix", "name"),
    [
        ("a/b", "", "a/b"),
        ("a/b", "a", "b"),
        ("ab/c", "a", ""),
        ("x/model.onnx", "x/model.onnx", "model.onnx"),
        ("x/model.onnx_data", "x/model.onnx", "model.onnx_data"),
        ("x/model.onnx.data", "x/model.onnx", "model.onnx.data"),
        ("x/model.onnx2", "x/model.onnx", ""),
        ("x/model.bin_data", "x/model.bin", ""),
    ],
)
def test_what_belongs_to_a_path(path: str, prefix: str, name: str) -> None:
    assert below(path, prefix) == name


def test_an_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with Hub() as hub:
        digest = hub.image("o/m", "v1", {"model.onnx": b"0123456789", "deep/x": b"1"})
        for end in (":v1", f"@{digest}"):
            origin = origin_of(f"oci://{hub.host}/o/m{end}")
            first, second = origin.files()
            assert (first.name, second.name) == ("1/model.onnx", "1/deep/x")
            assert first.sha256 == sha256(b"0123456789").hexdigest()
            assert b"".join(origin.read(first, 4)) == b"456789"
        hub.manifests["o/m", digest] = hub.manifests["o/m", "v1"] + b" "
        with pytest.raises(FetchError, match="not what its digest says"):
            origin_of(f"oci://{hub.host}/o/m@{digest}").files()
        with pytest.raises(FetchError, match="is not there"):
            origin_of(f"oci://{hub.host}/o/m:v2").files()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({}, "layer 0 of the manifest is malformed"),
        ({"digest": "md5:x", "size": 1}, "has the digest 'md5:x'"),
        ({"digest": f"sha256:{DIGEST}", "size": 1}, "no title and is no archive"),
        (
            {"digest": f"sha256:{DIGEST}", "size": 1, "mediaType": "x.layer.v1.tar+zstd"},
            "push it with gzip",
        ),
    ],
)
def test_layers_that_are_refused(layer: dict[str, object], message: str) -> None:
    from gateway.artifacts.oci import list_layers

    with pytest.raises(FetchError, match=message):
        list_layers(Image("h", "m"), {"layers": [layer]})


# --- credentials of S3


def test_profiles(tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = d\naws_secret_access_key = s\n"
        "[team]\naws_access_key_id = t\naws_secret_access_key = u%v\naws_session_token = w\n"
    )
    (tmp_path / ".aws" / "config").write_text(
        "[default]\nregion = eu-west-1\n[profile team]\nregion = eu-west-2\n"
        "endpoint_url = http://store:9000\n"
    )
    home = {"HOME": str(tmp_path)}
    assert s3_options(home) == {
        "region": "eu-west-1", "access_key_id": "d", "secret_access_key": "s",
    }  # fmt: skip
    team = {**home, "AWS_PROFILE": "team"}
    assert s3_options(team) == {
        "endpoint": "http://store:9000", "region": "eu-west-2", "access_key_id": "t",
        "secret_access_key": "u%v", "session_token": "w",
    }  # fmt: skip
    # What the environment says wins.
    assert s3_options({**team, "AWS_ACCESS_KEY_ID": "e", "AWS_REGION": "r"}) == {
        "endpoint": "http://store:9000"
    }
    assert s3_endpoint({**team, "AWS_ENDPOINT_URL": "http://other"}) == "http://other"
    assert s3_options({**home, "AWS_SKIP_SIGNATURE": "true"}) == {"region": "eu-west-1"}
    with pytest.raises(FetchError, match="AWS_PROFILE is 'none'"):
        profile({**home, "AWS_PROFILE": "none"})
    other = tmp_path / "elsewhere"
    other.write_text("[team]\naws_access_key_id = z\n")
    assert profile({**team, "AWS_SHARED_CREDENTIALS_FILE": str(other)})["aws_access_key_id"] == "z"
    other.write_text("nothing\n")
    with pytest.raises(FetchError, match="malformed"):
        profile({**team, "AWS_CONFIG_FILE": str(other)})


# --- where a registry leads


def test_no_registry_at_metadata_services() -> None:
    for host in ("169.254.169.254", "metadata.google.internal", "[fe80::1]:5000"):
        origin = origin_of(f"oci+http://{host}/m:1")
        with pytest.raises(FetchError, match="metadata service; nothing is fetched from there"):
            origin.files()


@pytest.mark.parametrize("what", ["redirect", "login"])
def test_a_registry_leads_outward_at_most(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry counts as public here, and what it leads to as this machine."""
    reach = {"127.0.0.1": Reach.PUBLIC, "localhost": Reach.LOOPBACK}
    blob = f"sha256:{sha256(b'x').hexdigest()}"
    file = RemoteFile("1/x", 1, blob, blob[7:], blob)
    for own in ("127.0.0.1", "localhost"):
        with FileServer({"/inner": b"x"}) as server:
            monkeypatch.setattr(
                oci_session, "resolve", lambda host, port: [("127.0.0.1", reach[host])]
            )
            inner = f"http://localhost:{server.port}/inner"
            path = f"/v2/m/blobs/{blob}"
            if what == "redirect":
                server.redirects[path] = inner
            else:
                server.statuses.append(401)
                server.challenge = f'Bearer realm="{inner}",service="x"'
                server.files[path] = b"x"
            origin = OciOrigin(f"oci://{own}:{server.port}/m")
            if own == "localhost":  # from this machine to this machine
                if what == "redirect":
                    assert b"".join(origin.read(file, 0)) == b"x"
                continue
            with pytest.raises(FetchError, match="sends us to 'localhost', which is private"):
                b"".join(origin.read(file, 0))
            assert not [each for each in server.asked if each.path.startswith("/inner")]


def test_credentials_do_not_go_along_with_redirects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("NETRC", "/nowhere")
    with FileServer({"/there": b"x"}) as server:
        server.redirects["/here"] = f"http://localhost:{server.port}/there"
        with request("GET", httpx.URL(server.url("/here")), {"Authorization": "Bearer t"}) as got:
            assert got.status_code == 200
        sent = [each.headers.get("authorization") for each in server.asked]
        assert sent == ["Bearer t", None]
