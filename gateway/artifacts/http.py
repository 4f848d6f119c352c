"""One file on a web server: ``https://host/path/model.onnx``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import httpx

from gateway.artifacts.addresses import check_name
from gateway.artifacts.archives import is_archive
from gateway.artifacts.base import RemoteFile
from gateway.artifacts.http_client import request, shown
from gateway.artifacts.pieces import RANGE, range_header, rest_of
from gateway.errors import FetchError, printable

_SHA256 = re.compile(r"sha256=([0-9a-fA-F]{64})")
_DENIED: Final = (401, 403, 407)
_PASSING: Final = (408, 409, 425, 429)
"""Answers in the 400s after which trying again makes sense."""


@dataclass(frozen=True)
class HttpOrigin:
    """See `gateway.artifacts.base.Origin`. An archive is unpacked into the version's folder.

    `url` may end with ``#sha256=<hex>``, and may hold secrets; `folder` is the version, `name`
    the file's name in it (empty: as in the URL). Raises `FetchError` for what cannot be fetched.
    """

    url: str = field(repr=False)
    folder: str = "1"
    name: str = ""

    def __post_init__(self) -> None:
        url = self._url
        if url.scheme not in ("http", "https") or not url.host:
            raise FetchError(
                f"'{shown(url)}' is no URL of a file; write https://HOST/PATH/model.onnx",
                final=True,
            )
        if url.fragment and _SHA256.fullmatch(url.fragment) is None:
            raise FetchError(
                f"{self.uri}: '#{printable(url.fragment)}' is not understood; write "
                "#sha256= and 64 hexadecimal digits",
                final=True,
            )
        if not self.file_name:
            raise FetchError(f"{self.uri} names no file; write the whole path to it", final=True)
        check_name(url.host)

    @property
    def _url(self) -> httpx.URL:
        try:
            return httpx.URL(self.url)
        except (httpx.InvalidURL, TypeError, ValueError):
            raise FetchError("a source is no valid URL; check its host and port") from None

    @property
    def uri(self) -> str:
        """See `Origin.uri`."""
        return shown(self._url)

    @property
    def key(self) -> str:
        """See `Origin.key`."""
        return "\0".join(("http", self.url, self.folder, self.name))

    @property
    def file_name(self) -> str:
        """What the file is called in the version's folder."""
        return self.name or self._url.path.rpartition("/")[2]

    @property
    def sha256(self) -> str:
        """As it is declared; empty where it is not."""
        found = _SHA256.fullmatch(self._url.fragment)
        return found[1].lower() if found else ""

    def files(self) -> Sequence[RemoteFile]:
        """See `Origin.files`."""
        url = self._url
        with request("HEAD", url, {}) as answer:
            if answer.status_code == 200:
                return [self._file(answer, length(answer))]
        # Some allow GET alone; a signed URL is for one method.
        with request("GET", url, {"range": "bytes=0-0"}) as answer:
            self._check(answer)
            return [self._file(answer, whole_length(answer))]

    def _file(self, answer: httpx.Response, size: int) -> RemoteFile:
        self._check_encoding(answer)
        name = self.file_name
        return RemoteFile(
            f"{self.folder}/{name}", size, identity_of(answer), self.sha256,
            archive=is_archive(name),
        )  # fmt: skip

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """See `Origin.read`."""
        headers = range_header(start)
        if start:
            if 0 <= file.size <= start:
                return
            # A weak ETag may not stand there; what comes is compared in any case.
            _, _, value = file.identity.partition(":")
            if value and not value.startswith("W/"):
                headers["if-range"] = value
        with request("GET", self._url, headers) as answer:
            if answer.status_code == 416 and (start or file.size == 0):
                return
            self._check(answer)
            self._check_encoding(answer)
            whole = whole_length(answer)
            other_size = file.size >= 0 and whole >= 0 and whole != file.size
            if identity_of(answer) != file.identity or other_size:
                raise FetchError(f"{self.uri} changed while it was fetched", changed=True)
            pieces = answer.iter_raw()  # larger ones would be lost in part when it breaks
            yield from rest_of(pieces, answer.status_code, answer.headers, start, self.uri)

    def _check(self, answer: httpx.Response) -> None:
        status = answer.status_code
        if status in (200, 206) or answer.headers.get("content-range") == "bytes */0":
            return
        what = f"{self.uri} was answered with {status} {answer.reason_phrase}".rstrip()
        if status in _DENIED:
            raise FetchError(f"{what}; see docs/cache.md for credentials", final=True)
        raise FetchError(what, final=400 <= status < 500 and status not in _PASSING)

    def _check_encoding(self, answer: httpx.Response) -> None:
        how = answer.headers.get("content-encoding", "identity")
        # Some say of a .tar.gz that it is compressed, and mean the file itself.
        if how != "identity" and not (how == "gzip" and self.file_name.endswith(("gz", "gzip"))):
            raise FetchError(
                f"{self.uri} was answered with Content-Encoding {printable(how)}, which was not "
                "asked for",
                final=True,
            )


def length(answer: httpx.Response) -> int:
    text = answer.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else -1


def whole_length(answer: httpx.Response) -> int:
    """Of the whole file, where the answer may be a part; -1 = not known."""
    if answer.status_code == 200:
        return length(answer)
    found = RANGE.fullmatch(answer.headers.get("content-range", ""))
    if found is not None:
        return -1 if found[3] == "*" else int(found[3])
    return 0 if answer.status_code == 416 else -1  # no range of nothing can be had


def identity_of(answer: httpx.Response) -> str:
    """``etag:...``, else ``modified:...``, else nothing."""
    if etag := answer.headers.get("etag"):
        return f"etag:{etag}"
    modified = answer.headers.get("last-modified")
    return f"modified:{modified}" if modified else ""
