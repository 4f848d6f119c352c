"""A small web server for files, on the loopback interface, that can misbehave."""

from __future__ import annotations

import re
import threading
from collections import deque
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    start: int
    headers: dict[str, str]


@dataclass
class FileServer:
    """Answers HEAD and GET with `files`; use it as a context manager.

    `redirects`: path → location. `cuts`: after how many bytes the next answers to GET break off.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    cuts: deque[int] = field(default_factory=deque)
    statuses: deque[int] = field(default_factory=deque)
    etags: bool = True
    weak: bool = False
    modified: str = ""
    ranges: bool = True
    head: bool = True
    lengths: bool = True
    encoding: str = ""
    credentials: str = ""
    challenge: str = ""
    """``WWW-Authenticate`` of the answers with one of `statuses`."""
    asked: list[Asked] = field(default_factory=list)
    sent: int = 0
    hold: threading.Event = field(default_factory=threading.Event)
    held_at: int = -1
    """Bytes of a body after which `hold` is waited for."""

    def __enter__(self) -> Self:
        owner = self
        self.hold.set()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner.answer(self)

            def do_HEAD(self) -> None:
                owner.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def etag(self, path: str) -> str:
        tag = f'"{sha256(self.files[path]).hexdigest()[:16]}"'
        return f"W/{tag}" if self.weak else tag

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        path = to.path.partition("?")[0]
        headers = {name.lower(): value for name, value in to.headers.items()}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        start = int(found[1]) if found else 0
        self.asked.append(Asked(to.command, to.path, start, headers))
        if self.statuses:
            challenge = {"www-authenticate": self.challenge} if self.challenge else {}
            return plain(to, self.statuses.popleft(), challenge)
        if self.credentials and headers.get("authorization") != self.credentials:
            return plain(to, 401)
        if path in self.redirects:
            return plain(to, 302, {"location": self.redirects[path]})
        if to.command == "HEAD" and not self.head:
            return plain(to, 405)
        if path not in self.files:
            return plain(to, 404)
        content = self.files[path]
        status, whole = 200, len(content)
        own: dict[str, str] = {}
        if self.etags:
            own["etag"] = self.etag(path)
        if self.modified:
            own["last-modified"] = self.modified
        if self.encoding:
            own["content-encoding"] = self.encoding
        fresh = headers.get("if-range", own.get("etag", self.modified)) in (
            own.get("etag"), self.modified,
        )  # fmt: skip
        if found and self.ranges and fresh:
            if start >= whole:
                return plain(to, 416, {"content-range": f"bytes */{whole}"})
            end = min(int(found[2]), whole - 1) if found[2] else whole - 1
            content, status = content[start : end + 1], 206
            own["content-range"] = f"bytes {start}-{end}/{whole}"
        to.send_response(status)
        for name, value in own.items():
            to.send_header(name, value)
        if self.lengths:
            to.send_header("content-length", str(len(content)))
        else:
            to.send_header("transfer-encoding", "chunked")
        to.end_headers()
        if to.command == "HEAD":
            return None
        cut = self.cuts.popleft() if self.cuts else None
        for at in range(0, len(content), 1000):
            if cut is not None and at >= cut:
                to.close_connection = True
                return None
            if 0 <= self.held_at <= at:
                self.hold.wait(30)
            piece = content[at : at + 1000]
            try:
                if not self.lengths:
                    to.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                else:
                    to.wfile.write(piece)
            except OSError:
                to.close_connection = True
                return None
            self.sent += len(piece)
        if not self.lengths:
            to.wfile.write(b"0\r\n\r\n")
        return None


def plain(to: BaseHTTPRequestHandler, status: int, headers: dict[str, str] | None = None) -> None:
    to.send_response(status)
    for name, value in {"content-length": "0", **(headers or {})}.items():
        to.send_header(name, value)
    to.end_headers()
