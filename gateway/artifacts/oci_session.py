"""Connections to OCI registries that go where they were checked to go, and nowhere else.

A registry says where to log in, and where its files are. Both may be further outside than the
registry itself, never further inside, and no link-local address or cloud's metadata service.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

from gateway.artifacts.addresses import Reach, check_name, resolve
from gateway.artifacts.origins import needed
from gateway.errors import FetchError, printable

TIMEOUT: Final = (10.0, 60.0)
"""Seconds to connect, and of silence."""


class Guard:
    """What may be connected to on the word of the registry at `own`, ``HOST[:PORT]``."""

    def __init__(self, own: str, *, plain: bool) -> None:
        self._own = (urlsplit(f"//{own}").hostname or "").rstrip(".")
        self._plain = plain

    def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host that may be connected to. Raises `FetchError`."""
        found = resolve(host, port)
        if self._is_own(host):
            return [address for address, _ in found]
        # The outermost address of the registry counts.
        most = min((reach for _, reach in resolve(self._own, port)), default=Reach.PUBLIC)
        if any(reach > most for _, reach in found):
            raise self._refusal(host)
        return [address for address, _ in found]

    def check(self, url: str, *, proxied: bool) -> None:
        """Raises `FetchError` for what is not even asked for. A proxy resolves names by itself,
        so then they alone are looked at."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme != "https" and not self._plain:
            raise FetchError(
                f"the registry sends us to '{printable(host)}' without TLS; that is not followed",
                final=True,
            )
        reach = check_name(host)
        if proxied and reach is not None and reach > Reach.PUBLIC and not self._is_own(host):
            raise self._refusal(host)

    def _is_own(self, host: str) -> bool:
        return host.strip("[]").rstrip(".").lower() == self._own.lower()

    def _refusal(self, host: str) -> FetchError:
        return FetchError(
            f"the registry sends us to '{printable(host)}', which is private to this network or "
            "machine, and the registry is not",
            final=True,
        )


def guarded(session: Any, guard: Guard) -> None:
    """Lets a session of ``requests`` make its connections under a guard."""
    adapters = needed("requests.adapters", "oci", "oci://")
    connection = needed("urllib3.connection", "oci", "oci://")
    pools = needed("urllib3.connectionpool", "oci", "oci://")

    class Pinned:
        """Looks a name up once, and connects to just the addresses that were checked."""

        _dns_host: str
        port: int

        def _new_conn(self) -> Any:
            named = self._dns_host
            failure: Exception | None = None
            try:
                for address in guard.addresses(named, self.port):
                    self._dns_host = address
                    try:
                        return super()._new_conn()  # type: ignore[misc]
                    except Exception as error:
                        failure = error
            finally:
                self._dns_host = named  # certificates are for the name
            raise failure or FetchError(f"the host '{printable(named)}' has no address")

    class Http(pools.HTTPConnectionPool):  # type: ignore[misc, name-defined]
        ConnectionCls = type("PinnedHttp", (Pinned, connection.HTTPConnection), {})

    class Https(pools.HTTPSConnectionPool):  # type: ignore[misc, name-defined]
        ConnectionCls = type("PinnedHttps", (Pinned, connection.HTTPSConnection), {})

    class Checked(adapters.HTTPAdapter):  # type: ignore[misc, name-defined]
        """No request waits for ever, and none goes astray."""

        def init_poolmanager(self, *args: Any, **more: Any) -> None:
            super().init_poolmanager(*args, **more)
            self.poolmanager.pool_classes_by_scheme = {"http": Http, "https": Https}

        def send(self, request: Any, *args: Any, **more: Any) -> Any:
            proxied = bool(select(request.url, more.get("proxies")))
            guard.check(request.url, proxied=proxied)
            more["timeout"] = TIMEOUT
            return super().send(request, *args, **more)

    select = needed("requests.utils", "oci", "oci://").select_proxy
    for prefix in ("http://", "https://"):
        session.mount(prefix, Checked())
