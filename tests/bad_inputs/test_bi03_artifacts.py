"""BI-02d, BI-03a: archives and addresses that lead elsewhere, for a gateway that serves on."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.artifacts import archives
from gateway.artifacts.archives import unpack
from gateway.artifacts.cache import Cache
from gateway.artifacts.http import HttpOrigin
from gateway.config import CacheConfig
from gateway.errors import FetchError
from gateway.state import StateDir
from tests.support.fake_origin import FakeOrigin, FakeStore
from tests.support.file_server import FileServer

MIB = 1024 * 1024

OUTSIDE = [
    "../out", "a/../../out", "/tmp/out", "..", "a/..", "a//b", "a/./b", "..\\out", "a\nb", "\udcff",
]  # fmt: skip


def tar(*members: tuple[str, bytes, bytes, str], mode: str = "w:gz") -> bytes:
    """An archive of (name, kind, content, aim)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as out:  # type: ignore[call-overload]
        for name, kind, content, aim in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, aim, len(content)
            out.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def plain_tar(**contents: bytes) -> bytes:
    return tar(*((name, tarfile.REGTYPE, each, "") for name, each in contents.items()))


def zipped(*names: str, content: bytes = b"x", mode: int = 0) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for name in names:
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            out.writestr(info, content)
    return packed.getvalue()


@pytest.fixture
def refused(tmp_path: Path) -> Iterator[Callable[[bytes, str, str], None]]:
    """Checks that an archive is refused so, alone, and that the next one is not."""
    beside = tmp_path / "beside"
    beside.write_bytes(b"mine")
    known: list[str] = []

    def check(packed: bytes, name: str, said: str) -> None:
        origin = FakeStore({f"1/{name}": packed}, archives=frozenset({f"1/{name}"}))
        cache = Cache(StateDir(tmp_path / "state"), CacheConfig(max_mb=8), pause=0.0)
        with pytest.raises(FetchError, match=said) as error:
            cache.fetch(FakeOrigin(origin), lambda here, total: None)
        assert str(tmp_path) not in str(error.value) and str(error.value).isprintable()
        trees = tmp_path / "state/cache/trees"
        assert [tree.name for tree in trees.iterdir()] == known
        assert not list((tmp_path / "state/cache/building").iterdir())
        good = FakeStore({"1/m.tgz": plain_tar(model=b"ok")}, archives=frozenset({"1/m.tgz"}))
        lease = cache.fetch(FakeOrigin(good, "fake://good"), lambda here, total: None)
        assert [(f.name, f.read_bytes()) for f in lease.path.iterdir()] == [("model", b"ok")]
        lease.release()
        known[:] = [tree.name for tree in trees.iterdir()]
        assert len(known) == 1
        assert sorted(each.name for each in tmp_path.iterdir()) == ["beside", "state"]
        assert beside.read_bytes() == b"mine"

    return check


@pytest.mark.parametrize("name", OUTSIDE)
def test_bi02d_names_that_lead_out_of_a_tar(
    refused: Callable[[bytes, str, str], None], name: str
) -> None:
    refused(tar((name, tarfile.REGTYPE, b"x", "")), "m.tar.gz", "the file name|cannot be unpacked")


@pytest.mark.parametrize("name", [name for name in OUTSIDE if name != "\udcff"])
def test_bi02d_names_that_lead_out_of_a_zip(
    refused: Callable[[bytes, str, str], None], name: str
) -> None:
    refused(zipped(name), "m.zip", "the file name")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("aim", ["/etc/passwd", "../../beside", "..", "nothing", "link", ""])
def test_bi02d_links_that_lead_out(
    refused: Callable[[bytes, str, str], None], kind: bytes, aim: str
) -> None:
    packed = tar(("link", kind, b"", aim), ("model", tarfile.REGTYPE, b"x", ""))
    refused(packed, "m.tar.gz", "a link in it leads out of it|leads to no file in it")


def test_bi02d_files_below_links(refused: Callable[[bytes, str, str], None]) -> None:
    packed = tar(("d", tarfile.SYMTYPE, b"", "/tmp"), ("d/out", tarfile.REGTYPE, b"x", ""))
    refused(packed, "m.tar.gz", "leads out of it|a file and a folder")
    refused(zipped("d", content=b"../../beside", mode=0o120777), "m.zip", "leads out of it")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_bi02d_devices(refused: Callable[[bytes, str, str], None], kind: bytes) -> None:
    refused(tar(("null", kind, b"", "")), "m.tar.gz", "is a device, pipe or the like")


