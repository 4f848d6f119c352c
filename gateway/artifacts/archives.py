"""Unpacks archives that somebody else made: only plain files, below one folder, within bounds."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final, cast

from gateway.artifacts.names import MOST_FILES, check_names
from gateway.errors import FetchError, printable

PIECE: Final = 1024 * 1024
MOST_HEADER: Final = 4 * PIECE
"""Most bytes of one header of a tar file, such as a long name; tarfile reads it as a whole."""
MOST_DIRECTORY: Final = 64 * PIECE
"""Most bytes of a zip file's directory; zipfile reads it as a whole."""

TARS: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SUFFIXES: Final = (*TARS, ".zip", ".mar")
"""What can be unpacked. (A ``.mar`` is a zip file.)"""

_BROKEN: Final = (
    tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile,
    struct.error, NotImplementedError, UnicodeError, ValueError, OverflowError, RecursionError,
)  # fmt: skip


def is_archive(name: str) -> bool:
    """Whether it is one that can be unpacked, by its name."""
    return name.lower().endswith(SUFFIXES)


def unpack(archive: Path, name: str, what: str, into: Path, most_bytes: int) -> list[str]:
    """Unpacks to below `into`, an empty folder, and returns the names of the files.

    A single folder around everything is left out where files lie right in it. `name` says what
    the archive is, `what` is it for people. Raises `FetchError` for what is no archive or not a
    good one, `OSError` for what cannot be written.
    """
    try:
        with archive.open("rb") as source:
            links = _unpack(source, name.lower(), what, into, most_bytes)
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        text = printable(" ".join(str(error).split()), 200)
        raise _refused(what, f"it cannot be unpacked: {text or type(error).__name__}") from None
    _link(links, what, into)
    names = sorted(each.relative_to(into).as_posix() for each in _files(into))
    if not names:
        raise _refused(what, "it holds no files")
    return _without_top(into, names)


def _unpack(source: IO[bytes], name: str, what: str, into: Path, most_bytes: int) -> dict[str, str]:
    """Writes the plain files; returns link → name of what it leads to."""
    if name.endswith(TARS):
        members = _tar_members(source, name, what, most_bytes)
    elif name.endswith((".zip", ".mar")):
        members = _zip_members(source, what)
    else:
        raise _refused(what, f"it is none of {', '.join(SUFFIXES)}")
    links: dict[str, str] = {}
    seen: list[str] = []
    total = 0
    for member, open_it in members:
        seen.append(member)
        if len(seen) > MOST_FILES:
            raise _refused(what, f"it holds more than {MOST_FILES} files")
        check_names([member], what)
        target = into / member
        content = open_it()
        if isinstance(content, str):
            links[member] = content
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            out = target.open("xb")
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise _refused(what, f"'{printable(member)}' is there twice") from None
        with out, content:
            while piece := content.read(PIECE):
                total += len(piece)
                if total > most_bytes:
                    raise _refused(
                        what, f"it unpacks to more than {most_bytes // PIECE} MiB (cache.max_mb)"
                    )
                out.write(piece)
            out.flush()
            os.fsync(out.fileno())
    check_names(seen, what)
    return links


Members = Iterator[tuple[str, Callable[[], IO[bytes] | str]]]
"""Name, and what opens it: the content, or the name of what a link leads to."""


