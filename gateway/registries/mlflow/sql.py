"""A registry's database, read and written by mlflow's own stores. For threads: methods block."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from gateway.errors import RegistryError, printable
from gateway.registries.mlflow.client import MODELS_A_PAGE, VERSIONS_A_PAGE
from gateway.registries.mlflow.documents import (
    Alias,
    ModelPage,
    Registered,
    RemoteEntry,
    Tag,
    Version,
)
from gateway.registries.mlflow.uri import Place

FRESH: Final = 2.0
"""Seconds within which a file may change once more without its times showing it."""

T = TypeVar("T")
Mark = tuple[tuple[int, int, int], ...]


class SqlClient:
    """See `gateway.registries.mlflow.client.Client`."""

    def __init__(self, place: Place) -> None:
        """Raises `RegistryError` where mlflow is missing."""
        if place.file is not None and not place.file.is_file():
            raise RegistryError(
                f"{place.name} does not exist; give the file that `mlflow server "
                "--backend-store-uri sqlite:///...` uses"
            )
        self._place = place
        self._models: Any = None
        self._runs: Any = None
        self._lock = threading.Lock()
        self._mark: Mark = ()
        self._pages: list[bytes] = []
        # Takes seconds, which are not the first look's.
        self._import("mlflow.store.model_registry.sqlalchemy_store")

    # --- reading

    def pages(self) -> list[bytes]:
        """See `Client.pages`. Of a file that has not changed, what it said before."""
        mark = self._file_mark()
        if mark and mark == self._mark:
            return self._pages
        pages: list[bytes] = []
        token = ""
        while True:
            found = self._ask(partial(search_models, token or None))
            token = found.token or ""
            page = ModelPage(tuple(map(registered_of, found)), token)
            pages.append(msgspec.json.encode(page))
            if not token:
                break
        newest = max((times[1] for times in mark), default=0) / 1e9
        self._pages, self._mark = pages, mark if time.time() - newest > FRESH else ()
        return pages

    def _file_mark(self) -> Mark:
        """What changes with the database's file; empty for other databases."""
        file = self._place.file
        if file is None:
            return ()
        marks = []
        for path in (file, file.with_name(f"{file.name}-wal")):
            try:
                stat = path.stat()
            except OSError:
                continue
            marks.append((stat.st_size, stat.st_mtime_ns, stat.st_ino))
        return tuple(marks)

    def registered(self, name: str) -> Registered | None:
        """See `Client.registered`."""
        return self._ask(lambda store: registered_of(store.get_registered_model(name)), None)

    def versions(self, name: str = "") -> Iterator[Version]:
        """See `Client.versions`."""
        token = ""
        while True:
            found = self._ask(partial(search_versions, name, token or None))
            yield from map(version_of, found)
            token = found.token or ""
            if not token:
                return

    # --- writing

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """See `Client`."""
        self._ask(lambda store: store.set_registered_model_alias(name, alias, version))

    def delete_alias(self, name: str, alias: str) -> None:
        """See `Client`."""
        self._ask(lambda store: store.delete_registered_model_alias(name, alias))

    def set_tag(self, name: str, key: str, value: str) -> None:
        """See `Client`."""
        entities = self._import("mlflow.entities.model_registry")
        tag = entities.RegisteredModelTag(key, value)
        self._ask(lambda store: store.set_registered_model_tag(name, tag))

    def delete_tag(self, name: str, key: str) -> None:
        """See `Client`."""
        self._ask(lambda store: store.delete_registered_model_tag(name, key))

    # --- artifacts

    def artifact_uri(self, name: str, version: str) -> str:
        """See `Client.artifact_uri`."""
        return str(self._ask(lambda store: store.get_model_version_download_uri(name, version)))

    def logged_model_uri(self, model_id: str) -> str:
        """See `Client.logged_model_uri`."""
        return str(
            self._ask(lambda _: self._tracking().get_logged_model(model_id)).artifact_location
        )

    def run_uri(self, run_id: str) -> str:
        """See `Client.run_uri`."""
        return str(self._ask(lambda _: self._tracking().get_run(run_id)).info.artifact_uri)

    def serves(self, host: str) -> bool:
        """See `Client.serves`."""
        return False

    def entries(self, path: str) -> tuple[RemoteEntry, ...]:
        """A database has no server to ask."""
        raise RegistryError(
            "its files are behind an MLflow server; give that as the source, mlflow+http://HOST:PORT"
        )

    def content(self, path: str, start: int) -> Iterator[bytes]:
        """As `entries`."""
        self.entries(path)
        return iter(())

    # --- underneath

    def _ask(self, question: Callable[[Any], T], *missing: T) -> T:
        """What mlflow's store answers; `missing` where there is no such thing."""
        with self._lock:
            store = self._store()
            from mlflow.exceptions import MlflowException

            try:
                return question(store)
            except MlflowException as error:
                if missing and error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return missing[0]
                raise RegistryError(f"{self._place.name}: {one_line(error)}") from None
            except Exception as error:
                # SQLAlchemy and its drivers have many ways to say that a database is away.
                raise RegistryError(
                    f"{self._place.name} cannot be read: {one_line(error)}"
                ) from None

    def _store(self) -> Any:
        if self._models is None:
            store = self._import("mlflow.store.model_registry.sqlalchemy_store")
            self._models = self._open(store.SqlAlchemyStore, self._place.url)
        return self._models

    def _tracking(self) -> Any:
        if self._runs is None:
            store = self._import("mlflow.store.tracking.sqlalchemy_store")
            # New experiments would have their files there; none is made.
            self._runs = self._open(store.SqlAlchemyStore, self._place.url, "mlflow-artifacts:/")
        return self._runs

    def _open(self, store: Callable[..., Any], *arguments: str) -> Any:
        try:
            return store(*arguments)
        except Exception as error:
            raise RegistryError(f"{self._place.name} cannot be opened: {one_line(error)}") from None

    def _import(self, name: str) -> Any:
        import importlib

        try:
            import runtimes.mlflow_library  # noqa: F401 (keeps mlflow quiet)

            return importlib.import_module(name)
        except ImportError as error:
            raise RegistryError(
                f"{self._place.name} needs the whole of mlflow ({printable(error, 120)}): "
                "pip install 'sluicegate[mlflow-db]'; or give its server, mlflow+http://HOST:PORT"
            ) from None


