"""Files from web servers: what is asked for, what is followed, what is believed."""

from __future__ import annotations

import io
import logging
import os
import tarfile
from collections import deque
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from gateway.artifacts import addresses
from gateway.artifacts.cache import Cache
from gateway.artifacts.http import HttpOrigin
from gateway.config import CacheConfig
from gateway.errors import FetchError
from gateway.state import StateDir
from tests.support.file_server import FileServer

CONTENT = os.urandom(50_000)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({"/m/model.onnx": CONTENT}) as running:
        yield running


def cache(folder: Path) -> Cache:
    return Cache(StateDir(folder / "state"), CacheConfig(), pause=0.0)


def fetched(folder: Path, url: str, name: str = "model.onnx") -> bytes:
    lease = cache(folder).fetch(HttpOrigin(url), lambda here, total: None)
    try:
        return (lease.path / name).read_bytes()
    finally:
        lease.release()


def test_fetches_once(server: FileServer, tmp_path: Path) -> None:
    assert fetched(tmp_path, server.url("/m/model.onnx")) == CONTENT
    assert fetched(tmp_path, server.url("/m/model.onnx")) == CONTENT
    assert [each.method for each in server.asked] == ["HEAD", "GET", "HEAD"]
    assert {each.headers["accept-encoding"] for each in server.asked} == {"identity"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ranges": False},
        {"weak": True},
        {"etags": False, "modified": "Tue, 17 Nov 2026 12:00:00 GMT"},
        {"head": False},
        {"lengths": False},
        {"head": False, "lengths": False},
    ],
)
def test_a_cut_connection_is_gone_on_with(
    server: FileServer, tmp_path: Path, settings: dict[str, object]
) -> None:
    for name, value in settings.items():
        setattr(server, name, value)
    # The first GET asks for the size where HEAD is not answered.
    server.cuts = deque([10_000] if server.head else [1000, 10_000])
    assert fetched(tmp_path, server.url("/m/model.onnx")) == CONTENT
    starts = [each.start for each in server.asked if each.method == "GET"]
    assert starts[-1] > 0
    if server.ranges and server.lengths:
        assert server.sent <= len(CONTENT) + 2


def test_without_etag_and_date_it_starts_over(server: FileServer, tmp_path: Path) -> None:
    server.etags = False
    server.cuts = deque([10_000])
    assert fetched(tmp_path, server.url("/m/model.onnx")) == CONTENT
    assert [each.start for each in server.asked] == [0, 0, 0]


def test_what_changes_on_the_way_is_fetched_from_the_start(
    server: FileServer, tmp_path: Path
) -> None:
    server.held_at = 20_000
    server.hold.clear()
    server.cuts = deque([30_000])
    newer = os.urandom(40_000)

    def told(here: int, total: int) -> None:
        if here and not server.hold.is_set():
            server.files["/m/model.onnx"] = newer
            server.hold.set()

    lease = cache(tmp_path).fetch(HttpOrigin(server.url("/m/model.onnx")), told)
    assert (lease.path / "model.onnx").read_bytes() == newer
    lease.release()


def test_a_declared_digest_is_checked(server: FileServer, tmp_path: Path) -> None:
    good = sha256(CONTENT).hexdigest()
    assert fetched(tmp_path, server.url(f"/m/model.onnx#sha256={good.upper()}")) == CONTENT
    with pytest.raises(FetchError, match=f"has the sha256 {good}, but {'0' * 64} is declared"):
        fetched(tmp_path, server.url(f"/m/model.onnx#sha256={'0' * 64}"))


def test_equal_content_of_another_url_is_not_fetched(server: FileServer, tmp_path: Path) -> None:
    digest = sha256(CONTENT).hexdigest()
    server.files["/other/model.onnx"] = CONTENT
    fetched(tmp_path, server.url(f"/m/model.onnx#sha256={digest}"))
    sent = server.sent
    assert fetched(tmp_path, server.url(f"/other/model.onnx#sha256={digest}")) == CONTENT
    assert server.sent == sent


