"""How many processors this process may really use."""

from __future__ import annotations

import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Physical cores that affinity and the container's quota leave to this process, at least 1."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
    cores = _physical(allowed)
    quota = cgroup_quota()
    return max(1, cores if quota is None else min(cores, quota))


def _physical(cpus: set[int], root: Path = _CPUS) -> int:
    """Cores behind `cpus`: two threads of one core share its arithmetic units."""
    cores: set[str] = set()
    for cpu in cpus:
        try:
            text = (root / f"cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            return len(cpus)
        cores.add(text.strip())
    return len(cores)


def cgroup_quota(own: Path = _OWN_CGROUP, root: Path = _CGROUPS) -> int | None:
    """CPUs that the tightest cgroup v2 limit allows, rounded up; None without a limit."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None:
        return None
    group = root / path.lstrip("/")
    quotas: list[int] = []
    for folder in (group, *group.parents):
        quota = _read_quota(folder / "cpu.max")
        if quota is not None:
            quotas.append(quota)
        if folder == root:
            break
    return min(quotas, default=None)


def _read_quota(file: Path) -> int | None:
    try:
        quota, period = file.read_text().split()
        return None if quota == "max" else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return None
