"""Single words that are typed after ``sluice bench``: times, shapes, headers, addresses."""

from __future__ import annotations

import math
import re
from typing import Final
from urllib.parse import urlsplit

import click

NAMES: Final = {
    "headers": "--header",
    "shapes": "--shape",
    "ranges": "--range",
    "json_out": "--json",
    "html_out": "--html",
}


def option(name: str) -> str:
    """The option of a parameter."""
    return NAMES.get(name) or "--" + name.replace("_", "-")


def seconds(text: str, name: str, *, zero: bool = False) -> float:
    """``10s``, ``500ms``, ``2m`` or a plain number of seconds."""
    from loadtests.units import SECONDS, quantity

    value = quantity(text, {"": 1.0, **SECONDS})
    if value is None or (value < 0.1 and not (zero and value == 0)) or value > 86_400:
        least = "0 or from 0.1 s" if zero else "from 0.1 s"
        raise click.UsageError(f"{name}: '{text}' must be a time {least} to 24 h, as {name} 10s")
    return value


def header(text: str) -> tuple[str, str]:
    """``Name: value``."""
    name, colon, value = text.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name.strip()):
        raise click.UsageError("--header must be 'NAME: VALUE', as --header 'x-tenant: blue'")
    if not value.strip().isprintable():
        raise click.UsageError(f"--header {name}: the value has characters that cannot be sent")
    return name.strip(), value.strip()


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """``x=1,3,224,224``."""
    name, equals, rest = text.partition("=")
    try:
        sizes = tuple(int(word) for word in rest.split(","))
    except ValueError:
        sizes = ()
    if not equals or not name or not sizes or min(sizes) < 0:
        raise click.UsageError(f"--shape: '{text}' must be NAME=SIZES, as --shape x=1,3,224,224")
    return name, sizes


def limits(text: str) -> tuple[str, tuple[float, float]]:
    """``ids=0:30000``."""
    name, equals, rest = text.partition("=")
    try:
        low, high = (float(word) for word in rest.split(":"))
    except ValueError:
        low, high = 0.0, -1.0
    if not equals or not name or not -math.inf < low <= high < math.inf:
        raise click.UsageError(f"--range: '{text}' must be NAME=LOW:HIGH, as --range ids=0:30000")
    return name, (low, high)


def address(text: str) -> str:
    """``HOST:PORT``, or ``grpcs://HOST:PORT`` for TLS."""
    scheme, _, rest = text.rpartition("://")
    host, colon, port = rest.rpartition(":")
    known = scheme in ("", "grpc", "grpcs")
    if not known or not colon or not host or "/" in host or not port.isdigit():
        raise click.UsageError(f"'{text}' is no address; give --grpc HOST:PORT")
    if not 0 < int(port) < 65536:
        raise click.UsageError(f"'{text}' has no such port; give --grpc HOST:PORT")
    return f"grpcs://{rest}" if scheme == "grpcs" else rest


def beside(url: str) -> str:
    """The gRPC address that goes with an HTTP address: gateways and Triton have the next port."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.port is None or parts.port == 65535:
        raise click.UsageError(f"{url} does not say where gRPC is; give --grpc HOST:PORT")
    return f"[{host}]:{parts.port + 1}" if ":" in host else f"{host}:{parts.port + 1}"
