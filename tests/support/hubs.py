"""Just enough of a web server, of the Hugging Face Hub and of an OCI registry, on loopback."""

from __future__ import annotations

import json
import re
import threading
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
TITLE = "org.opencontainers.image.title"


class Hub:
    """All three in one. What it holds may be changed while it runs."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.repos: dict[str, tuple[str, dict[str, dict[str, bytes]]]] = {}
        """Name → head, and commit → files."""
        self.manifests: dict[tuple[str, str], bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.token = ""
        """What must be sent to the Hub, if anything."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                path = self.path.partition("?")[0]
                allowed = not hub.token or f"Bearer {hub.token}" == self.headers["authorization"]
                found = hub.answer(path) if allowed else None
                if found is None:
                    self._send(404 if allowed else 401, b"{}", {"x-error-code": "RepoNotFound"})
                    return
                content, headers = found
                headers.setdefault("etag", f'"{sha1(content).hexdigest()}"')
                asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
                if asked is None:
                    self._send(200, content, headers)
                    return
                start, end = int(asked[1]), int(asked[2] or len(content) - 1)
                headers["content-range"] = f"bytes {start}-{end}/{len(content)}"
                self._send(206, content[start : end + 1], headers)

            def do_HEAD(self) -> None:
                self.do_GET()

            def _send(self, code: int, content: bytes, headers: dict[str, str]) -> None:
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def repo(self, name: str, commit: str, files: dict[str, bytes]) -> None:
        """A new commit in a model repository."""
        _, commits = self.repos.get(name, ("", {}))
        self.repos[name] = (commit, {**commits, commit: files})

    def image(self, name: str, tag: str, files: dict[str, bytes], **annotations: str) -> str:
        """A manifest with a layer for each file; returns its digest."""
        layers = []
        for title, content in files.items():
            digest = f"sha256:{sha256(content).hexdigest()}"
            self.blobs[digest] = content
            packed = title.endswith(".tar.gz")
            kind = "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if packed else "")
            layers.append(
                {
                    "mediaType": kind if packed else "application/octet-stream",
                    "digest": digest,
                    "size": len(content),
                    "annotations": {TITLE: title},
                }
            )
        tree = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers, **annotations}
        content = json.dumps(tree).encode()
        digest = f"sha256:{sha256(content).hexdigest()}"
        self.manifests[name, tag] = self.manifests[name, digest] = content
        return digest

    def answer(self, path: str) -> tuple[bytes, dict[str, str]] | None:
        """Content and headers, if there is anything."""
        if path in self.files:
            return self.files[path], {}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            head, commits = self.repos.get(match[1], ("", {}))
            revision = match[2] or "main"
            commit = head if revision == "main" else revision
            if commit not in commits:
                return None
            return self._json({"id": match[1], "modelId": match[1], "sha": commit})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([0-9a-f]+)", path):
            return self._json(self._tree(self.repos[match[1]][1][match[2]]))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([0-9a-f]+)/(.+)", path):
            return self.repos[match[1]][1][match[2]][match[3]], {}
        if match := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
            content = self.manifests.get((match[1], match[2]))
            return None if content is None else (content, {"content-type": MANIFEST})
        if match := re.fullmatch(r"/v2/(.+)/blobs/(.+)", path):
            blob = self.blobs.get(match[2])
            return None if blob is None else (blob, {})
        if match := re.fullmatch(r"/v2/(.+)/tags/list", path):
            tags = [tag for name, tag in self.manifests if name == match[1] and ":" not in tag]
            return self._json({"name": match[1], "tags": tags})
        return None

    def _tree(self, files: dict[str, bytes]) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = [{"type": "directory", "oid": "0" * 40, "path": "onnx"}]
        for path, content in files.items():
            entry = {
                "type": "file", "oid": sha1(content).hexdigest(), "size": len(content),
                "path": path,
            }  # fmt: skip
            if path.endswith(".onnx"):  # large files are kept apart
                digest = sha256(content).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        return entries

    def _json(self, tree: Any) -> tuple[bytes, dict[str, str]]:
        return json.dumps(tree).encode(), {"content-type": "application/json"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
