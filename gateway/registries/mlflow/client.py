"""MLflow's REST interface, as far as a registry needs it. For threads: its methods block."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NoReturn, Protocol
from urllib.parse import quote, urlsplit

import httpx

from gateway import __version__
from gateway.artifacts.pieces import range_header, rest_of
from gateway.errors import RegistryError, printable
from gateway.registries.mlflow.answers import Deadline, head, reason, text_at, whole
from gateway.registries.mlflow.auth import basic, bearer, tls
from gateway.registries.mlflow.documents import (
    Listing,
    OneModel,
    Registered,
    RemoteEntry,
    Version,
    decoded,
    next_token,
    tree,
    version_page,
)
from gateway.registries.mlflow.uri import Place

MODELS_A_PAGE: Final = 1000
VERSIONS_A_PAGE: Final = 10_000
MOST_PAGES: Final = 1000
MOST_BYTES: Final = 256 << 20
"""More of one answer is taken for a mistake."""
PIECE: Final = 1 << 20
TIMEOUT: Final = httpx.Timeout(30.0, connect=5.0)
SECONDS: Final = 60.0
"""Longest time for one whole answer, other than a file."""
API: Final = "/api/2.0/mlflow/"
NOT_THERE: Final = b"RESOURCE_DOES_NOT_EXIST"
ARTIFACTS: Final = "/api/2.0/mlflow-artifacts/artifacts"


class Client(Protocol):
    """A registry that can be asked. All methods block, and raise `RegistryError`."""

    def pages(self) -> list[bytes]:
        """All registered models, as the raw answers to ``registered-models/search``."""

    def registered(self, name: str) -> Registered | None:
        """One registered model; `None` for one that is not there."""

    def versions(self, name: str = "") -> Iterator[Version]:
        """All versions of a model, or of all models."""

    def set_alias(self, name: str, alias: str, version: str) -> None: ...
    def delete_alias(self, name: str, alias: str) -> None: ...
    def set_tag(self, name: str, key: str, value: str) -> None: ...
    def delete_tag(self, name: str, key: str) -> None: ...

    def artifact_uri(self, name: str, version: str) -> str:
        """Where MLflow says that the files of a version are."""

    def logged_model_uri(self, model_id: str) -> str:
        """Where the files of a logged model (``m-...``) are."""

    def run_uri(self, run_id: str) -> str:
        """Where the artifacts of a run are."""

    def serves(self, host: str) -> bool:
        """Whether ``HOST:PORT`` is the registry's own server."""

    def entries(self, path: str) -> tuple[RemoteEntry, ...]:
        """What is in one folder behind the server's artifact proxy."""

    def content(self, path: str, start: int) -> Iterator[bytes]:
        """A file behind the server's artifact proxy, from byte `start` on."""


