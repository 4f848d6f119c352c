"""What one child may use, and in which surroundings it runs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from gateway.errors import ModelLoadError
from gateway.model_settings import IsolationSettings, ModelSettings
from gateway.telemetry.logs import log

THREADS: Final = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS", "RAYON_NUM_THREADS",
)  # fmt: skip
"""What numerical libraries read to learn how many threads they may have."""
OF_ANOTHER_PYTHON: Final = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
MIB: Final = 1 << 20
_CGROUPS: Final = Path("/sys/fs/cgroup")


def isolation_of(settings: ModelSettings) -> IsolationSettings:
    """The settings of a model that is isolated."""
    isolation = settings.isolation
    return isolation if isinstance(isolation, IsolationSettings) else IsolationSettings()


def executes_code(settings: ModelSettings) -> str:
    """What of the settings decides which code runs, for `trust.code`; empty for none of it."""
    isolation = settings.isolation
    if not isinstance(isolation, IsolationSettings):
        return ""
    return "isolation.python" if isolation.python else "isolation.env" if isolation.env else ""


@dataclass(frozen=True)
class Surroundings:
    """Children with equal ones may stand in for each other."""

    python: str
    foreign: bool
    """Whether it is another environment than the gateway's."""
    env: tuple[tuple[str, str], ...]
    memory: int
    """Bytes; 0 = no bound."""
    cpus: int
    fork: bool = True
    """Whether it may be forked from a process that has imported what it needs."""

    def environment(self, ours: Mapping[str, str]) -> dict[str, str]:
        """The child's environment variables."""
        dropped = OF_ANOTHER_PYTHON if self.foreign else ()
        kept = {name: value for name, value in ours.items() if name not in dropped}
        if self.cpus:
            kept |= dict.fromkeys(THREADS, str(self.cpus))
        return {**kept, "PYTHONUNBUFFERED": "1", **dict(self.env)}


def surroundings(isolation: IsolationSettings, folder: Path) -> Surroundings:
    """`folder` is the model's, from which relative paths count. Raises `ModelLoadError`."""
    python = sys.executable
    if isolation.python is not None:
        python = interpreter(isolation.python, folder)
    for name, value in isolation.env.items():
        if not name or "=" in name or "\0" in name + value:
            raise ModelLoadError(f"isolation.env: {name!r} cannot be an environment variable")
    have = len(usable_cpus())
    if isolation.cpus > have:
        raise ModelLoadError(
            f"isolation.cpus is {isolation.cpus}, but the gateway may use {have}; set at most that"
        )
    return Surroundings(
        python=python,
        foreign=python != sys.executable,
        env=tuple(sorted(isolation.env.items())),
        memory=isolation.memory_mb * MIB,
        cpus=isolation.cpus,
        fork=isolation.fork,
    )


def interpreter(where: str, folder: Path) -> str:
    """The python of a virtual environment, or the one named. Raises `ModelLoadError`."""
    path = folder / Path(where).expanduser()
    # Not resolved: an environment's python is a link, and knows by its place where it belongs.
    found = path / "bin" / "python" if path.is_dir() else path
    if not os.access(found, os.X_OK) or found.is_dir():
        raise ModelLoadError(
            f"isolation.python: '{where}' is no virtual environment (there is no {found}); type: "
            f"python3 -m venv {path}"
        )
    return str(found)


def usable_cpus() -> list[int]:
    """Numbers of the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def some_cpus(count: int, turn: int) -> list[int]:
    """`count` processors, others at each turn, so that children spread over the machine."""
    every = usable_cpus()
    start = turn * count % len(every)
    return (every[start:] + every[:start])[:count]


class Group:
    """A cgroup (v2) for one child, below ours: its bounds hold for all that the child starts.

    Only where our own group has given its memory or cpu controller to groups below it, which
    an operator or a container runtime arranges; elsewhere the limits of the process remain.
    """

    _said: ClassVar = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def make(cls, name: str, memory: int, cpus: int, *, root: Path | None = None) -> Group | None:
        """`None` where that is not possible."""
        parent = own_group() if root is None else root
        if parent is None or not (memory or cpus):
            return None
        try:
            given = (parent / "cgroup.subtree_control").read_text().split()
            wanted: dict[str, str] = {}
            if memory and "memory" in given:
                wanted |= {"memory.max": str(memory), "memory.oom.group": "1"}
            if cpus and "cpu" in given:
                wanted["cpu.max"] = f"{cpus * 100_000} 100000"
            if not wanted:
                return None
            folder = parent / name
            folder.mkdir(exist_ok=True)
        except OSError:
            return None
        group = cls(folder)
        for file, value in wanted.items():
            try:
                (folder / file).write_text(value)
            except OSError as error:
                # A group with some of the bounds only would promise what does not hold.
                group.remove()
                cls._say_once(folder / file, error)
                return None
        return group

    @classmethod
    def _say_once(cls, file: Path, error: OSError) -> None:
        if not cls._said:
            cls._said = True
            log.warning(
                "isolation: no cgroups for children, the limits of the process remain: %s: %s",
                file, error.strerror,
            )  # fmt: skip

    def add(self, pid: int) -> None:
        """Moves a process into it."""
        with contextlib.suppress(OSError):
            (self._folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """After the last process in it has ended."""
        with contextlib.suppress(OSError):
            self._folder.rmdir()


def own_group(own: Path = Path("/proc/self/cgroup"), root: Path = _CGROUPS) -> Path | None:
    """The folder of this process's cgroup (v2)."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None or not (root / "cgroup.controllers").exists():
        return None
    return root / path.lstrip("/")
