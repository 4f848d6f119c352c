"""The record's ways through trouble: locked, full, damaged and missing databases, and crashes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from gateway.errors import ConfigError, RegistryError
from gateway.history import store as stores
from gateway.history.base import CRASH, START, STOP, Change, Served
from gateway.history.documents import row_of
from gateway.history.journal import new_journal
from gateway.history.recorder import Recorder
from gateway.history.store import Away, Broken, Unusable, open_file, open_store, read_file
from gateway.history.throttle import BURST
from tests.support.gateway import PATIENCE, wait_until
from tests.support.history import SOURCE, World


def entry(seq: int, run: str = "r", **more: Any) -> Change:
    fields: dict[str, Any] = {"model": "m", "action": "served", "who": "", "message": str(seq)}
    fields |= {"before": Served(), "after": Served(), "at": float(seq), "gateway": "g"}
    return Change(**(fields | more), run=run, seq=seq)


def run(test: Callable[[Any], Awaitable[None]], state: Path, **config: Any) -> World:
    """Runs `test` with a recorder between start and stop."""
    world = World()

    async def main() -> None:
        recorder = world.recorder(state, **config)
        await recorder.start("g")
        try:
            await test((world, recorder))
        finally:
            await recorder.close()

    asyncio.run(main())
    return world


def written(path: Path, model: str = "") -> list[Change]:
    store = read_file(path / "history.db")
    try:
        return store.changes(model, 1000, None)[::-1]
    finally:
        store.close()


def holder(file: Path) -> subprocess.Popen[bytes]:
    """Another process that keeps a sqlite file locked until its input ends."""
    code = (
        "import sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(file)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what)


# --- what entries say


def test_entries_say_who_what_when_and_why(tmp_path: Path) -> None:
    async def test(given: tuple[World, Recorder]) -> None:
        world, recorder = given
        world.ready("m", "1")
        world.split("m", weights={"1": 90, "2": 10})
        with recorder.because("m", "split", "ada", "try \0 the \ud800 new one"):
            world.ready("m", "2")
        with recorder.because("m", "pause", "bob", "holiday"):
            pass
        world.ready("m", "2", files="b")
        world.failed("m", "2")
        world.split("m", weights={"1": 90, "2": 10}, labels={"blue": "1"})
        world.gone("m", "2")
        found = await recorder.changes("m")
        assert [(c.action, c.who, c.message) for c in reversed(found)] == [
            ("served", SOURCE, "version 1 became ready"),
            ("served", SOURCE, "the split or the labels changed in the source"),
            ("split", "ada", "try � the ? new one"),
            ("pause", "bob", "holiday"),
            ("served", SOURCE, "version 2 was loaded anew with other files or settings"),
            ("served", SOURCE, "version 2 failed: no memory"),
            ("served", SOURCE, "the split or the labels changed in the source"),
        ]
        split = found[4]
        assert (split.before.shares, split.after.shares) == ({"1": 100.0}, {"1": 90.0, "2": 10.0})
        assert split.after.versions["2"]["source"] == "s3://models/m/2"
        assert split.after.versions["2"]["runtime"] == "onnx"
        assert split.after.versions["2"]["digest"] != found[2].after.versions["2"]["digest"]
        assert split.after.labels == {"canary": "2"}
        assert split.after.traffic.weights == {"1": 90.0, "2": 10.0}

    run(test, tmp_path)
    assert [c.action for c in written(tmp_path)][:: len(written(tmp_path)) - 1] == [START, STOP]
    assert not list((tmp_path / "history").iterdir())


def test_a_block_that_raises_is_no_change_of_its_maker(tmp_path: Path) -> None:
    async def test(given: tuple[World, Recorder]) -> None:
        world, recorder = given
        world.ready("m", "1")
        for meanwhile in ((), ("2",)):
            with suppress(ValueError), recorder.because("m", "split", "ada", "x"):
                for version in meanwhile:
                    world.ready("m", version)  # by chance
                raise ValueError
        found = await recorder.changes("m")
        # What happened before it failed is there, once.
        assert [(c.who, c.message) for c in found] == [
            ("ada", "x"), (SOURCE, "version 1 became ready"),
        ]  # fmt: skip

    run(test, tmp_path)


def test_what_happens_in_a_long_change_is_there_at_once(tmp_path: Path) -> None:
    async def test(given: tuple[World, Recorder]) -> None:
        world, recorder = given
        world.ready("m", "1", tell=False)
        with recorder.because("m", "load", "ada", "more"):
            world.ready("m", "2")
            with recorder.because("m", "split", "bob", "half"):
                world.split("m", weights={"1": 1, "2": 1})
            found = await recorder.changes("m")
            assert [(c.action, c.who) for c in found] == [
                ("split", "bob"), ("load", "ada"), ("served", SOURCE),
            ]  # fmt: skip
            assert found[1].after.shares == found[0].before.shares == {"2": 100.0}
        assert len(await recorder.changes("m")) == 3
        with recorder.because("m", "load", "ada", ""):
            for n in range(2 * BURST):  # it does not flood the record either
                world.ready("m", "2", files=n)
        assert BURST <= len(await recorder.changes("m")) <= BURST + 4

    run(test, tmp_path)


def test_models_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    async def test(given: tuple[World, Recorder]) -> None:
        world, recorder = given
        recorder._clock = lambda: now
        for now in (4e9 + 10_000 * step for step in range(1000)):
            name = f"m{now}"
            world.ready(name, "1")
            world.gone(name, "1")
            del world.models[name]
            with recorder.because(name, "load", "ada", ""):
                pass
            await asyncio.sleep(0)
        assert (recorder._last, recorder._sources, recorder._asked) == ({}, {}, {})
        assert len(recorder._throttles) < 200
        entry = (await recorder.changes("", limit=3))[1]
        assert (entry.action, entry.who) == ("served", SOURCE)

    run(test, tmp_path)


def test_a_place_without_a_history_is_left_as_it_is(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "such.db"
    with pytest.raises(ConfigError, match="there is no history at"):
        open_store(f"sqlite:///{missing}", read_only=True)
    assert not missing.parent.exists()
    empty = tmp_path / "empty.db"
    empty.touch()
    store = open_store(f"sqlite:///{empty}", read_only=True)
    with pytest.raises(RegistryError, match="there is no history in"):
        store.changes("", 1, None)
    store.close()


def test_versions_that_come_and_go_do_not_flood_it(tmp_path: Path) -> None:
    async def test(given: tuple[World, Recorder]) -> None:
        world, recorder = given
        for _ in range(500):
            world.ready("m", "1")
            world.failed("m", "1", "crashed")
            world.ready("other", "1")
        with recorder.because("m", "split", "ada", "enough"):
            world.ready("m", "2")
        found = list(reversed(await recorder.changes("m", limit=1000)))
        assert len(found) == BURST + 2
        assert sum(change.count for change in found) == 1001
        many, asked = found[-2:]
        assert many.count == 1000 - BURST
        assert many.message.startswith("980 changes in ")
        assert "version 1 failed: crashed" in many.message
        assert many.since <= many.at <= asked.at
        assert (many.before, asked.before) == (found[-3].after, many.after)
        assert (asked.who, asked.count) == ("ada", 1)
        # Of a model that others' trouble is nothing to.
        assert len(await recorder.changes("other")) == 1

    run(test, tmp_path)


# --- a database in trouble


def test_a_locked_database_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(stores.BOUNDS, "sqlite", {"timeout": 0.05})
    caplog.set_level(logging.INFO, "sluice")

    async def test(given: tuple[World, Recorder]) -> None:
        world, recorder = given
        world.ready("m", "1")
        assert len(await recorder.changes("m")) == 1
        other = holder(tmp_path / "history.db")
        assert other.stdin is not None
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == b"locked\n"
            for version in range(2, 12):
                with recorder.because("m", "split", "ada", str(version)):
                    world.ready("m", str(version))
            writer = recorder._writer
            assert writer is not None
            await until(lambda: "locked" in writer.trouble, "the writer to notice")
            # Not in memory alone: a kill now would lose nothing either.
            journal = tmp_path / "history" / f"{writer.run}.jsonl"
            await until(lambda: journal.read_bytes().count(b"\n") == 10, "the journal")
        finally:
            other.stdin.close()
            other.wait(PATIENCE)
            other.stdout.close()
        await until(lambda: not writer.trouble, "the writer to go on")
        found = await recorder.changes("m")
        assert [c.message for c in found if c.who == "ada"] == [str(v) for v in range(11, 1, -1)]
        assert journal.read_bytes() == b""

    run(test, tmp_path)
    said = [r.message for r in caplog.records if "history" in r.message]
    assert len(said) == 2, said  # one line when it went away, one when it came back


def test_what_is_left_at_the_stop_is_taken_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stores.BOUNDS, "sqlite", {"timeout": 0.05})
    open_file(tmp_path / "history.db").open_runs()

    async def leave(given: tuple[World, Recorder]) -> None:
        world, recorder = given
        with recorder.because("m", "split", "ada", "kept"):
            world.ready("m", "1")

    with closing(sqlite3.connect(tmp_path / "history.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        run(leave, tmp_path)
        assert written(tmp_path) == []

    async def nothing(given: tuple[World, Recorder]) -> None:
        assert [c.message for c in await given[1].changes("m")] == ["kept"]

    run(nothing, tmp_path)
    # A stop that the journal tells of is a stop.
    assert [c.action for c in written(tmp_path)] == [START, "split", STOP, START, STOP]


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    async def test(given: tuple[World, Recorder]) -> None:
        world, recorder = given
        world.ready("m", "1")
        await recorder.changes("m")
        writer = recorder._writer
        assert writer is not None
        full = True

        def limit(connection: Any, *_: Any) -> None:
            pages = connection.execute("PRAGMA page_count").fetchone()[0] if full else 2**30
            connection.execute(f"PRAGMA max_page_count={pages}")

        sa.event.listen(writer.store._engine, "checkout", limit)
        for number in range(60):
            with recorder.because("m", "split", "ada", str(number) + "x" * 2000):
                pass
        await until(lambda: "full" in writer.trouble, "the disk to be full")
        full = False
        await until(lambda: not writer.trouble, "the writer to go on")
        found = [c for c in await recorder.changes("m", limit=1000) if c.who == "ada"]
        assert [c.message.split("x")[0] for c in found] == [str(n) for n in range(59, -1, -1)]

    run(test, tmp_path)


@pytest.mark.parametrize("damage", ["text", "middle", "folder"])
def test_a_damaged_file_is_set_aside(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "history.db"
    if damage == "text":
        file.write_bytes(b"not a database at all" * 100)
    elif damage == "folder":
        (file / "inner").mkdir(parents=True)
    else:
        with closing(open_file(file)) as store:
            store.add([row_of(entry(n, message="x" * 1000)) for n in range(1, 200)])
        data = bytearray(file.read_bytes())
        data[8192:-4096] = os.urandom(len(data) - 12288)
        file.write_bytes(data)

    async def test(given: tuple[World, Recorder]) -> None:
        world, recorder = given
        world.ready("m", "1")
        assert len(await recorder.changes("m")) == 1

    run(test, tmp_path)
    assert [c.action for c in written(tmp_path)] == [START, "served", STOP]
    assert len(list(tmp_path.glob("history.db.broken-*"))) >= 1
    assert sum("is damaged" in record.message for record in caplog.records) == 1


def test_a_file_that_is_damaged_meanwhile_is_begun_anew_with_what_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(given: tuple[World, Recorder]) -> None:
        world, recorder = given
        world.ready("a", "1")
        world.ready("b", "1")
        world.ready("b", "2")
        assert len(await recorder.changes("")) == 4
        writer = recorder._writer
        assert writer is not None

        def broken(rows: object) -> None:
            raise Broken("malformed")

        monkeypatch.setattr(writer.store, "add", broken)
        world.ready("b", "3")
        found = await recorder.changes("")
        assert [(c.action, *c.after.shares) for c in found] == [
            ("served", "3"), ("served", "1"), ("start",),
        ]  # fmt: skip
        past = await recorder.past("", found[0].at)
        assert [(m.model, *m.change.after.shares) for m in past.moments] == [("a", "1"), ("b", "3")]

    run(test, tmp_path)
    assert len(list(tmp_path.glob("history.db.broken-*"))) >= 1


def test_without_a_place_to_write_to_there_is_no_history_and_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()

    async def test(given: tuple[World, Recorder]) -> None:
        world, recorder = given
        assert not recorder.enabled
        with recorder.because("m", "split", "ada", "x"):
            world.ready("m", "1")
        with pytest.raises(RegistryError, match="no history"):
            await recorder.changes("m")

    world = run(test, tmp_path / "file" / "state")
    assert world.shares("m") == {"1": 100.0}
    assert [r.message for r in caplog.records if "there is no history" in r.message]


def test_another_database_works_without_a_state_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    async def test(given: tuple[World, Recorder]) -> None:
        world, recorder = given
        world.ready("m", "1")
        assert len(await recorder.changes("m")) == 1

    run(test, tmp_path / "file" / "state", url=f"sqlite:///{tmp_path}/elsewhere.db")


def test_a_database_of_the_users_is_never_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = tmp_path / "theirs.db"
    theirs.write_bytes(b"something else" * 100)

    async def test(given: tuple[World, Recorder]) -> None:
        world, recorder = given
        world.ready("m", "1")
        with pytest.raises(RegistryError, match="not a database"):
            await recorder.changes("m")

    run(test, tmp_path / "state", url=f"sqlite:///{theirs}")
    assert theirs.read_bytes() == b"something else" * 100
    kept = list((tmp_path / "state" / "history").glob("*.jsonl"))
    assert [json.loads(line)["action"] for line in kept[0].read_text().splitlines()] == [
        START, "served", STOP,
    ]  # fmt: skip


# --- the table


def test_only_its_owner_may_read_the_file(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        file = tmp_path / "history.db"
        with closing(open_file(file)) as store:
            store.open_runs()
            modes = {each.name: each.stat().st_mode & 0o777 for each in tmp_path.iterdir()}
        assert modes["history.db"] == 0o600 and set(modes.values()) == {0o600}
        # One that is there already stays as its owner wants it.
        file.chmod(0o640)
        with closing(open_file(file)) as store:
            store.open_runs()
        assert file.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_nobody_changes_what_is_written(tmp_path: Path) -> None:
    with closing(open_file(tmp_path / "history.db")) as store:
        store.add([row_of(entry(1))])
    with closing(sqlite3.connect(tmp_path / "history.db")) as database:
        for statement in (
            "UPDATE sluicegate_history SET who = 'eve'", "DELETE FROM sluicegate_history",
        ):  # fmt: skip
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(statement)


def test_what_is_sent_twice_is_there_once(tmp_path: Path) -> None:
    with closing(open_file(tmp_path / "history.db")) as store:
        store.add([row_of(entry(1)), row_of(entry(2))])
        store.add([row_of(entry(n)) for n in (1, 2, 3)])
        store.add([row_of(entry(1, "another"))])
        assert [(c.run, c.seq) for c in store.changes("m", 9, None)] == [
            ("r", 3), ("r", 2), ("another", 1), ("r", 1),
        ]  # fmt: skip
        assert [c.seq for c in store.changes("m", 9, 2.0)] == [2, 1, 1]
        assert [c.seq for c in store.changes("m", 1, None)] == [3]


def test_tables_of_a_later_release_are_left_alone(tmp_path: Path) -> None:
    with closing(open_file(tmp_path / "history.db")) as store:
        store.add([row_of(entry(1))])
    with closing(sqlite3.connect(tmp_path / "history.db")) as database, database:
        database.execute("INSERT INTO sluicegate_history_schema VALUES (99)")
    later = pytest.raises(Unusable, match="later release")
    with closing(open_file(tmp_path / "history.db")) as store, later:
        store.add([row_of(entry(2))])


def test_each_trouble_has_its_name(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database" * 1000)
    with closing(open_file(tmp_path / "text.db")) as store, pytest.raises(Broken):
        store.add([row_of(entry(1))])
    with closing(open_file(tmp_path / "no" / "x.db")) as store, pytest.raises(Unusable):
        store.add([row_of(entry(1))])
    url = "postgresql+psycopg://u:secret@127.0.0.1:1/x"
    pytest.importorskip("psycopg")
    with closing(open_store(url)) as store:
        assert "secret" not in store.name
        with pytest.raises(Away) as caught:
            store.add([row_of(entry(1))])
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("history.db", "no SQLAlchemy URL"),
        ("nosuch://x/y", "nosuch"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("firebird+nothing://u:secret@h/d", "firebird"),
        ("sqlite+aiosqlite:////tmp/x.db", "(asynchronous|aiosqlite)"),
        ("oracle+oracledb_async://u:secret@h/d", "(asynchronous|oracledb)"),
    ],
)
def test_a_bad_url_is_refused_at_the_start(tmp_path: Path, url: str, said: str) -> None:
    async def start() -> None:
        await World().recorder(tmp_path, url=url).start("g")

    with pytest.raises(ConfigError, match=said) as caught:
        asyncio.run(start())
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "history.url" in str(caught.value)


# --- crashes


def test_the_journal_of_a_crash_is_taken_over_and_the_crash_noted(tmp_path: Path) -> None:
    async def first(given: tuple[World, Recorder]) -> None:
        given[0].ready("m", "1")

    run(first, tmp_path)
    folder = tmp_path / "history"
    journal = new_journal(folder)
    at = written(tmp_path)[-1].at
    start = entry(1, journal.run, model="", action=START, at=at + 1)
    journal.append([row_of(start), row_of(entry(2, journal.run, at=at + 2, message="late"))])
    with journal.path.open("ab") as file:
        file.write(b'{"gateway": "g", "run": "')  # cut off
    os.utime(journal.path, (at + 3, at + 3))
    journal.close(delete=False)

    async def second(given: tuple[World, Recorder]) -> None:
        await given[1].changes("")

    run(second, tmp_path)
    crashed = [c for c in written(tmp_path) if c.run == journal.run]
    assert [c.message for c in crashed[:2]] == ["1", "late"]
    assert [c.action for c in crashed] == [START, "served", CRASH]
    assert crashed[-1].since == pytest.approx(at + 3)
    assert not list(folder.iterdir())


def test_a_gateway_that_lives_is_not_taken_for_one_that_crashed(tmp_path: Path) -> None:
    async def first(given: tuple[World, Recorder]) -> None:
        other, world = World().recorder(tmp_path), World()
        other = world.recorder(tmp_path)
        await given[1].changes("")
        await other.start("g")  # of the same name, and in the same directory
        world.ready("m", "7")
        given[0].ready("m", "1")
        past = await other.past("m", (await other.changes(""))[0].at)
        assert sorted(v for m in past.moments for v in m.change.after.shares) == ["1", "7"]
        await other.close()

    run(first, tmp_path)
    assert sorted(c.action for c in written(tmp_path)) == [
        "served", "served", START, START, STOP, STOP,
    ]  # fmt: skip


def test_nor_is_one_that_started_while_the_database_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stores.BOUNDS, "sqlite", {"timeout": 0.05})
    with closing(open_file(tmp_path / "history.db")) as store:
        store.open_runs()

    async def first(given: tuple[World, Recorder]) -> None:
        other = World().recorder(tmp_path)
        await other.start("g")
        for each in (given[1], other):
            writer = each._writer
            assert writer is not None
            await until(lambda writer=writer: writer.trouble, "it to be away")
        database.execute("ROLLBACK")
        for each in (given[1], other):
            writer = each._writer
            assert writer is not None
            await until(lambda writer=writer: not writer.trouble, "it to be back")
        await other.close()

    with closing(sqlite3.connect(tmp_path / "history.db", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        run(first, tmp_path)
    assert sorted(c.action for c in written(tmp_path)) == [START, START, STOP, STOP]


def test_two_gateways_share_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"

    async def test(given: tuple[World, Recorder]) -> None:
        world, recorder = given
        others = World()
        other = others.recorder(tmp_path / "two", url=url)
        await other.start("h")
        for number in range(20):
            with recorder.because("m", "split", "ada", str(number)):
                world.ready("m", str(number + 1))
            with other.because("m", "split", "bob", str(number)):
                others.ready("m", str(number + 1))
        for writer in (recorder._writer, other._writer):
            assert writer is not None
            await until(lambda writer=writer: writer._done == writer._sent, "all to be written")
        found = await other.changes("m", limit=100)
        for who, gateway in (("ada", "g"), ("bob", "h")):
            mine = [c.message for c in found if (c.who, c.gateway) == (who, gateway)]
            assert mine == [str(n) for n in range(19, -1, -1)]
        past = await recorder.past("m", found[0].at)
        assert [(m.gateway, dict(m.change.after.shares)) for m in past.moments] == [
            ("g", {"20": 100.0}), ("h", {"20": 100.0}),
        ]  # fmt: skip
        await other.close()
        gone = await recorder.past("m", (await recorder.changes(""))[0].at)
        assert [m.gateway for m in gone.moments] == ["g"]

    run(test, tmp_path / "one", url=url)