class RestClient:
    """See `Client`. Users and TLS as in MLflow's own environment variables."""

    def __init__(self, place: Place, environment: Mapping[str, str] = os.environ) -> None:
        self._name = place.name
        self._base = place.url
        self._lock = threading.Lock()
        self._http: httpx.Client | None = None
        self._environment = environment

    def serves(self, host: str) -> bool:
        """See `Client.serves`."""
        return host == urlsplit(self._base).netloc

    # --- reading

    def pages(self) -> list[bytes]:
        """See `Client.pages`."""
        pages: list[bytes] = []
        token = ""
        while len(pages) < MOST_PAGES:
            asked: dict[str, str | int] = {"max_results": MODELS_A_PAGE}
            if token:
                asked["page_token"] = token
            page = self._get("registered-models/search", asked)
            pages.append(page)
            token = next_token(page)
            if not token:
                return pages
        raise RegistryError(f"{self._name} has more than {MOST_PAGES} pages of models")

    def registered(self, name: str) -> Registered | None:
        """See `Client.registered`."""
        page = self._get("registered-models/get", {"name": name}, missing=True)
        return decoded(page, OneModel, self._name).registered_model if page else None

    def versions(self, name: str = "") -> Iterator[Version]:
        """See `Client.versions`."""
        token = ""
        for _ in range(MOST_PAGES):
            asked: dict[str, str | int] = {"max_results": VERSIONS_A_PAGE}
            if name:
                asked["filter"] = f"name='{name}'"  # names with quotes are not served
            if token:
                asked["page_token"] = token
            page = version_page(self._get("model-versions/search", asked), self._name)
            yield from page.model_versions
            token = page.next_page_token
            if not token:
                return
        raise RegistryError(f"{self._name} has more than {MOST_PAGES} pages of versions")

    # --- writing

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """See `Client`."""
        tree = {"name": name, "alias": alias, "version": version}
        self._send("POST", "registered-models/alias", tree)

    def delete_alias(self, name: str, alias: str) -> None:
        """See `Client`."""
        self._send("DELETE", "registered-models/alias", {"name": name, "alias": alias})

    def set_tag(self, name: str, key: str, value: str) -> None:
        """See `Client`."""
        self._send("POST", "registered-models/set-tag", {"name": name, "key": key, "value": value})

    def delete_tag(self, name: str, key: str) -> None:
        """See `Client`."""
        self._send("DELETE", "registered-models/delete-tag", {"name": name, "key": key})

    # --- artifacts

    def artifact_uri(self, name: str, version: str) -> str:
        """See `Client.artifact_uri`."""
        page = self._get("model-versions/get-download-uri", {"name": name, "version": version})
        return text_at(tree(page, self._name), "artifact_uri")

    def logged_model_uri(self, model_id: str) -> str:
        """See `Client.logged_model_uri`."""
        page = self._get(f"logged-models/{quote(model_id, safe='')}", {})
        return text_at(tree(page, self._name), "model", "info", "artifact_uri")

    def run_uri(self, run_id: str) -> str:
        """See `Client.run_uri`."""
        page = self._get("runs/get", {"run_id": run_id})
        return text_at(tree(page, self._name), "run", "info", "artifact_uri")

    def entries(self, path: str) -> tuple[RemoteEntry, ...]:
        """See `Client.entries`."""
        content = self._ask("GET", f"{self._base}{ARTIFACTS}", params={"path": path})
        return decoded(content, Listing, self._name).files

    def content(self, path: str, start: int) -> Iterator[bytes]:
        """See `Client.content`."""
        headers = {"accept-encoding": "identity", **range_header(start)}
        url = f"{self._base}{ARTIFACTS}/{quote(path)}"
        with self._request("GET", url, headers=headers) as answer:
            if start and answer.status_code == 416:  # there is no more of it
                return
            if answer.status_code >= 300:
                self._refuse(answer, head(answer))
            pieces = answer.iter_bytes(PIECE)
            where = f"{self._name}: '{printable(path, 200)}'"
            yield from rest_of(pieces, answer.status_code, answer.headers, start, where)

    # --- underneath

    def _get(self, path: str, asked: Mapping[str, Any], *, missing: bool = False) -> bytes:
        """An answer, whole; with `missing`, an empty one says that nothing has that name."""
        return self._ask("GET", f"{self._base}{API}{path}", missing=missing, params=asked)

    def _send(self, method: str, path: str, document: Mapping[str, str]) -> None:
        self._ask(method, f"{self._base}{API}{path}", json=dict(document))

    def _ask(self, method: str, url: str, *, missing: bool = False, **more: Any) -> bytes:
        with Deadline(SECONDS) as deadline:
            more["extensions"] = {"trace": deadline.trace}
            try:
                with self._request(method, url, **more) as answer:
                    if answer.status_code < 300:
                        content = whole(answer, self._name, MOST_BYTES)
                    else:
                        content = head(answer)
                        if not (missing and answer.status_code == 404 and NOT_THERE in content):
                            self._refuse(answer, content)
                        content = b""
            except RegistryError:
                if not deadline.over:
                    raise
            if deadline.over:  # what has come may be a part of it
                raise RegistryError(
                    f"{self._name} does not answer in time ({SECONDS:g} s for all of it)"
                )
            return content

    @contextmanager
    def _request(self, method: str, url: str, **more: Any) -> Iterator[httpx.Response]:
        try:
            with self._client().stream(method, url, **more) as answer:
                yield answer
        except httpx.TimeoutException:
            raise RegistryError(f"{self._name} does not answer in time") from None
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError) as error:
            text = printable(error, 200) or type(error).__name__
            raise RegistryError(f"{self._name} cannot be reached: {text}") from None

    def _refuse(self, answer: httpx.Response, content: bytes) -> NoReturn:
        status = answer.status_code
        if status < 400:
            to = printable(answer.headers.get("location", "elsewhere"), 200)
            raise RegistryError(
                f"{self._name} redirects to {to}; give that address as the source, if it is right"
            )
        said = reason(content)
        if status in (401, 403):
            raise RegistryError(
                f"{self._name} refuses access ({status}{said}); set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment"
            )
        raise RegistryError(f"{self._name} answered {status}{said}")

    def _client(self) -> httpx.Client:
        with self._lock:
            if self._http is None:
                self._http = httpx.Client(
                    headers={
                        "user-agent": f"sluicegate/{__version__}",
                        **bearer(self._environment),
                    },
                    auth=basic(self._environment),
                    verify=tls(self._environment),
                    timeout=TIMEOUT,
                    # A deadline can only end a connection that it has seen being made.
                    limits=httpx.Limits(max_keepalive_connections=0),
                )
            return self._http
