"""Children that are forked: ours, within their bounds, unharmed by the end of who forked them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.config import BatchingConfig
from gateway.errors import UnknownModel
from gateway.isolation import forking, forks, priority
from gateway.isolation import messages as m
from gateway.isolation.adoption import adopting
from gateway.isolation.forking import ForkServer, NotForked
from gateway.isolation.guard import Guard
from gateway.isolation.launch import Ties
from gateway.isolation.limits import Surroundings, usable_cpus
from gateway.isolation.nursery import Nursery
from gateway.isolation.priority import LOADING, Shares
from gateway.isolation.process import ChildProcess
from tests.integration.test_isolation import PATIENCE, Rig, runtimes  # noqa: F401
from tests.support.gateway import ROOT
from tests.support.misbehaving import NUMBERS, write_misbehaving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")
HERE = Surroundings(sys.executable, False, (), 0, 0)


@contextlib.asynccontextmanager
async def nursery() -> AsyncIterator[Nursery]:
    made = Nursery(asyncio.get_running_loop(), BatchingConfig())
    try:
        yield made
    finally:
        await made.close()


async def until(condition: Any, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        await asyncio.sleep(0.005)


async def answers(child: ChildProcess) -> None:
    """Until a child has shown that it lives."""
    heard = asyncio.Event()
    child.on_message = lambda message: heard.set()
    child.send((m.PRELOAD, ()))
    async with asyncio.timeout(PATIENCE):
        await heard.wait()


async def server_of(made: Nursery, around: Surroundings = HERE, *modules: str) -> ForkServer:
    found = await made._forks.server(around, modules)
    assert found is not None
    return found


def test_a_forked_child_is_as_one_that_was_started() -> None:
    around = Surroundings(sys.executable, False, (("OF_ITS_OWN", "1"),), 900 << 20, 1)

    async def main() -> None:
        async with nursery() as made:
            one, two = [await made._start(around, "m", ()) for _ in range(2)]
            # Other bounds of memory need no other fork server; other variables do.
            await made._start(HERE, "m", ())
            assert len(made._forks._servers) == 2
            server = await server_of(made, around)
            assert (await server_of(made, replace(around, memory=0))).pid == server.pid
            started = await made._start(replace(around, fork=False), "m", ())
            await answers(started)
            for child in (one, two):
                await answers(child)
                seen = psutil.Process(child.pid)
                assert seen.ppid() == os.getpid()
                assert os.getpgid(child.pid) == os.getsid(child.pid) == child.pid
                assert seen.rlimit(resource.RLIMIT_DATA) == (900 << 20,) * 2
                assert len(seen.cpu_affinity()) == 1
                assert seen.nice() == psutil.Process().nice()
                assert seen.environ()["OF_ITS_OWN"] == "1"
                assert seen.environ()["OMP_NUM_THREADS"] == "1"
                assert seen.cwd() == str(Path.cwd())
                # Nothing that belongs to the fork server, or to another child.
                assert seen.num_fds() == psutil.Process(started.pid).num_fds()
                assert os.readlink(f"/proc/{child.pid}/fd/1") != (
                    os.readlink(f"/proc/{started.pid}/fd/1")
                )
            if len(usable_cpus()) > 1:
                assert psutil.Process(one.pid).cpu_affinity() != (
                    psutil.Process(two.pid).cpu_affinity()
                )

    asyncio.run(main())


def test_how_a_forked_child_ended_is_known() -> None:
    async def main() -> None:
        async with nursery() as made:
            for number, told in ((signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV")):
                child = await made._start(HERE, "m", ())
                await answers(child)
                os.kill(child.pid, number)
                await until(lambda c=child: c.dead, "its end")
                assert f"ended by {told}" in child.cause
            child = await made._start(HERE, "m", ())
            child.ask_to_close()
            await asyncio.to_thread(child.wait_closed)
            await until(lambda: child.dead, "its end")
            assert "exited with code 0" in child.cause
            assert not psutil.pid_exists(child.pid)

    asyncio.run(main())


def test_models_outlive_their_fork_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_misbehaving(tmp_path / "m")
    caplog.set_level(logging.WARNING)

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            made = rig.gateway.nursery
            assert not made._spares, "a fork server that has imported everything is enough"
            pids = set()
            for _ in range(2):
                (task,) = made._forks._servers.values()
                server = task.result()
                assert server is not None
                pid = rig.status("m")["pid"]
                os.kill(server.pid, signal.SIGKILL)
                assert (await rig.ask("m", [[1, 2]])).tolist() == [[2, 4]]
                assert rig.status("m")["pid"] == pid
                # At once, while the next fork server is not there yet.
                os.kill(pid, signal.SIGKILL)
                assert (await rig.ask("m", [[1, 2]])).tolist() == [[2, 4]]
                await rig.until(
                    lambda s=server: (
                        [
                            t
                            for t in made._forks._servers.values()
                            if t.done() and t.result() not in (s, None)
                        ]
                        or made._forks._paused
                    ),
                    "another fork server, or the pause after the second crash",
                )
                pids.add(rig.status("m")["pid"])
            assert len(pids) == 2

    asyncio.run(main())
    said = [record.getMessage() for record in caplog.records if "fork server" in record.message]
    assert len(said) == 1, said


def fork_for_ever(server: ForkServer) -> None:
    while True:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            child = server.fork(HERE, Ties(theirs.fileno(), theirs.fileno(), 0, []))
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert child.stdout is not None
        child.stdout.close()


def test_a_fork_server_is_killed_at_random_moments() -> None:
    """Whatever it did just then: a child that is ours, or none, and nothing is left."""
    chance = random.Random(7)
    ourselves = psutil.Process()
    fds, others = ourselves.num_fds(), set(ourselves.children())
    for _ in range(4):
        server = ForkServer(HERE, ())
        server.end.setblocking(True)
        assert server.end.recv(1 << 16) == b"[]"
        server.end.setblocking(False)
        killer = threading.Timer(chance.uniform(0.0, 0.03), server.kill)
        killer.start()
        with pytest.raises(NotForked):
            fork_for_ever(server)
        killer.join()
        server.close()
    # Also what was being forked has ended, and nobody has to wait for it.
    end = time.monotonic() + PATIENCE
    while left := set(ourselves.children()) - others:
        assert time.monotonic() < end, left
        time.sleep(0.01)
    assert ourselves.num_fds() == fds


def test_a_fork_that_comes_too_late_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ourselves = psutil.Process()
    before = set(ourselves.children())
    server = ForkServer(HERE, ())
    monkeypatch.setattr(server, "kill", lambda: None)
    server.end.setblocking(True)
    assert server.end.recv(1 << 16) == b"[]"
    monkeypatch.setattr(forking, "FORK_SECONDS", 0.0)
    ours, theirs = socket.socketpair()
    # It becomes ours, since another is being forked all the while, and its lifeline stays.
    with ours, theirs, adopting:
        for _ in range(3):
            with pytest.raises(NotForked, match="has not answered"):
                server.fork(HERE, Ties(theirs.fileno(), theirs.fileno(), 0, []))
        threads = [t for t in threading.enumerate() if t.name == "sluice-late-fork"]
        assert len(threads) == 3
        for thread in threads:
            thread.join(PATIENCE)
        assert len(set(ourselves.children()) - before) == 1
    monkeypatch.undo()
    server.close()
    assert set(ourselves.children()) == before


STARTING = """
import subprocess, time
subprocess.Popen(["sleep", "1000"])
subprocess.Popen(["sleep", "1000"], process_group=0)
print("started", flush=True)
time.sleep(1000)
"""


def test_what_a_child_has_started_leaves_no_zombie() -> None:
    """What it has started becomes ours if it ends while another is being forked."""
    ourselves = psutil.Process()
    before = set(ourselves.children())

    def start(around: Surroundings, ties: Ties) -> Any:
        return subprocess.Popen(
            [sys.executable, "-S", "-c", STARTING], stdout=subprocess.PIPE, start_new_session=True
        )

    async def main() -> None:
        guard = Guard()
        child = ChildProcess(asyncio.get_running_loop(), HERE, "m", guard, start)
        child.begin()
        await until(lambda: "started" in child.said, "what it starts")
        (inside, outside) = sorted(
            psutil.Process(child.pid).children(), key=lambda each: os.getpgid(each.pid) == each.pid
        )
        with adopting:
            os.kill(child.pid, signal.SIGSEGV)
            await until(lambda: child.dead, "its end")
            assert "SIGSEGV" in child.cause
            assert outside.ppid() == os.getpid() and not inside.is_running()
        outside.kill()  # one in a group of its own gets away; and is seen to later
        with adopting:
            await until(lambda: outside.status() == psutil.STATUS_ZOMBIE, "its end")
        assert not psutil.pid_exists(outside.pid)
        await asyncio.to_thread(guard.close)

    # The exit codes of others stay theirs, also of those with a session of their own.
    others = [subprocess.Popen(["false"], start_new_session=own) for own in (False, True)]
    asyncio.run(main())
    assert [other.wait() for other in others] == [1, 1]
    assert set(ourselves.children()) == before


FORKING = """
import socket, sys
from gateway.isolation.forking import ForkServer
from gateway.isolation.launch import Ties
from gateway.isolation.limits import Surroundings

