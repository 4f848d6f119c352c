"""What was measured on: the machine and the versions of everything that took part."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from loadtests.kernel import cores

from . import load
from .processes import ROOT, Server, get

PACKAGES = (
    "sluicegate",
    "onnxruntime",
    "numpy",
    "grpcio",
    "pygrpc-native",
    "uvicorn",
    "httptools",
    "uvloop",
    "starlette",
    "msgspec",
    "protobuf",
)


def describe() -> dict[str, str]:
    """CPU, cores, memory, kernel, and how busy the machine was before anything started."""
    cpu = platform.processor()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu,
        "cores": str(cores()),
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.2f} (1-minute average)",
    }


def versions() -> dict[str, str]:
    """Python, h2load, the packages of the gateway and the commit of the checkout."""
    found = {"python": platform.python_version(), "h2load": load.version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if head := _git("rev-parse", "--short", "HEAD"):
        changed = _git("status", "--porcelain", "--untracked-files=no")
        found["commit"] = head + (" and local changes" if changed else "")
    return found


def _git(*words: str) -> str:
    """What git says of the checkout; empty without git. It takes no locks."""
    if (git := shutil.which("git")) is None:
        return ""
    said = subprocess.run(
        [git, "--no-optional-locks", *words],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
    )
    return said.stdout.strip() if said.returncode == 0 else ""


def server_version(server: Server) -> str:
    """The version a server says it has (``GET /v2``)."""
    _, body = get(server.http, "/v2")
    with suppress(ValueError, AttributeError):
        said = json.loads(body)
        return f"{said.get('name', server.label)} {said.get('version', '?')}"
    return f"{server.label}, version not told"
