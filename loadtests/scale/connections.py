"""Connections: busy ones, each with a request in flight, and idle ones beside a steady load."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import numpy as np

from loadtests.compare import load, sluice
from loadtests.compare.models import make_add
from loadtests.errors import BenchError
from loadtests.scale.drive import Bench, drive, note_run
from loadtests.scale.processes import raise_open_files, settled_bytes
from loadtests.scale.study import Study

SIZES: Final = (1, 4, 16, 64, 250, 1000, 2000)
QUICK: Final = (1, 4, 32)
FROM: Final = 16
"""Fewest idle ones: the memory of fewer is lost in what the gateway takes anyway."""
BUDGET_S: Final = 120.0
KIB: Final = 1024
CUT: Final = 64.0
"""Up to here more connections fill the gateway; from here on they wait for each other."""
EACH: Final = 10
"""Requests on a connection at least, so that hundreds of them are used and not only made."""
ROW: Final = np.zeros((1, 4), np.float32)
WAYS: Final = (("binary", "HTTP/1.1"), ("grpc", "gRPC"))
PATIENCE_S: Final = 20.0

_SETTINGS: Final = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS
_ACK: Final = b"\x00\x00\x00\x04\x01\x00\x00\x00\x00"


def greet(protocol: str, address: str) -> tuple[bytes, bytes]:
    """What a new connection says first, and what it says once it was answered."""
    if protocol == "grpc":
        return _PREFACE, _ACK
    return f"GET /v2/health/live HTTP/1.1\r\nHost: {address}\r\n\r\n".encode(), b""


@contextmanager
def idle(protocol: str, address: str, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that were answered once (HTTP/1.1) or have shaken hands (HTTP/2).

    Raises `BenchError` when one is refused or not answered.
    """
    host, _, port = address.rpartition(":")
    first, then = greet(protocol, address)
    with ExitStack() as stack:
        made = []
        try:
            for _ in range(count):
                connection = socket.create_connection((host, int(port)), PATIENCE_S)
                made.append(stack.enter_context(connection))
                connection.sendall(first)
            for connection in made:
                if not connection.recv(65536):
                    raise ConnectionError("closed by the gateway")
                if then:
                    connection.sendall(then)
        except OSError as error:
            raise BenchError(
                f"{protocol}: connection {len(made)} of {count} failed: {error}"
            ) from None
        yield made


def lost(connections: list[socket.socket]) -> int:
    """How many of them the gateway has closed meanwhile."""
    gone = 0
    for each in connections:
        each.setblocking(False)
        try:
            while data := each.recv(65536):
                del data
            gone += 1
        except BlockingIOError:
            pass
        except OSError:
            gone += 1
    return gone


def measure(bench: Bench) -> list[Study]:
    """The study."""
    study = Study("connections", "Connections at the same time", "connections")
    sizes = QUICK if bench.quick else SIZES
    if (files := raise_open_files(2 * max(sizes) + 500)) < max(sizes) + 200:
        raise BenchError(
            f"{max(sizes)} connections need more open files than the {files} allowed here; "
            f"type: ulimit -n {2 * max(sizes) + 500}"
        )
    folder = bench.work / "connections"
    model = make_add(folder / "add.onnx")
    sluice.write_directory(folder / "models", [model], 1)
    for protocol, name in WAYS:
        _busy(bench, study, protocol, name, sizes)
        _idle(bench, study, protocol, name, sizes)
    study.note(
        "Busy: each connection has one request in flight, so that above 64 latency is the "
        "number of connections over the rate; all of it is from when each had been answered once, "
        "without what it took to make them. Idle: so many more connections, open and silent, "
        "beside 64 that are busy (gRPC: 4 with 16 requests each)."
    )
    return [study]


def _busy(bench: Bench, study: Study, protocol: str, name: str, sizes: tuple[int, ...]) -> None:
    """Every connection with a request in flight."""
    rate = study.measure(f"requests/s, busy, {name}", "/s", rate=True, cuts=(CUT,))
    tail = study.measure(f"p99, busy, {name}", "µs", cuts=(CUT,))
    cpu = study.measure(f"processor time a request, busy, {name}", "µs", cuts=(CUT,))
    opening = study.measure(f"until each was answered once, {name}", "µs", cuts=(CUT,))
    folder = bench.work / "connections"
    with bench.serve(folder / "models", ["add"]) as server:
        what = load.target(protocol, (server.http, server.grpc), "add", ROW, folder / "body")
        for size in bench.within(study, sizes, f"busy connections, {name},"):
            log = folder / "requests.log"
            driven = drive(server, what, load.Shape(size), bench.seconds, log=log, each=EACH)
            for each in driven:
                rate.add(size, each.rate)
                cpu.add(size, each.cpu_us)
                if each.p99_us is not None:
                    tail.add(size, each.p99_us)
                if each.opening_us is not None:
                    opening.add(size, each.opening_us)
            note_run(study, f"{rate.name}, {size:,}", driven)


def _idle(bench: Bench, study: Study, protocol: str, name: str, sizes: tuple[int, ...]) -> None:
    """Silent connections: their memory on a fresh gateway, then 64 requests in flight beside."""
    memory = study.measure(f"memory of idle ones, {name}", "KiB")
    beside = study.measure(f"requests/s beside idle ones, {name}", "/s", rate=True)
    cpu = study.measure(f"processor time a request beside idle ones, {name}", "µs")
    folder = bench.work / "connections"
    shape = load.Shape(4, 16) if protocol == "grpc" else load.Shape(64)
    sizes = tuple(size for size in sizes if size >= FROM or bench.quick)
    with bench.serve(folder / "models", ["add"]) as server:
        address = server.grpc if protocol == "grpc" else server.http
        pid = server.process.pid
        # What the first connections load is no part of what one takes.
        with idle(protocol, address, 1):
            pass
        # Once: what one size leaves behind is used again by the next.
        before = settled_bytes(pid)
        for size in bench.within(study, sizes, f"memory of idle connections, {name},"):
            with idle(protocol, address, size):
                memory.add(size, max(settled_bytes(pid) - before, 0) / KIB)
        what = load.target(protocol, (server.http, server.grpc), "add", ROW, folder / "body")
        for size in bench.within(study, sizes, f"beside idle connections, {name},"):
            with idle(protocol, address, size) as connections:
                driven = drive(server, what, shape, bench.seconds)
                if gone := lost(connections):
                    raise BenchError(f"{name}: {gone} of {size} idle connections were closed")
            for each in driven:
                beside.add(size, each.rate)
                cpu.add(size, each.cpu_us)
            note_run(study, f"{beside.name}, {size:,}", driven)
    if memory.points:
        most, total = max(memory.points)
        study.note(f"An idle connection over {name} takes {total / most:.1f} KiB.")
