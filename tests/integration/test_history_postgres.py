"""The record in a real PostgreSQL, which goes away and comes back."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import wait_until
from tests.support.history import World
from tests.support.postgres import Postgres, postgres, program

pytest.importorskip("psycopg")
pytestmark = pytest.mark.skipif(program("initdb") is None, reason="PostgreSQL is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory() as folder, postgres(Path(folder)) as server:
        yield server


def test_a_database_that_goes_away_loses_nothing(server: Postgres, tmp_path: Path) -> None:
    async def main() -> None:
        world, others = World(), World()
        recorder = world.recorder(tmp_path / "one", url=server.url)
        other = others.recorder(tmp_path / "two", url=server.url)
        await asyncio.gather(recorder.start("g"), other.start("h"))
        world.ready("m", "1")
        others.ready("m", "1")
        with recorder.because("m", "split", "ada", "before \0 \ud800"):
            world.ready("m", "2")
        found = await recorder.changes("m")
        assert found[0].message == "before � ?"
        await asyncio.to_thread(server.stop)
        with recorder.because("m", "split", "ada", "meanwhile"):
            world.ready("m", "3")
        writer = recorder._writer
        assert writer is not None
        await asyncio.to_thread(wait_until, lambda: writer.trouble, "it to be missed")
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(wait_until, lambda: not writer.trouble, "it to be used again")
        await other.changes("m")
        with other.because("m", "split", "bob", "after"):
            others.ready("m", "4")
        wait = other._writer
        assert wait is not None
        await asyncio.to_thread(wait_until, lambda: not wait.trouble, "it to be used again")
        found = await other.changes("m")
        assert [c.message for c in found if c.action == "split"] == [
            "after", "meanwhile", "before � ?",
        ]  # fmt: skip
        past = await recorder.past("m", found[0].at)
        assert [(m.gateway, dict(m.change.after.shares)) for m in past.moments] == [
            ("g", {"3": 100.0}), ("h", {"4": 100.0}),
        ]  # fmt: skip
        # The same name, and nobody holds its journal: it must have crashed.
        world.on_change.clear()
        recorder._writer = None
        await asyncio.to_thread(writer.close)
        again = world.recorder(tmp_path / "three", url=server.url)
        await again.start("g")
        actions = [(c.action, c.gateway) for c in await again.changes("", limit=3)]
        assert ("crash", "g") in actions
        assert ("start", "g") in actions
        await again.close()
        await other.close()

    asyncio.run(main())
