"""A small client of a running gateway's HTTP port, for the other commands."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from gateway.cli.exits import UNREACHABLE, USAGE, Failure

TIMEOUT = 30.0
LOAD_TIMEOUT = 3600.0
"""Seconds for what waits until a model is loaded; the gateway's own limit is shorter."""


class GatewayClient:
    """Calls the admin API. Raises `Failure` with what to type for everything that goes wrong."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url = base_url(url)
        headers = {"x-sluice-actor": actor()}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        # A proxy of the environment is not meant for the gateway on this machine.
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=TIMEOUT, trust_env=False
        )

    def __enter__(self) -> GatewayClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """Every model with its versions."""
        found: list[dict[str, Any]] = self._call("GET", "/admin/v1/models")["models"]
        return found

    def model(self, name: str) -> dict[str, Any]:
        """One model."""
        return self._call("GET", f"/admin/v1/models/{quoted(name)}")

    def log(self, name: str, version: str) -> str:
        """What happened in the last loads of a version."""
        path = f"/admin/v1/models/{quoted(name)}/versions/{quoted(version)}/log"
        text: str = self._call("GET", path)["log"]
        return text

    def change(
        self,
        name: str,
        what: str,
        message: str,
        body: Mapping[str, Any] | None = None,
        *,
        method: str = "POST",
    ) -> dict[str, Any]:
        """Makes a change (``split``, ``promote``, ``versions/2/load``, ...) with the reason for it,
        and returns the model. It may take as long as a model takes to load."""
        tree = {**(body or {}), **({"message": message} if message else {})}
        path = f"/admin/v1/models/{quoted(name)}/{what}"
        return self._call(method, path, tree, LOAD_TIMEOUT)

    def history(self, name: str, **query: str) -> dict[str, Any]:
        """The record of a model, or of all where the name is empty."""
        path = f"/admin/v1/models/{quoted(name)}/history" if name else "/admin/v1/history"
        return self._call("GET", str(httpx.URL(path, params=query)))

    def _call(
        self, method: str, path: str, body: Any = None, timeout: float = TIMEOUT
    ) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, json=body, timeout=timeout)
        except httpx.HTTPError as error:
            raise unreachable(self.url, error, timeout) from None
        return content(answer, self.url)


def base_url(url: str) -> str:
    """The URL with a scheme and without a slash at its end. Raises `Failure`."""
    full = (url if "://" in url else f"http://{url}").rstrip("/")
    try:
        parsed = httpx.URL(full)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise Failure(f"'{url}' is no URL; give --url http://HOST:PORT", USAGE)
    return full


def quoted(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="")


def actor() -> str:
    """Who changes something, for the gateway's record: user@host."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user without a name, as in a container
        name = "unknown"
    return f"{name}@{socket.gethostname()}".encode("ascii", "replace").decode()


def unreachable(url: str, error: Exception, timeout: float = TIMEOUT) -> Failure:
    """What to say when nobody answers."""
    if isinstance(error, httpx.TimeoutException):
        return Failure(f"{url} did not answer in {timeout:g} s", UNREACHABLE)
    return Failure(
        f"no gateway answers at {url} ({reason(error)}); start one with 'sluice serve DIR', or "
        "name it with --url",
        UNREACHABLE,
    )


def reason(error: Exception) -> str:
    text = str(error)
    _, bracket, words = text.partition("] ")  # "[Errno 111] Connection refused"
    return (words if bracket else text).lower() or type(error).__name__


def content(answer: httpx.Response, url: str) -> dict[str, Any]:
    """The JSON object of an answer. Raises `Failure` with the gateway's own words for an error."""
    try:
        tree = answer.json()
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise Failure(
            f"{url} answered {answer.status_code} without JSON; is it a Sluicegate gateway?",
            UNREACHABLE,
        )
    if answer.is_success:
        return tree
    text = str(tree.get("error") or f"{url} answered {answer.status_code}")
    if answer.status_code == 403 and "token" in text:
        text += "; give --token or set SLUICE_TOKEN"
    raise Failure(text)
