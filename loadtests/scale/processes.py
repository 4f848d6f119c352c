"""What the kernel says of a running server: processor time, memory, and its peak."""

from __future__ import annotations

import os
import resource
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from loadtests.compare.processes import resident_bytes, tree
from loadtests.kernel import status

TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Processor time of the process and its descendants, all threads, in seconds."""
    total = 0
    for member in tree(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def idle_cores(pid: int, seconds: float) -> float:
    """Cores that the process and its descendants use over the next ``seconds``."""
    began, before = time.monotonic(), cpu_seconds(pid)
    time.sleep(seconds)
    return (cpu_seconds(pid) - before) / (time.monotonic() - began)


def reset_peak(pid: int) -> None:
    """Lets the peak of the resident memory begin anew. Raises `PermissionError` where the process
    is somebody else's."""
    for member in tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            Path(f"/proc/{member}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """Largest resident memory since `reset_peak` (of each process its own, added up), in bytes."""
    return sum(status(member, "VmHWM") for member in tree(pid)) * 1024


def settled_bytes(pid: int, patience_s: float = 5.0, grain: int = 2**18) -> int:
    """Resident memory once it has stopped changing, or after ``patience_s``."""
    end = time.monotonic() + patience_s
    last = resident_bytes(pid)
    while time.monotonic() < end:
        time.sleep(0.25)
        now = resident_bytes(pid)
        if abs(now - last) < grain:
            return now
        last = now
    return last


def machine_cpu() -> float:
    """Processor time of everything on the machine, in seconds; 0 where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, irq, softirq = map(int, fields[:7])
        return (user + nice + system + irq + softirq) / TICKS
    return 0.0


def children_cpu() -> float:
    """Processor time of the child processes that have ended, in seconds: of the load generator,
    between two calls around it, as long as nothing else ends in between."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def raise_open_files(wanted: int) -> int:
    """Lets this process and its children have so many open files, or as many as the hard limit
    allows; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return wanted if soft == resource.RLIM_INFINITY else soft