around = Surroundings(sys.executable, False, (), 0, 0)
server = ForkServer(around, ())
server.end.setblocking(True)
server.end.recv(100)
kept = []
print(flush=True)
while True:
    kept.append(socket.socketpair())
    theirs = kept[-1][1].fileno()
    kept.append(server.fork(around, Ties(theirs, theirs, 0, [])))
"""


def test_nothing_outlives_a_gateway_that_is_killed_while_it_forks() -> None:
    chance = random.Random(11)
    for _ in range(2):
        mark = f"{os.getpid()}-{chance.random()}"
        forking = subprocess.Popen(
            [sys.executable, "-c", FORKING], stdout=subprocess.PIPE, cwd=ROOT,
            env={**os.environ, "SLUICE_TEST_MARK": mark},
        )  # fmt: skip
        with forking:
            assert forking.stdout is not None
            assert forking.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.1))
            assert len(marked(mark)) >= 2
            forking.kill()
        end = time.monotonic() + PATIENCE
        while left := marked(mark):
            assert time.monotonic() < end, left
            time.sleep(0.01)


def marked(mark: str) -> list[int]:
    """Processes that have inherited a variable."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error, OSError):
            if psutil.Process(pid).environ().get("SLUICE_TEST_MARK") == mark:
                found.append(pid)
    return found


