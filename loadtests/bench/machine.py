"""Where the load came from: the machine and the versions of the client."""

from __future__ import annotations

import importlib.metadata
import ipaddress
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from loadtests.bench.plan import Target
from loadtests.kernel import cores

PACKAGES: Final = ("sluicegate", "grpcio", "pygrpc-native", "httptools", "hdrhistogram", "uvloop")
SECRET: Final = ("--token", "--header", "-H")


def describe(target: Target) -> dict[str, str]:
    """CPU, cores, memory, system, how busy it was before, and whether the server is on it too."""
    found = {
        "cpu": cpu(),
        "cores": str(cores()),
        "system": f"{platform.system()} {platform.release()}",
    }
    with suppress(OSError, ValueError, AttributeError):
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        found["memory"] = f"{size:.0f} GiB"
    with suppress(OSError, AttributeError):
        found["load before"] = f"{os.getloadavg()[0]:.2f} (1-minute average)"
    here = local(target)
    found["server"] = "on the same machine" if here else "reached over the network"
    return found


def cpu() -> str:
    """The processor's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def local(target: Target) -> bool:
    """Whether the server's address is of the loopback interface."""
    grpc = target.grpc if "://" in target.grpc else f"grpc://{target.grpc}"
    address = target.http if target.protocol.http else grpc
    host = urlsplit(address).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def versions(server: str) -> dict[str, str]:
    """Of the server (as it says), of Python and of the client's libraries."""
    found = {"server": server or "not told", "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def without_secrets(words: Sequence[str]) -> list[str]:
    """A command line to be kept: tokens and the values of headers are left out."""
    found: list[str] = []
    secret = ""
    for word in words:
        option, equals, value = word.partition("=")
        if secret:
            found.append(hidden(secret, word))
            secret = ""
        elif word in SECRET:
            found.append(word)
            secret = word
        elif option in SECRET and equals:
            found.append(f"{option}={hidden(option, value)}")
        elif word.startswith("-H") and len(word) > 2:
            found.append("-H" + hidden("-H", word[2:]))
        else:
            found.append(word)
    return found


def hidden(option: str, value: str) -> str:
    name, colon, _ = value.partition(":")
    return f"{name}: ..." if option != "--token" and colon else "..."