def test_bi02d_bombs(
    refused: Callable[[bytes, str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = bytes(9 * MIB)
    refused(plain_tar(model=zeros), "m.tar.gz", r"unpacks to more than 8 MiB \(cache.max_mb\)")
    refused(zipped("model", content=zeros), "m.zip", "unpacks to more than 8 MiB")
    # A long name is read at once: it would be in memory.
    refused(tar(("x" * 5 * MIB, tarfile.REGTYPE, b"", "")), "m.tar.gz", "a header is too large")
    # Many files in all, and many bytes that are no file's.
    monkeypatch.setattr(archives, "MOST_FILES", 10)
    many = {f"f{number}": b"" for number in range(11)}
    refused(plain_tar(**many), "m.tar.gz", "more than 10 files")
    refused(zipped(*many), "m.zip", "more than 10 files")
    lying = bytearray(zipped("model"))
    at = lying.rfind(b"PK\x05\x06")
    struct.pack_into("<HHL", lying, at + 8, 60_000, 60_000, 0x7FFFFFFF)
    refused(bytes(lying), "m.zip", "its directory is too large")


@pytest.mark.parametrize(
    ("packed", "name"),
    [
        (b"", "m.tar.gz"),
        (b"garbage", "m.tar.gz"),
        (b"garbage", "m.zip"),
        (b"", "m.zip"),
        (b"BZh9garbage", "m.tar.bz2"),
        (b"\xfd7zXZ\0garbage", "m.tar.xz"),
        (b"garbage" * 1000, "m.tar"),
        (plain_tar(model=b"x" * 100_000)[:60], "m.tgz"),
        (zipped("model", "b")[:-10], "m.zip"),
        (b"\x1f\x8b\x08\x00" + zlib.compress(b"x"), "m.tar.gz"),
        (tar(("only/", tarfile.DIRTYPE, b"", "")), "m.tar.gz"),
    ],
    ids=(
        "empty tar",
        "no tar",
        "no zip",
        "empty zip",
        "no bz2",
        "no xz",
        "no plain tar",
        "half a tar",
        "half a zip",
        "no gzip",
        "a folder",
    ),
)
def test_bi02d_broken_archives(
    refused: Callable[[bytes, str, str], None], packed: bytes, name: str
) -> None:
    refused(packed, name, "cannot be unpacked|no zip file|holds no files")


def test_bi02d_good_links_and_one_folder_around_everything_are_fine(tmp_path: Path) -> None:
    packed = tar(
        ("./m/model.onnx", tarfile.REGTYPE, b"x", ""),
        ("m/sym", tarfile.SYMTYPE, b"", "data/../model.onnx"),
        ("m/data/hard", tarfile.LNKTYPE, b"", "./m/model.onnx"),
        mode="w:xz",
    )
    (tmp_path / "in").write_bytes(packed)
    (tmp_path / "out").mkdir()
    names = unpack(tmp_path / "in", "m.tar.xz", "m", tmp_path / "out", MIB)
    assert sorted(names) == ["data/hard", "model.onnx", "sym"]
    assert all((tmp_path / "out" / name).read_bytes() == b"x" for name in names)
    assert not any((tmp_path / "out" / name).is_symlink() for name in names)


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/model.onnx",
        "http://[fd00:ec2::254]/model.onnx",
        "http://metadata.google.internal/model.onnx",
        "http://[::ffff:169.254.169.254]/model.onnx",
        "http://2852039166/model.onnx",
        "http://0xa9fea9fe/model.onnx",
    ],
)
def test_bi03a_metadata_services(tmp_path: Path, url: str) -> None:
    cache = Cache(StateDir(tmp_path), CacheConfig(), pause=0.0)
    with pytest.raises(FetchError, match="nothing is fetched from there"):
        cache.fetch(HttpOrigin(url), lambda here, total: None)


@pytest.mark.parametrize(
    "aim", ["http://169.254.169.254/x.onnx", "file:///etc/passwd", "http://[fe80::1]/x.onnx"]
)
def test_bi03a_redirects_to_them(tmp_path: Path, aim: str) -> None:
    cache = Cache(StateDir(tmp_path), CacheConfig(), pause=0.0)
    with FileServer({"/good.onnx": b"x"}, {"/bad.onnx": aim}) as server:
        with pytest.raises(FetchError, match=r"nothing is fetched from there|no http\(s\) URL"):
            cache.fetch(HttpOrigin(server.url("/bad.onnx")), lambda here, total: None)
        cache.fetch(HttpOrigin(server.url("/good.onnx")), lambda here, total: None).release()
