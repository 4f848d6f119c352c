"""HTTP to a gateway, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from mlflow.exceptions import MlflowException, get_error_code
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from gateway.deployments.settings import wrong

DEFAULT: Final = "http://127.0.0.1:8080"
NAME: Final = "sluicegate"
PREDICT_SECONDS: Final = 600.0


class Calls:
    """One gateway. Raises `MlflowException` with what it said for everything that goes wrong."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._token = token
        # A proxy of the environment is not meant for the gateway on this machine.
        self._opener: OpenerDirector = build_opener(ProxyHandler({}))

    @property
    def is_here(self) -> bool:
        """Whether the gateway is on this machine."""
        return urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")

    def json(self, method: str, path: str, body: Any = None, seconds: float | None = None) -> Any:
        """The JSON answer to a request; `seconds` bounds each wait for it."""
        with self._open(method, path, body, seconds) as answer:
            content = answer.read()
        try:
            return json.loads(content)
        except ValueError:
            raise MlflowException(f"{self.url}{path} answered what is no JSON") from None

    def events(self, path: str, body: Any) -> Iterator[dict[str, Any]]:
        """The data of server-sent events."""
        with self._open("POST", path, body, PREDICT_SECONDS) as answer:
            for line in answer:
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    if set(event) == {"error"}:
                        raise MlflowException(event["error"])
                    yield event

    def _open(self, method: str, path: str, body: Any, seconds: float | None) -> Any:
        headers = {"Accept": "application/json, text/event-stream"}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = Request(self.url + path, data, headers, method=method)
        try:
            return self._opener.open(request, timeout=seconds)
        except HTTPError as error:
            with error:
                raise self._refused(error) from None
        except (URLError, OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            raise MlflowException(
                f"cannot reach the gateway at {self.url}: {cause}; is it running? give another one "
                "as the target sluicegate:/http://HOST:PORT",
                error_code=TEMPORARILY_UNAVAILABLE,
            ) from None

    def _refused(self, error: HTTPError) -> MlflowException:
        try:
            said = json.loads(error.read())
            text = str(said.get("error") or said["message"])
        except (ValueError, KeyError, AttributeError, OSError):
            text = f"{self.url} answered {error.code}; is it a Sluicegate gateway?"
        if error.code == 403:
            text += "; the token goes into the environment variable SLUICE_TOKEN"
        return MlflowException(text, error_code=get_error_code(error.code))


def calls_to(target_uri: str) -> Calls:
    """The gateway that a target names. Raises `MlflowException`."""
    rest = target_uri.removeprefix(NAME)
    token = os.environ.get("SLUICE_TOKEN", "")
    if rest in ("", ":", ":/", "://"):
        return Calls(checked(os.environ.get("SLUICE_URL") or DEFAULT), token)
    url = rest.removeprefix(":").lstrip("/")
    # sluicegate://HOST:PORT is one that people write, too.
    return Calls(checked(url if "://" in url else f"http://{url}"), token)


def checked(url: str) -> str:
    """The URL without a slash at its end. Raises `MlflowException` for what is none."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise wrong(f"'{url}' is no gateway's address; write sluicegate:/http://HOST:PORT")
    return url.rstrip("/")


def quoted(name: str) -> str:
    """A name as one part of a path."""
    return quote(name, safe="")