def _tar_members(source: IO[bytes], name: str, what: str, most_bytes: int) -> Members:
    # Headers and padding count too; a bomb may be made of nothing else.
    guarded = Guarded(_decompressed(source, name), 2 * most_bytes + 16 * PIECE)
    with tarfile.open(fileobj=cast("IO[bytes]", guarded), mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # or it keeps them all
            path = _plain(member.name)
            if member.isdir():
                if path:
                    check_names([path], what)
            elif member.issym():
                yield path, lambda m=member: _aim(m.name, m.linkname, what)  # type: ignore[misc]
            elif member.islnk():
                yield path, lambda m=member: _aim("", m.linkname, what)  # type: ignore[misc]
            elif member.isreg():
                yield path, lambda m=member: cast("IO[bytes]", tar.extractfile(m))  # type: ignore[misc]
            else:
                raise _refused(what, f"'{printable(member.name)}' is a device, pipe or the like")


def _zip_members(source: IO[bytes], what: str) -> Members:
    _check_directory(source, what)
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            path = _plain(info.filename)
            mode = info.external_attr >> 16
            kind = stat.S_IFMT(mode)
            if info.flag_bits & 1:
                raise _refused(what, f"'{printable(info.filename)}' is encrypted")
            if info.is_dir() or kind == stat.S_IFDIR:
                if path:
                    check_names([path], what)
            elif kind == stat.S_IFLNK:
                if info.file_size > MOST_HEADER:
                    raise _refused(what, f"'{printable(info.filename)}' is no link")
                aim = archive.open(info).read(MOST_HEADER).decode()
                yield path, lambda p=path, a=aim: _aim(p, a, what)  # type: ignore[misc]
            elif kind in (0, stat.S_IFREG):
                yield path, lambda i=info: archive.open(i)  # type: ignore[misc]
            else:
                raise _refused(what, f"'{printable(info.filename)}' is a device, pipe or the like")


def _check_directory(source: IO[bytes], what: str) -> None:
    """Refuses a zip file whose directory is too large to be read as a whole."""
    end = source.seek(0, os.SEEK_END)
    source.seek(max(0, end - 65536 - 22 - 20))
    tail = source.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        raise _refused(what, "it is no zip file")
    count, size = struct.unpack_from("<HL", tail, at + 10)
    locator = at - 20
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        (where,) = struct.unpack_from("<Q", tail, locator + 8)
        source.seek(min(where, end))
        record = source.read(56)
        if len(record) == 56:
            count, size = struct.unpack_from("<QQ", record, 32)
    if size > MOST_DIRECTORY:
        raise _refused(what, "its directory is too large")
    if count > 2 * MOST_FILES:  # folders count as well
        raise _refused(what, f"it holds more than {MOST_FILES} files")
    source.seek(0)


def _decompressed(source: IO[bytes], name: str) -> IO[bytes]:
    if name.endswith((".tar.gz", ".tgz")):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=source))
    if name.endswith(".tar.bz2"):
        return bz2.BZ2File(source)
    if name.endswith(".tar.xz"):
        return lzma.LZMAFile(source)
    return source


class Guarded(io.RawIOBase):
    """A file of which only so much is read at once, and in all."""

    def __init__(self, source: IO[bytes], most: int) -> None:
        self._source = source
        self._most = most

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_HEADER:
            raise tarfile.ReadError("a header is too large")
        self._check(self._source.tell() + size)
        return self._source.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation
        self._check(offset)
        return self._source.seek(offset)

    def tell(self) -> int:
        return self._source.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _check(self, position: int) -> None:
        if position > self._most:
            raise tarfile.ReadError(f"it unpacks to more than {self._most // PIECE} MiB")


def _plain(name: str) -> str:
    """Without what means nothing: ``./a/b/`` is ``a/b``. What leads elsewhere stays as it is."""
    return name.removeprefix("./").rstrip("/") if name not in (".", "./") else ""


def _aim(link: str, target: str, what: str) -> str:
    """The name that a link leads to. Raises `FetchError` for one that leads out."""
    aim = posixpath.normpath(posixpath.join(posixpath.dirname(_plain(link)), target))
    if not target or target.startswith("/") or aim == ".." or aim.startswith("../"):
        raise _refused(what, f"a link in it leads out of it, to '{printable(target)}'")
    return aim


def _link(links: dict[str, str], what: str, into: Path) -> None:
    """Makes plain files of links: second names of what they lead to."""
    for name, first in links.items():
        aim = first
        for _ in range(40):
            if aim not in links:
                break
            aim = links[aim]
        source, target = into / aim, into / name
        if not source.is_file():
            raise _refused(what, f"the link '{printable(name)}' leads to no file in it")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)


def _files(folder: Path) -> Iterator[Path]:
    for at, _, names in os.walk(folder):
        for name in names:
            yield Path(at, name)


def _without_top(into: Path, names: list[str]) -> list[str]:
    """Takes the one folder around everything away, if files lie right in it."""
    tops = {name.partition("/")[0] for name in names}
    if len(tops) != 1 or not all("/" in name for name in names):
        return names
    inner = [name.partition("/")[2] for name in names]
    if all("/" in name for name in inner):
        return names
    top = into / tops.pop()
    aside = into / f".{os.urandom(8).hex()}"
    os.rename(top, aside)
    for each in aside.iterdir():
        os.rename(each, into / each.name)
    aside.rmdir()
    return inner


def _refused(what: str, why: str) -> FetchError:
    return FetchError(f"{what}: {why}", final=True)
