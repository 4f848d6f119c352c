"""The record in a SQL database: one table that is only ever added to.

SQLAlchemy is imported here, so this module is imported late, and off the event loop.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError

from gateway.errors import ConfigError, RegistryError
from gateway.history.base import CRASH, RUNS, START, STOP, Change, Past
from gateway.history.documents import LONGEST_NAME, Row, change_of
from gateway.history.past import Run, past_of
from gateway.telemetry.logs import log

SCHEMA: Final = 1
LIBPQ: Final = {
    "connect_timeout": 10,
    "tcp_user_timeout": 10_000,
    "options": "-c statement_timeout=10000 -c lock_timeout=5000",
}
MYSQL: Final = {"connect_timeout": 10, "read_timeout": 10, "write_timeout": 10}
BOUNDS: Final[dict[str, dict[str, Any]]] = {
    "sqlite": {"timeout": 5.0},
    "pysqlite": {"timeout": 5.0},
    "postgresql": LIBPQ,
    "psycopg": LIBPQ,
    "psycopg2": LIBPQ,
    "mysql": MYSQL,
    "mysqldb": MYSQL,
    "pymysql": MYSQL,
}
"""By driver: bounds of one try, in its own words; what the URL says goes first."""

_META = sa.MetaData()
_TEXT = sa.Text()
HISTORY: Final = sa.Table(
    "sluicegate_history",
    _META,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("gateway", sa.String(250), nullable=False),
    sa.Column("run", sa.String(32), nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("happened_at", sa.Double, nullable=False),
    sa.Column("since", sa.Double, nullable=False),
    sa.Column("changes", sa.Integer, nullable=False),
    sa.Column("model", sa.String(LONGEST_NAME), nullable=False),
    sa.Column("action", sa.String(30), nullable=False),
    sa.Column("who", _TEXT, nullable=False),
    sa.Column("message", _TEXT, nullable=False),
    sa.Column("served_before", _TEXT, nullable=False),
    sa.Column("served_after", _TEXT, nullable=False),
    # What is sent twice, since an answer was lost, is there once.
    sa.UniqueConstraint("run", "seq", name="sluicegate_history_once"),
    sa.Index("sluicegate_history_model", "model", "happened_at"),
    sa.Index("sluicegate_history_time", "happened_at"),
)
VERSIONS: Final = sa.Table(
    "sluicegate_history_schema",
    _META,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
)
REFUSED: Final = "the history is append-only"
COLUMNS: Final = tuple(column.name for column in HISTORY.columns if column.name != "id")


class Broken(Exception):
    """The sqlite file is none, or damaged."""


class Away(Exception):
    """The database does not answer now, or does not take what it is sent."""


class Unusable(Exception):
    """Trying again will not help before somebody mended something."""


class Store:
    """One database. For any thread; one writes."""

    def __init__(self, url: URL, *, read_only: bool = False, own: Path | None = None) -> None:
        self.name = url.render_as_string(hide_password=True)
        self._sqlite = url.get_backend_name() == "sqlite"
        self._ready = self._read_only = read_only
        self._own = own
        """The sqlite file, where it is ours to make."""
        driver = url.drivername.partition("+")[2] or url.get_backend_name()
        bounds = {k: v for k, v in BOUNDS.get(driver, {}).items() if k not in url.query}
        try:
            self._engine = sa.create_engine(url, connect_args=bounds, pool_pre_ping=True)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"history.url '{self.name}' needs the Python package '{error.name}'; install it "
                "beside the gateway, such as `pip install 'sluicegate[postgres]'` for "
                "postgresql+psycopg://"
            ) from None
        except (SQLAlchemyError, TypeError, ValueError) as error:
            raise ConfigError(f"history.url '{self.name}': {one_line(error)}") from None
        if self._engine.dialect.is_async:
            raise ConfigError(
                f"history.url '{self.name}' names an asynchronous driver; give one that is not, "
                "such as postgresql+psycopg://"
            )
        if self._sqlite and not read_only:
            sa.event.listen(self._engine, "connect", set_up_sqlite)

    def close(self) -> None:
        self._engine.dispose()

    # --- writing

    def add(self, rows: Sequence[Row]) -> None:
        """Adds entries, all or none; those that are there already are left out.

        Raises `Away`, `Broken` or `Unusable`.
        """
        with Failures(sqlite=self._sqlite):
            self._prepare()
            rows = [{name: row[name] for name in COLUMNS} for row in rows]
            try:
                with self._engine.begin() as connection:
                    connection.execute(HISTORY.insert(), rows)
            except IntegrityError:
                for row in rows:
                    self._add_one(row)

    def _add_one(self, row: Row) -> None:
        where = sa.and_(HISTORY.c.run == row["run"], HISTORY.c.seq == row["seq"])
        with self._engine.begin() as connection:
            if connection.execute(sa.select(HISTORY.c.id).where(where)).first() is None:
                connection.execute(HISTORY.insert(), row)

    def open_runs(self) -> list[Row]:
        """The runs that began and have not ended: `gateway`, `run` and `last`, the time of their
        last entry. Raises like `add`."""
        ended = sa.select(HISTORY.c.run).where(
            HISTORY.c.model == "", HISTORY.c.action.in_((STOP, CRASH))
        )
        began = sa.select(HISTORY.c.run).where(HISTORY.c.model == "", HISTORY.c.action == START)
        query = (
            sa.select(
                HISTORY.c.gateway, HISTORY.c.run, sa.func.max(HISTORY.c.happened_at).label("last")
            )
            .where(HISTORY.c.run.in_(began), HISTORY.c.run.not_in(ended))
            .group_by(HISTORY.c.gateway, HISTORY.c.run)
        )
        with Failures(sqlite=self._sqlite):
            self._prepare()
            with self._engine.connect() as connection:
                return [dict(row._mapping) for row in connection.execute(query)]

    def _prepare(self) -> None:
        """Makes the tables where they are missing, and refuses those of a later release."""
        if self._ready:
            return
        if self._own is not None:
            make_private(self._own)
        for pause in (0.05, 0.2, 0.8, None):
            try:
                self._make()
                break
            except DBAPIError as error:
                # Gateways that start at the same time make them at the same time.
                there = isinstance(error, IntegrityError) or "already exists" in str(error)
                if pause is None or not there:
                    raise
                time.sleep(pause)
        self._ready = True

    def _make(self) -> None:
        with self._engine.begin() as connection:
            if self._sqlite:
                found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
                if found != "ok":
                    raise Broken(str(found))
            _META.create_all(connection)
            if self._sqlite:
                for word in ("UPDATE", "DELETE"):
                    connection.exec_driver_sql(
                        f"CREATE TRIGGER IF NOT EXISTS sluicegate_history_no_{word.lower()} "
                        f"BEFORE {word} ON sluicegate_history "
                        f"BEGIN SELECT RAISE(ABORT, '{REFUSED}'); END"
                    )
            version = connection.execute(sa.select(sa.func.max(VERSIONS.c.version))).scalar()
            if version is None:
                connection.execute(VERSIONS.insert(), {"version": SCHEMA})
            elif version > SCHEMA:
                raise Unusable(
                    f"its tables are of a later release (schema {version}, known here is {SCHEMA})"
                )

    # --- reading

    def changes(self, model: str, limit: int, until: float | None) -> list[Change]:
        """See `History.changes`. Raises `RegistryError`."""
        query = sa.select(HISTORY).order_by(HISTORY.c.happened_at.desc(), HISTORY.c.id.desc())
        if model:
            query = query.where(HISTORY.c.model == model)
        if until is not None:
            query = query.where(HISTORY.c.happened_at <= until)
        return [change_of(row) for row in self._read(query.limit(limit))]

    def past(self, model: str, at: float) -> Past:
        """See `History.past`. Raises `RegistryError`."""
        of_runs = sa.select(HISTORY).where(HISTORY.c.model == "", HISTORY.c.action.in_(RUNS))
        runs = runs_of(change_of(row) for row in self._read(of_runs.order_by(HISTORY.c.id)))
        found: dict[str, list[tuple[Change, float | None]]] = {}
        for run in runs:
            if run.may_have_lived(at):
                found[run.run] = self._states(run.run, model, at)
        return past_of(at, model, runs, found)

    def _states(self, run: str, model: str, at: float) -> list[tuple[Change, float | None]]:
        """The last entry of each model in a run up to a moment, and when the next one followed."""
        own = [HISTORY.c.run == run, HISTORY.c.model != ""]
        if model:
            own.append(HISTORY.c.model == model)
        last = (
            sa.select(HISTORY.c.model, sa.func.max(HISTORY.c.seq).label("seq"))
            .where(*own, HISTORY.c.happened_at <= at)
            .group_by(HISTORY.c.model)
            .subquery()
        )
        query = (
            sa.select(HISTORY)
            .join(last, sa.and_(HISTORY.c.model == last.c.model, HISTORY.c.seq == last.c.seq))
            .where(HISTORY.c.run == run)
            .order_by(HISTORY.c.model)
        )
        following = (
            sa.select(HISTORY.c.model, sa.func.min(HISTORY.c.happened_at).label("next"))
            .where(*own, HISTORY.c.happened_at > at)
            .group_by(HISTORY.c.model)
        )
        later = {row["model"]: float(row["next"]) for row in self._read(following)}
        return [(c, later.get(c.model)) for c in map(change_of, self._read(query))]

    def _read(self, query: sa.Select[Any]) -> list[Row]:
        try:
            with Failures(sqlite=self._sqlite):
                self._prepare()
                with self._engine.connect() as connection:
                    return [dict(row._mapping) for row in connection.execute(query)]
        except (Away, Broken, Unusable) as error:
            if self._read_only and not self._has_tables():
                raise RegistryError(f"there is no history in '{self.name}'") from None
            raise RegistryError(f"the history cannot be read: {error}") from None

    def _has_tables(self) -> bool:
        """Whether they are there; also where that cannot be known."""
        try:
            return sa.inspect(self._engine).has_table(HISTORY.name)
        except SQLAlchemyError:
            return True


class Failures:
    """Turns the database's errors in its block into ours."""

    def __init__(self, *, sqlite: bool) -> None:
        self._sqlite = sqlite

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, SQLAlchemyError):
            return
        text = one_line(error)
        if self._sqlite and isinstance(error, DBAPIError):
            code = getattr(error.orig, "sqlite_errorcode", None)
            primary = None if code is None else code & 0xFF
            if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise Broken(text) from None
            if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
                raise Unusable(text) from None
        raise Away(text) from None


