"""Regions of shared memory: one call at a time, and never again after a call that ended badly."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from runtimes.remote import triton_memory
from runtimes.remote.triton_memory import FOLDER, NoRoom, Region, Regions

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="POSIX shared memory as on Linux")


class Server:
    """What a Triton server knows of regions."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.busy: set[str] = set()
        self.refusing: Exception | None = None
        self.asked = 0

    async def register(self, region: Region) -> None:
        await asyncio.sleep(0)
        if self.refusing is not None:
            raise self.refusing
        assert region.path.stat().st_size == region.size  # it could be mapped
        self.known.add(region.name)

    async def unregister(self, region: Region) -> bool:
        self.asked += 1
        if self.refusing is not None:
            raise self.refusing
        if region.name in self.busy:
            return False
        self.known.discard(region.name)
        return True


def run(test: Callable[[Server, Regions], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        server = Server()
        regions = Regions(server.register, server.unregister)
        await test(server, regions)
        await regions.close()
        assert not files()
        assert not server.known

    asyncio.run(main())


def kept(regions: Regions) -> tuple[int, int]:
    status = regions.status()
    return status["regions"], status["bytes"]


def files() -> list[str]:
    return [name for name in os.listdir(FOLDER) if name.startswith(f"sluicegate-{os.getpid()}-")]


@pytest.mark.parametrize(("asked", "given"), [(1, 2), (65536, 65536), (65537, 131072)])
def test_sizes_are_powers_of_two_and_names_are_gone_at_once(asked: int, given: int) -> None:
    async def test(server: Server, regions: Regions) -> None:
        region = await regions.take(asked)
        assert region.size == given
        assert server.known == {region.name}
        assert not files()
        region.map[:1] = b"x"
        regions.give_back(region)
        assert kept(regions) == (1, given)

    run(test)


def test_a_region_is_for_one_call_at_a_time() -> None:
    async def test(server: Server, regions: Regions) -> None:
        first, second = await asyncio.gather(regions.take(4096), regions.take(4096))
        assert first is not second
        regions.give_back(first)
        assert await regions.take(3000) is first
        assert await regions.take(4096) not in (first, second)
        regions.give_back(first)
        regions.give_back(second)
        assert await regions.take(100) not in (first, second)  # of another size

    # What was taken and not given back is unregistered by nobody; the server lets go of it.
    async def whole(server: Server, regions: Regions) -> None:
        await test(server, regions)
        server.known.clear()

    run(whole)


def test_after_a_call_that_ended_badly_a_region_is_never_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_memory, "PAUSE", 0.001)

    async def test(server: Server, regions: Regions) -> None:
        region = await regions.take(4096)
        server.busy.add(region.name)
        regions.drop(region)
        other = await regions.take(4096)
        assert other is not region
        regions.give_back(other)
        while server.asked < 3:
            await asyncio.sleep(0.001)
        assert region.name in server.known  # refused: its call is still at work there
        server.busy.clear()
        while region.name in server.known:
            await asyncio.sleep(0.001)
        assert regions.status()["regions"] == 1

    run(test)


def test_regions_are_given_up_at_the_end_even_if_the_server_is_gone() -> None:
    async def test(server: Server, regions: Regions) -> None:
        regions.give_back(await regions.take(4096))
        regions.drop(await regions.take(8192))
        server.refusing = ConnectionError("gone")
        await regions.close()
        server.known.clear()
        assert kept(regions) == (0, 0)

    run(test)


def test_a_call_may_end_after_the_end() -> None:
    async def test(server: Server, regions: Regions) -> None:
        region = await regions.take(4096)
        await regions.close()
        regions.give_back(region)
        assert kept(regions) == (0, 0)
        server.known.clear()

    run(test)


def test_a_server_that_was_started_again_knows_nothing() -> None:
    async def test(server: Server, regions: Regions) -> None:
        region = await regions.take(4096)
        regions.give_back(region)
        server.known.clear()
        regions.forget()
        other = await regions.take(4096)
        assert other is not region
        assert server.known == {other.name}
        regions.give_back(other)

    run(test)


def test_a_refused_registration_leaves_nothing() -> None:
    async def test(server: Server, regions: Regions) -> None:
        server.refusing = PermissionError("no")
        with pytest.raises(PermissionError):
            await regions.take(4096)
        assert not files()
        assert kept(regions) == (0, 0)

    run(test)


def test_being_cancelled_while_registering_leaves_nothing() -> None:
    async def test(server: Server, regions: Regions) -> None:
        task = asyncio.ensure_future(regions.take(4096))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not files()
        assert kept(regions) == (0, 0)

    run(test)


def test_full_memory_is_an_error_and_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)

    async def test(server: Server, regions: Regions) -> None:
        with pytest.raises(OSError, match="No space"):
            await regions.take(4096)
        assert not files()

    run(test)


def test_not_more_than_so_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_memory, "MAX_IDLE", 3 * 4096)

    async def test(server: Server, regions: Regions) -> None:
        taken = [await regions.take(4096) for _ in range(5)]
        for region in taken:
            regions.give_back(region)
        assert kept(regions) == (3, 3 * 4096)

    run(test)


def test_what_a_caller_chooses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_memory, "MAX_REGION", 8192)
    monkeypatch.setattr(triton_memory, "MAX_TOTAL", 16384)
    monkeypatch.setattr(triton_memory, "PAUSE", 0.001)

    async def test(server: Server, regions: Regions) -> None:
        with pytest.raises(NoRoom):
            await regions.take(8193)
        small = [await regions.take(4096) for _ in range(3)]
        with pytest.raises(NoRoom):
            await regions.take(8192)
        for region in small:
            server.busy.add(region.name)
            regions.give_back(region)
        # What is kept gives way, but it counts until the server has let go of it.
        with pytest.raises(NoRoom):
            await regions.take(8192)
        assert regions.status() == {"regions": 0, "bytes": 0, "leaving": 3}
        with pytest.raises(NoRoom):
            await regions.take(8192)
        server.busy.clear()
        while regions.status()["leaving"]:
            await asyncio.sleep(0.001)
        regions.give_back(await regions.take(8192))

    run(test)


def test_the_server_is_asked_until_it_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_memory, "PAUSE", 0.0001)
    monkeypatch.setattr(triton_memory, "MAX_PAUSE", 0.001)

    async def test(server: Server, regions: Regions) -> None:
        region = await regions.take(4096)
        server.busy.add(region.name)
        regions.drop(region)
        while server.asked < 20:  # it was given up after 8 times
            await asyncio.sleep(0.001)
        server.busy.clear()
        while regions.status()["leaving"]:
            await asyncio.sleep(0.001)
        assert not server.known

    run(test)


def test_large_regions_are_made_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_memory, "INLINE", 4096)
    made: list[int] = []
    gate = threading.Event()
    allocate = os.posix_fallocate

    def slowly(descriptor: int, at: int, size: int) -> None:
        made.append(threading.get_ident())
        gate.wait(30)
        allocate(descriptor, at, size)

    monkeypatch.setattr(os, "posix_fallocate", slowly)

    async def test(server: Server, regions: Regions) -> None:
        first = asyncio.ensure_future(regions.take(4096))
        gone = asyncio.ensure_future(regions.take(4096))
        while len(made) < 2:
            await asyncio.sleep(0.001)
        gone.cancel()
        await asyncio.sleep(0)
        gate.set()
        regions.give_back(await first)
        with pytest.raises(asyncio.CancelledError):
            await gone
        while files():  # of the one that nobody waits for
            await asyncio.sleep(0.001)
        assert threading.get_ident() not in made
        assert kept(regions) == (1, 4096)

    run(test)