def test_while_the_server_is_down_what_is_here_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with FileServer({"/m/model.onnx": CONTENT}) as server:
        url = server.url("/m/model.onnx")
        assert fetched(tmp_path, url) == CONTENT
    with caplog.at_level(logging.WARNING):
        assert fetched(tmp_path, url) == CONTENT
    assert "using its files as they were fetched before" in caplog.text
    with pytest.raises(FetchError, match="cannot be read"):
        fetched(tmp_path, url.replace("model.onnx", "other.onnx"))


def test_passing_failures_are_tried_again_and_lasting_ones_are_not(
    server: FileServer, tmp_path: Path
) -> None:
    server.statuses = deque([200, 503, 429, 500])
    server.statuses.popleft()
    assert fetched(tmp_path, server.url("/m/model.onnx")) == CONTENT
    server.asked.clear()
    with pytest.raises(FetchError, match="was answered with 404"):
        fetched(tmp_path, server.url("/m/none.onnx"))
    assert [each.method for each in server.asked] == ["HEAD", "GET"]


def test_an_archive_is_unpacked(server: FileServer, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in ("digits/model.onnx", "digits/data/weights.bin"):
            info = tarfile.TarInfo(name)
            info.size = len(CONTENT)
            tar.addfile(info, io.BytesIO(CONTENT))
    server.files["/m/digits.tar.gz"] = packed.getvalue()
    server.encoding = "gzip"  # as some servers say of such a file
    assert fetched(tmp_path, server.url("/m/digits.tar.gz")) == CONTENT
    assert fetched(tmp_path, server.url("/m/digits.tar.gz"), "data/weights.bin") == CONTENT
    assert [each.method for each in server.asked] == ["HEAD", "GET", "HEAD"]
    blobs = list((tmp_path / "state/cache/blobs/sha256").rglob("*/*"))
    assert [blob.stat().st_nlink for blob in blobs] == [3], "once, and not the archive"


def test_compressed_answers_are_refused(server: FileServer, tmp_path: Path) -> None:
    server.encoding = "gzip"
    with pytest.raises(FetchError, match="Content-Encoding gzip, which was not asked for"):
        fetched(tmp_path, server.url("/m/model.onnx"))


# --- redirects and addresses


def test_redirects_are_followed_a_few_times(server: FileServer, tmp_path: Path) -> None:
    for number in range(5):
        server.redirects[f"/{number}.onnx"] = f"/{number + 1}.onnx"
    server.redirects["/5.onnx"] = "/m/model.onnx"
    assert fetched(tmp_path, server.url("/1.onnx"), "1.onnx") == CONTENT
    with pytest.raises(FetchError, match=r"0\.onnx redirects more than 5 times"):
        fetched(tmp_path, server.url("/0.onnx"), "0.onnx")


@pytest.mark.parametrize("aim", ["file:///etc/passwd", "ftp://host/x", ""])
def test_redirects_to_elsewhere_are_refused(server: FileServer, tmp_path: Path, aim: str) -> None:
    server.redirects["/x.onnx"] = aim
    with pytest.raises(FetchError, match=r"redirects to what is no http\(s\) URL"):
        fetched(tmp_path, server.url("/x.onnx"))


def answers(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]]) -> None:
    """Names resolve as told; addresses of the test network lead to the loopback interface."""

    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[object]:
        found = names.get(host, [host])
        return [(2, 1, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    "inner", ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "0.0.0.0", "100.64.0.1",
              "::1", "fd12::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"],
)  # fmt: skip
def test_a_public_host_cannot_send_us_inside(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    # The loopback interface stands for a public host here.
    server.redirects["/x.onnx"] = f"http://inner.example:{server.port}/m/model.onnx"
    answers(monkeypatch, {"inner.example": [inner]})
    real = addresses.reach_of
    monkeypatch.setattr(
        addresses, "reach_of",
        lambda address, host: addresses.Reach.PUBLIC if host == "127.0.0.1"
        else real(address, host),
    )  # fmt: skip
    with pytest.raises(FetchError, match=r"it redirects to 'inner\.example', which is private"):
        fetched(tmp_path, server.url("/x.onnx"))
    assert all(each.path == "/x.onnx" for each in server.asked)


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "fe80::1", "fd00:ec2::254", "100.100.100.200",
                "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"],
)  # fmt: skip
def test_metadata_services_are_refused_always(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with pytest.raises(FetchError, match="nothing is fetched from there"):
        HttpOrigin(f"http://{f'[{address}]' if ':' in address else address}/latest/model.onnx")
    # By name, and also where one address of several is such.
    answers(monkeypatch, {"harmless.example": ["127.0.0.1", address]})
    with pytest.raises(FetchError, match="nothing is fetched from there"):
        fetched(tmp_path, f"http://harmless.example:{server.port}/m/model.onnx")
    server.redirects["/x.onnx"] = f"http://harmless.example:{server.port}/m/model.onnx"
    with pytest.raises(FetchError, match="nothing is fetched from there"):
        fetched(tmp_path, server.url("/x.onnx"))
    assert {each.path for each in server.asked} == {"/x.onnx"}


@pytest.mark.parametrize("host", ["metadata.google.internal", "METADATA.google.internal."])
def test_metadata_names_are_refused_before_anything_is_asked(host: str) -> None:
    with pytest.raises(FetchError, match="nothing is fetched from there"):
        HttpOrigin(f"http://{host}/model.onnx")


def test_numbers_in_disguise_are_what_they_stand_for(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="nothing is fetched from there"):
        fetched(tmp_path, "http://2852039166/model.onnx")  # 169.254.169.254


def test_names_are_resolved_once_and_that_address_is_used(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[object]:
        asked.append(host)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", getaddrinfo)
    url = f"http://models.example:{server.port}/m/model.onnx"
    assert fetched(tmp_path, url) == CONTENT
    # A second look (by whoever connects) would be of the address alone.
    assert [host for host in asked if host == "models.example"] == ["models.example"] * 2
    assert {each.headers["host"] for each in server.asked} == {f"models.example:{server.port}"}


# --- credentials


def test_credentials_go_to_their_host_alone(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.credentials = "Bearer t0ken"
    url = server.url("/m/model.onnx")
    with pytest.raises(FetchError, match=r"401.*see docs/cache.md"):
        fetched(tmp_path, url)
    monkeypatch.setenv("FETCH_TOKEN_127_0_0_1", "t0ken")
    assert fetched(tmp_path, url) == CONTENT
    with FileServer({"/m/model.onnx": b"x"}) as other:
        other.redirects["/x.onnx"] = f"http://localhost:{other.port}/m/model.onnx"
        fetched(tmp_path, other.url("/x.onnx"), "x.onnx")
        ways = {each.path: each.headers.get("authorization") for each in other.asked}
        assert ways == {"/x.onnx": "Bearer t0ken", "/m/model.onnx": None}


def test_netrc_and_the_url_itself(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.credentials = "Basic bWU6czNjcmV0"  # me:s3cret
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert fetched(tmp_path / "a", server.url("/m/model.onnx")) == CONTENT
    monkeypatch.delenv("NETRC")
    url = f"http://me:s3cret@127.0.0.1:{server.port}/m/model.onnx?sig=s3cret"
    assert fetched(tmp_path / "b", url) == CONTENT
    server.credentials = "another"
    with pytest.raises(FetchError) as refused:
        fetched(tmp_path / "c", url)
    assert "s3cret" not in str(refused.value) and "me@" not in str(refused.value)
    assert "s3cret" not in repr(HttpOrigin(url)) + HttpOrigin(url).uri


def test_a_broken_netrc_does_not_show_what_is_in_it(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me passwort s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(FetchError, match="is no netrc file") as refused:
        fetched(tmp_path, server.url("/m/model.onnx"))
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://host/", "names no file"),
        ("https://host/model.onnx#sha256=12", "64 hexadecimal digits"),
        ("https://host/model.onnx#v1", "'#v1' is not understood"),
        ("https:///model.onnx", "no URL of a file"),
        ("ftp://host/model.onnx", "no URL of a file"),
        ("https://host:x/model.onnx", "no valid URL"),
    ],
)
def test_wrong_urls_are_refused_at_once(url: str, said: str) -> None:
    with pytest.raises(FetchError, match=said):
        HttpOrigin(url)