def runs_of(entries: Iterable[Change]) -> list[Run]:
    """The runs that these starts, stops and crashes tell of, in their order."""
    runs: dict[str, Run] = {}
    for entry in entries:
        run = runs.setdefault(entry.run, Run(entry.run, entry.gateway))
        run.take(entry)
    return list(runs.values())


def set_up_sqlite(connection: Any, record: object) -> None:
    """One writer beside many readers, and each entry on the disk when it is said to be there."""
    for pause in (0.05, 0.2, 0.8, None):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:  # two that begin with one file do not wait by themselves
            if pause is None:
                raise
            time.sleep(pause)
    connection.execute("PRAGMA synchronous=FULL")


def one_line(error: BaseException) -> str:
    """What the database says, without SQLAlchemy's comments and without the statement."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return " ".join(str(cause).split())[:500] or type(cause).__name__


def open_store(url: str, *, read_only: bool = False) -> Store:
    """The database of a URL as people give it. Raises `ConfigError`."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError(
            "history.url is no SQLAlchemy URL; give one such as "
            "postgresql+psycopg://user@host/database or sqlite:////path/history.db"
        ) from None
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError(
            "history.url names a sqlite database in memory; give a file, such as "
            "sqlite:////path/history.db"
        )
    if read_only and parsed.get_backend_name() == "sqlite" and "uri" not in parsed.query:
        # A bad name must not make a file.
        return read_file(Path(parsed.database or ""))
    return Store(parsed, read_only=read_only)


