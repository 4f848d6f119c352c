"""Who asks for a change, and whether they may: the same for HTTP and gRPC."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from gateway.errors import NotAllowed, printable

ACTOR: Final = "x-sluice-actor"
"""Header in which callers say who they are; it is recorded, not checked."""
LONGEST_NAME: Final = 80
FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
"""What proxies add: behind one on this machine everybody is a loopback peer."""


@dataclass(frozen=True)
class Caller:
    """Who asks: the peer's address (without port), and by name in lower case all values of each
    header or key of the metadata, in their order."""

    peer: str
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, peer: str, headers: Iterable[tuple[str, str]]) -> Caller:
        """From the headers one by one."""
        found: dict[str, tuple[str, ...]] = {}
        for name, value in headers:
            name = name.lower()
            found[name] = (*found.get(name, ()), value)
        return cls(peer, found)

    def first(self, name: str) -> str:
        """A header's first value; empty where there is none."""
        return self.headers.get(name, ("",))[0]

    @property
    def foreign(self) -> str:
        """Why this is not for certain somebody on this machine, in words; else empty."""
        if not is_this_machine(self.peer):
            return "answers loopback peers only"
        if any(name in self.headers for name in FORWARDED):
            return "is not for forwarded requests"
        # A browser on this machine is a loopback peer too, whatever page it shows: neither a page
        # of somebody else's nor a name that was made to lead here may use it.
        for name, start in (("host", "//"), ("origin", "")):
            for value in self.headers.get(name, ()):
                if not is_this_machine(host_of(start + value)):
                    return "is not for other hosts or their pages"
        return ""

    @property
    def local(self) -> bool:
        """Whether it is somebody on this machine, and not behind a proxy or a page on it."""
        return not self.foreign

    @property
    def who(self) -> str:
        """The declared name and the address, as they are recorded."""
        name = printable(self.first(ACTOR).strip(), LONGEST_NAME)
        place = printable(self.peer or "an unknown address", LONGEST_NAME)
        return f"{name} ({place})" if name else place


def check_caller(caller: Caller, token: str, *, what: str, key: str) -> None:
    """Raises `NotAllowed` unless the caller has the token, or is on loopback where none is set.

    `what` is what they ask for, in words, `key` where the token is configured.
    """
    if token:
        given = caller.first("authorization")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise NotAllowed(f"{what} needs the header 'Authorization: Bearer <{key}>'")
        return
    if caller.foreign:
        raise NotAllowed(f"{what} {caller.foreign}; set {key} to open it")


def grpc_peer(peer: str) -> str:
    """The address in gRPC's name of a peer, ``ipv4:127.0.0.1:4711`` or ``ipv6:[::1]:4711``."""
    kind, _, rest = peer.replace("%5B", "[").replace("%5D", "]").partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return rest.rpartition(":")[0].strip("[]")


def host_of(url: str) -> str:
    """The host in a URL; empty for what is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_this_machine(host: str) -> bool:
    """Whether a host's name or address is one of loopback."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