def test_a_fork_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "FORK_SECONDS", 0.2)

    async def main() -> None:
        async with nursery() as made:
            server = await server_of(made)
            os.kill(server.pid, signal.SIGSTOP)
            await answers(await made._start(HERE, "m", ()))
            assert not psutil.pid_exists(server.pid) or server._process.wait(PATIENCE) == -9

    asyncio.run(main())


@pytest.mark.parametrize(
    "error", [OSError(11, "no processes are left"), RuntimeError("can't start new thread")]
)
def test_without_fork_servers_children_are_programs(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object) -> Any:
        raise error

    monkeypatch.setattr(forking, "run", none)
    caplog.set_level(logging.WARNING)

    async def main() -> None:
        async with nursery() as made:
            for _ in range(2):
                await answers(await made._start(HERE, "m", ()))

    asyncio.run(main())
    (said,) = [record.getMessage() for record in caplog.records]
    assert str(error) in said


def test_imports_that_start_threads_are_left_to_the_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "starts_a_thread.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    async def main() -> None:
        async with nursery() as made:
            modules = ("starts_a_thread",)
            child = await made._start(HERE, "m", modules)
            await answers(child)
            assert not made._forks.imported(HERE, modules)
            assert made._forks.imported(HERE, ())
            assert psutil.Process(child.pid).ppid() == os.getpid()

    asyncio.run(main())


def test_packages_that_are_installed_later_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    packages = tmp_path / "some-packages"
    packages.mkdir()
    monkeypatch.syspath_prepend(packages)
    caplog.set_level(logging.WARNING)

    async def main() -> None:
        async with nursery() as made:
            before = await server_of(made)
            (packages / "new").mkdir()
            await answers(await made._start(HERE, "m", ()))
            after = await server_of(made)
            assert after.pid != before.pid
            # As for variables that the gateway's process gets.
            monkeypatch.setenv("SLUICE_TEST_NEW", "1")
            child = await made._start(HERE, "m", ())
            assert psutil.Process(child.pid).environ()["SLUICE_TEST_NEW"] == "1"

    asyncio.run(main())
    assert not caplog.records


