"""Which addresses may be fetched from: what a server sends us to is checked, not believed."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from gateway.errors import FetchError, printable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

METADATA_NAMES: Final = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data",
     "instance-data.ec2.internal"}
)  # fmt: skip
METADATA: Final = frozenset(
    ipaddress.ip_address(text)
    for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
"""Metadata services of clouds that are not at link-local addresses."""
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


class Reach(IntEnum):
    """How far inside an address is."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2


def is_metadata(address: Address) -> bool:
    """Whether it is link-local, or a cloud's metadata service: nothing of ours is ever there."""
    real = unwrapped(address)
    return real in METADATA or real.is_link_local


def is_metadata_host(host: str) -> bool:
    """Whether a host is that by what it is called, without looking it up."""
    name = host.strip("[]").rstrip(".").lower()
    try:
        return name in METADATA_NAMES or is_metadata(ipaddress.ip_address(name.partition("%")[0]))
    except ValueError:
        return False


def reach_of(address: Address, host: str) -> Reach:
    """Raises `FetchError` for addresses that no model is ever fetched from."""
    real = unwrapped(address)
    if is_metadata(address):
        raise FetchError(
            f"'{printable(host)}' is a link-local address or a cloud's metadata service; nothing "
            "is fetched from there",
            final=True,
        )
    if real.is_loopback or real.is_unspecified:
        return Reach.LOOPBACK
    if real.is_multicast or (real.is_reserved and not real.is_private):
        raise FetchError(f"'{printable(host)}' is no address of one host", final=True)
    return Reach.PUBLIC if real.is_global else Reach.PRIVATE


def unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def check_name(host: str) -> Reach | None:
    """The reach of a host by its name alone, where somebody else resolves it (a proxy); `None`
    unless it is an address. Raises `FetchError`."""
    name = host.strip("[]").rstrip(".").lower()
    if name in METADATA_NAMES:
        raise FetchError(
            f"'{printable(host)}' is a cloud's metadata service; nothing is fetched from there",
            final=True,
        )
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return None
    return reach_of(address, host)


def resolve(host: str, port: int) -> Sequence[tuple[str, Reach]]:
    """The addresses of a host, each with its reach. Raises `FetchError`, also if one of them
    alone may not be fetched from: whoever mixes them is up to something."""
    check_name(host)
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        text = getattr(error, "strerror", None) or "it is no host name"
        raise FetchError(f"the host '{printable(host)}' cannot be found: {text}") from None
    texts = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
    return [(text, reach_of(ipaddress.ip_address(text), host)) for text in texts]