def open_file(path: Path) -> Store:
    """A sqlite file of our own, made at the first write."""
    return Store(URL.create("sqlite", database=str(path)), own=path)


def make_private(path: Path) -> None:
    """Makes a file that only its owner may read, unless there is one; sqlite gives the files
    beside it the same mode."""
    with suppress(OSError):  # what is wrong there sqlite says itself
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def read_file(path: Path) -> Store:
    """A sqlite file, only to be read, also where a gateway writes it. Raises `ConfigError`."""
    if not path.is_file():
        raise ConfigError(f"there is no history at '{path}'; name another place")
    # A file in a folder that cannot be written has no other writer either.
    mode = "mode=ro" if os.access(path.parent, os.W_OK) else "mode=ro&immutable=1"
    uri = f"{path.absolute().as_uri()}?{mode}&uri=true"
    return Store(make_url(f"sqlite:///{uri}"), read_only=True)


def set_aside(path: Path) -> Path:
    """Gives a damaged sqlite file another name, with the files beside it. Raises `OSError`."""
    stamp = time.strftime("%Y%m%dT%H%M%S")
    aside = path.with_name(f"{path.name}.broken-{stamp}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.broken-{stamp}-{number}")
    os.replace(path, aside)
    for suffix in ("-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            os.replace(beside, aside.with_name(aside.name + suffix))
    log.warning("history: %s is damaged; it is kept as %s, and a new one begins", path, aside.name)
    return aside
