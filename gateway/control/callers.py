"""Who asks for a change, and whether they may: the same for HTTP and gRPC."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from gateway.errors import NotAllowed, printable

ACTOR: Final = "x-sluice-actor"
"""Header in which callers say who they are; it is recorded, not checked."""
LONGEST_NAME: Final = 80


@dataclass(frozen=True)
class Caller:
    """Who asks: the peer's address (without port) and the headers or metadata, in lower case."""

    peer: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def who(self) -> str:
        """The declared name and the address, as they are recorded."""
        name = printable(self.headers.get(ACTOR, "").strip(), LONGEST_NAME)
        place = printable(self.peer or "an unknown address", LONGEST_NAME)
        return f"{name} ({place})" if name else place


def check_caller(caller: Caller, token: str, *, what: str, key: str) -> None:
    """Raises `NotAllowed` unless the caller has the token, or is on loopback where none is set.

    `what` is what they ask for, in words, `key` where the token is configured.
    """
    if token:
        given = caller.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise NotAllowed(f"{what} needs the header 'Authorization: Bearer <{key}>'")
        return
    if not is_this_machine(caller.peer):
        raise NotAllowed(f"{what} answers loopback peers only; set {key} to open it")
    if caller.headers.get("x-forwarded-for") or caller.headers.get("forwarded"):
        raise NotAllowed(f"{what} is not for forwarded requests; set {key} to open it")
    # A browser on this machine is a loopback peer too, whatever page it shows: neither a page of
    # somebody else's nor a name that was made to lead here may use it.
    for name, start in (("host", "//"), ("origin", "")):
        value = caller.headers.get(name)
        if value and not is_this_machine(host_of(start + value)):
            raise NotAllowed(f"{what} is not for other hosts or their pages; set {key} to open it")


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