def test_children_do_not_share_random_numbers() -> None:
    import numpy as np

    from gateway.isolation import forkserver

    state = np.random.get_state()
    try:
        np.random.seed(3)
        first = np.random.random()
        np.random.seed(3)
        forkserver._seed_anew()
        assert np.random.random() != first
    finally:
        np.random.set_state(state)


def test_a_fork_server_without_models_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "LINGER_SECONDS", 0.05)

    async def main() -> None:
        async with nursery() as made:
            made._forks.use(HERE, ())
            server = await server_of(made)
            await asyncio.sleep(0.1)
            assert made._forks._servers
            made._forks.leave(HERE, ())
            await until(lambda: not made._forks._servers, "it to be let go")
            await until(lambda: not psutil.pid_exists(server.pid), "its end")

    asyncio.run(main())


def test_who_serves_goes_before_who_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self/autogroup").exists():
        pytest.skip("this kernel has no autogroups")
    asked: list[tuple[int, int]] = []
    set_group = priority.set_group

    def record(pid: int, nice: int) -> bool:
        asked.append((pid, nice))
        return set_group(pid, nice)

    monkeypatch.setattr(priority, "set_group", record)
    write_misbehaving(tmp_path / "m")

    def nice(pid: int) -> int:
        return int(Path(f"/proc/{pid}/autogroup").read_text().split()[-1])

    async def main() -> None:
        async with Rig(tmp_path, **{"registry.poll_seconds": 0.1}) as rig:

            def ready() -> bool:
                try:
                    return bool(rig.status("n")["state"] == "ready")
                except UnknownModel:
                    return False

            assert not asked, "the first has nobody to give way to"
            write_misbehaving(tmp_path / "n")
            await rig.until(ready, "the second")
            child = rig.dispatcher("n")._model.child
            await rig.until(lambda: nice(child.pid) == 0, "its share")
            assert asked[0] == (child.pid, LOADING) and asked[-1] == (child.pid, 0)
            for wanted in (5, 0, 10, 0):  # faster than the kernel takes it
                rig.gateway.nursery._shares.want(child, wanted)
            await rig.until(lambda: nice(child.pid) == 0 == child.nice, "its share")
            # Callers wait for one that has crashed.
            asked.clear()
            os.kill(child.pid, signal.SIGKILL)
            assert (await rig.ask("n", [[1, 2]])).tolist() == [[2, 4]]
            assert not asked

    asyncio.run(main())


class Someone:
    """A child as `Shares` knows it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.nice = 0
        self.ended = threading.Event()


def test_many_that_load_do_not_keep_a_share_from_one_that_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free, told = True, []

    def set_group(pid: int, nice: int) -> bool:
        nonlocal free
        if free:
            told.append((pid, nice))
        was, free = free, False
        return was

    monkeypatch.setattr(priority, "set_group", set_group)
    monkeypatch.setattr(priority, "AGAIN_SECONDS", 0.0)

    async def main() -> None:
        nonlocal free
        shares = Shares(asyncio.get_running_loop())
        everyone: list[Any] = [Someone(pid) for pid in range(5)]
        for child in everyone:
            shares.want(child, LOADING)
        everyone[3].ended.set()
        shares.want(everyone[4], 0)  # its load was so quick that nothing was changed
        shares.want(everyone[0], 0)
        while shares._wanted:
            free = True
            await asyncio.sleep(0)
        assert told == [(0, LOADING), (0, 0), (1, LOADING), (2, LOADING)]

    asyncio.run(main())


def test_a_model_that_dies_is_forked_anew_each_time(tmp_path: Path) -> None:
    write_misbehaving(tmp_path / "m")

    async def main() -> None:
        async with Rig(tmp_path) as rig:
            for _ in range(2):
                crash = rig.call("m", [[NUMBERS["leave"], 0]])
                await asyncio.wait([crash], timeout=PATIENCE)
                assert crash.exception() is not None
                assert (await rig.ask("m", [[1, 2]])).tolist() == [[2, 4]]
                assert psutil.Process(rig.status("m")["pid"]).ppid() == os.getpid()
            assert "exited with code" in rig.status("m")["last_crash"]

    asyncio.run(main())