def search_models(token: str | None, store: Any) -> Any:
    """One page of registered models."""
    return store.search_registered_models(max_results=MODELS_A_PAGE, page_token=token)


def search_versions(name: str, token: str | None, store: Any) -> Any:
    """One page of the versions of a model, or of all."""
    only = f"name='{name}'" if name else None
    return store.search_model_versions(only, max_results=VERSIONS_A_PAGE, page_token=token)


def registered_of(entity: Any) -> Registered:
    """mlflow's entity as a document."""
    return Registered(
        name=entity.name,
        creation_timestamp=entity.creation_timestamp or 0,
        last_updated_timestamp=entity.last_updated_timestamp or 0,
        latest_versions=tuple(map(version_of, entity.latest_versions or ())),
        tags=tuple(Tag(key, value) for key, value in sorted(entity.tags.items())),
        aliases=tuple(Alias(name, str(v)) for name, v in sorted(entity.aliases.items())),
    )


def version_of(entity: Any) -> Version:
    """mlflow's entity as a document."""
    return Version(
        name=entity.name,
        version=str(entity.version),
        creation_timestamp=entity.creation_timestamp or 0,
        source=entity.source or "",
        status=entity.status,
    )


def one_line(error: BaseException) -> str:
    """What went wrong, without the database's long stories."""
    first = str(error).strip().splitlines()
    return printable(first[0] if first else type(error).__name__, 300)
