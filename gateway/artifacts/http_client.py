"""HTTP requests that go where they were checked to go, and nowhere else.

Redirects are followed by hand: outward at most, never from a public host to a private one, from
a private one to this machine, or from https to http.
"""

from __future__ import annotations

import functools
import os
import re
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import httpx

from gateway import __version__
from gateway.artifacts.addresses import Reach, check_name, resolve
from gateway.errors import FetchError, printable

MOST_REDIRECTS: Final = 5
TIMEOUT: Final = httpx.Timeout(30.0, connect=10.0)
TOKENS: Final = "FETCH_TOKEN_"
"""Followed by a host in capitals, with ``_`` for all else: a bearer token for that host."""

_REDIRECTS: Final = (301, 302, 303, 307, 308)


class CheckedTransport(httpx.BaseTransport):
    """Resolves a name itself, checks what comes of it, and connects to just that. `most` is the
    furthest inside that it goes; `reach` is where it went."""

    def __init__(self, most: Reach) -> None:
        self.reach = Reach.PUBLIC
        self._most = most
        self._used: list[httpx.HTTPTransport] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Raises `FetchError`, and httpx's errors."""
        url = request.url
        host = url.raw_host.decode("ascii")
        if (proxy := proxy_for(url)) is not None:
            # The proxy resolves it, and is the one to know what may be reached through it.
            literal = check_name(host)
            self._refuse([] if literal is None else [literal], host)
            return self._through(proxy).handle_request(request)
        found = resolve(host, url.port or (443 if url.scheme == "https" else 80))
        reaches = [reach for _, reach in found]
        # The outermost one counts: whatever follows must be no further inside.
        self.reach = min(reaches)
        self._refuse(reaches, host)
        request.extensions = {**request.extensions, "sni_hostname": host}
        direct = self._through(None)
        for number, (address, _) in enumerate(found):
            request.url = url.copy_with(host=address)
            try:
                return direct.handle_request(request)
            except httpx.ConnectError:
                if number == len(found) - 1:
                    raise
            finally:
                request.url = url
        raise httpx.ConnectError(f"'{host}' has no address")

    def _refuse(self, reaches: list[Reach], host: str) -> None:
        if any(reach > self._most for reach in reaches):
            raise FetchError(
                f"it redirects to '{printable(host)}', which is private to this network or "
                "machine; name that address in the source if it is meant",
                final=True,
            )

    def _through(self, proxy: str | None) -> httpx.HTTPTransport:
        transport = httpx.HTTPTransport(verify=tls(), proxy=proxy)
        self._used.append(transport)
        return transport

    def close(self) -> None:
        for transport in self._used:
            transport.close()


@contextmanager
def request(method: str, url: httpx.URL, headers: dict[str, str]) -> Iterator[httpx.Response]:
    """The answer at the end of all redirects, its body unread. Raises `FetchError`."""
    most = Reach.LOOPBACK
    first = url
    answered = False
    for _ in range(MOST_REDIRECTS + 1):
        transport = CheckedTransport(most)
        own = url if same_place(url, first) else url.copy_with(userinfo=b"")
        # By which the caller is known: for the first host alone, and before all else.
        given = {name.lower(): value for name, value in headers.items()}
        if not same_place(url, first):
            given.pop("authorization", None)
        auth = None if "authorization" in given else auth_of(own)
        with httpx.Client(
            transport=transport, timeout=TIMEOUT, auth=auth, trust_env=False
        ) as client:
            try:
                plain = own.copy_with(userinfo=b"", fragment=None)
                with client.stream(method, plain, headers=with_own(given)) as answer:
                    if answer.status_code not in _REDIRECTS:
                        answered = True
                        yield answer
                        return
                    aim = answer.headers.get("location", "")
            except httpx.TimeoutException:
                raise FetchError(f"{shown(url)} does not answer in time") from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                text = printable(" ".join(str(error).split()), 200) or type(error).__name__
                raise FetchError(f"{shown(url)} cannot be read: {text}") from None
            except FetchError as error:
                if answered:
                    raise  # it is the reader's own
                raise FetchError(
                    f"{shown(first)}: {error}", final=error.final, changed=error.changed
                ) from None
        url = redirected(url, aim, first)
        most = transport.reach
    raise FetchError(f"{shown(first)} redirects more than {MOST_REDIRECTS} times", final=True)


def redirected(url: httpx.URL, aim: str, first: httpx.URL) -> httpx.URL:
    """Where a redirect leads. Raises `FetchError` where that is nowhere to go."""
    try:
        target = url.join(aim)
    except (httpx.InvalidURL, ValueError):
        target = httpx.URL()
    if not aim or target.scheme not in ("http", "https") or not target.host:
        raise FetchError(f"{shown(first)} redirects to what is no http(s) URL", final=True)
    if url.scheme == "https" and target.scheme == "http":
        raise FetchError(
            f"{shown(first)} redirects from https to http ({printable(target.host)}); that is "
            "not followed",
            final=True,
        )
    return target


def auth_of(url: httpx.URL) -> httpx.Auth | None:
    """From the URL, a variable for the host, or netrc; in this order."""
    if url.username or url.password:
        return httpx.BasicAuth(url.username, url.password)
    if token := os.environ.get(TOKENS + re.sub(r"[^A-Z0-9]", "_", url.host.upper())):
        return Bearer(token)
    file = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    if not os.path.isfile(file):
        return None
    try:
        return httpx.NetRCAuth(file)
    except Exception:  # netrc's own error quotes the line, and with it the password
        raise FetchError(f"'{file}' is no netrc file; mend it, or set NETRC", final=True) from None


class Bearer(httpx.Auth):
    """A token in every request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        request.headers["authorization"] = f"Bearer {self._token}"
        yield request


def with_own(headers: dict[str, str]) -> dict[str, str]:
    # Not compressed: lengths and ranges are those of the file.
    return {"accept-encoding": "identity", "user-agent": f"sluicegate/{__version__}", **headers}


def same_place(one: httpx.URL, other: httpx.URL) -> bool:
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def proxy_for(url: httpx.URL) -> str | None:
    """The proxy that the environment names for a URL."""
    if urllib.request.proxy_bypass(url.host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(url.scheme) or proxies.get("all")


@functools.cache
def tls() -> ssl.SSLContext:
    """Certificates of the system's choice; reading them takes a while."""
    return httpx.create_ssl_context()


def shown(url: httpx.URL) -> str:
    """A URL without what may be secret: no user, no query."""
    query = "?…" if url.query else ""
    port = f":{url.port}" if url.port is not None else ""
    host = f"[{url.host}]" if ":" in url.host else url.host
    return printable(f"{url.scheme}://{host}{port}{url.path}{query}", 300)
