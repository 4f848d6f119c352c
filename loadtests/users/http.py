"""Users over HTTP/1.1: Open Inference Protocol, KServe's V1, MLflow's ``/invocations``."""

from __future__ import annotations

import re
import ssl
from typing import Any

import gevent.ssl
from locust import FastHttpUser
from locust.env import Environment
from locust.exception import StopTest

from loadtests.bench.plan import Protocol
from loadtests.payloads.base import Wire
from loadtests.users.base import InferenceUser, context
from loadtests.users.session import session_of

VERSION = "x-sluice-version"
_NUMBERS = re.compile(r"\d+(?:\.\d+)?")
_NAMED = re.compile(rb'"model_version"\s*:\s*"([^"\\]{1,100})"')
_HEAD = 4096
"""Bytes of an answer in which its version is looked for."""


class HttpInferenceUser(InferenceUser, FastHttpUser):  # type: ignore[misc,unused-ignore]
    """Each has a connection of its own, which is kept."""

    abstract = True
    insecure = False
    """Certificates are checked, unlike elsewhere in locust; see ``--ca-file``."""
    max_redirects = 0

    def __init__(self, environment: Environment) -> None:
        host = environment.host or self.host
        if host and "://" not in host:
            self.host = environment.host = f"http://{host}"
        options = environment.parsed_options
        self.network_timeout = self.connection_timeout = (
            getattr(options, "timeout", 0.0) or self.timeout_s
        )
        if (self.host or host or "").startswith("https://"):
            trusted = self._trusted(environment, getattr(options, "ca_file", "") or self.ca_file)
            self.ssl_context_factory = lambda: trusted
        super().__init__(environment)
        # Compression would be work of the client, and is none of the server's as a rule.
        self._common = {"Accept-Encoding": "identity"}

    def _trusted(self, environment: Environment, authority: str) -> Any:
        try:
            return gevent.ssl.create_default_context(cafile=authority or None)
        except (OSError, ssl.SSLError) as error:
            refused = f"--ca-file {authority}: {getattr(error, 'strerror', None) or error}"
            session_of(environment).refuse(refused)
            raise StopTest(refused) from None

    def send(self, wire: Wire) -> None:
        with self.client.post(
            wire.path,
            data=wire.body,  # type: ignore[arg-type,unused-ignore]  # bytes are sent as they are
            headers={**dict(wire.headers), **self._common},
            name=self.plan.target.model,
            catch_response=True,
            allow_redirects=False,
        ) as response:
            meta = response.request_meta
            meta["request_type"] = str(self.protocol)
            meta["context"] = context(self.plan.target.model, version_of(response))
            if response.status_code == 200:
                if meta["exception"] is None:
                    response.success()
            elif response.status_code:
                response.failure(f"{response.status_code}: {_words(response.text)}")


def version_of(response: Any) -> str:
    """Which version answered: by the header, or as the protocol's JSON says; empty: unknown."""
    headers = response.headers
    if headers is not None and VERSION in headers:
        return str(headers[VERSION])
    found = _NAMED.search((response.content or b"")[:_HEAD])
    return found[1].decode(errors="replace") if found else ""


def _words(text: str | None) -> str:
    """An error's text without its numbers: each kind of error is one line in the statistics."""
    return _NUMBERS.sub("#", " ".join((text or "no text").split()))[:160]


class OipJsonUser(HttpInferenceUser):
    """Open Inference Protocol, plain JSON both ways."""

    abstract = True
    protocol = Protocol.JSON


class OipBinaryUser(HttpInferenceUser):
    """Open Inference Protocol, tensors as bytes behind a JSON head, both ways."""

    abstract = True
    protocol = Protocol.BINARY


class V1User(HttpInferenceUser):
    """KServe's V1 ``:predict``."""

    abstract = True
    protocol = Protocol.V1


class InvocationsUser(HttpInferenceUser):
    """MLflow's ``/invocations``."""

    abstract = True
    protocol = Protocol.INVOCATIONS
