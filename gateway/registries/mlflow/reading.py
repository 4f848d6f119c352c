"""What an MLflow registry says, read so that it costs little while nothing changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Final

import msgspec

from gateway.errors import RegistryError, printable
from gateway.registries.mlflow.client import Client
from gateway.registries.mlflow.documents import (
    FAILED,
    READY,
    Known,
    Registered,
    Version,
    model_page,
)

MANY: Final = 20
"""From so many changed models on, the versions of all models are asked for at once."""
MOST_SKIPPED: Final = 63
"""Looks, at most, between two at versions that are not ready, while the list stays the same."""


class Reader:
    """The registry's state as it was last read. For one thread at a time."""

    def __init__(self, client: Client, name: str) -> None:
        self.known = Known()
        self._client = client
        self._name = name
        self._digest = b""
        self._pending: set[str] = set()
        """Models whose versions may change while the list of models does not."""
        self._tries = 0
        self._skip = 0
        self._swapping = threading.Lock()

    def read(self, is_ours: Callable[[Registered], bool]) -> bool:
        """Reads; whether anything is new. `is_ours` says whose versions are of interest.

        Raises `RegistryError`; then nothing has changed here.
        """
        pages = self._client.pages()
        digest = blake2b(b"\0".join(pages), digest_size=16).digest()
        if digest == self._digest:
            return self._look_at_pending()
        # Setting an alias leaves `last_updated_timestamp` alone, so whole documents are compared.
        models: dict[str, Registered] = {}
        for page in pages:
            for model in model_page(page, self._name).registered_models:
                models.setdefault(model.name, model)
        if not models:
            self._check_empty()
        if len(pages) > 1:
            # Between two pages something may have slipped from the one to the other.
            for name in self.known.models.keys() - models.keys():
                found = self._client.registered(name)
                if found is not None:
                    models[name] = found
        before = self.known
        ours = {name: model for name, model in models.items() if is_ours(model)}
        fresh = [
            name
            for name, model in ours.items()
            if name in self._pending
            or name not in before.versions
            or before.models.get(name) != model
        ]
        versions = {name: v for name, v in before.versions.items() if name in ours}
        versions.update(self._versions(fresh))
        new = models != before.models or versions != before.versions
        with self._swapping:
            self.known = Known(models=models, versions=versions)
            self._digest = digest
        self._note_pending()
        self._tries = self._skip = 0
        return new

    def _check_empty(self) -> None:
        """Raises `RegistryError` where an answer without any model is wrong: it would unload
        everything."""
        known = next(iter(self.known.models), None)
        if known is not None and self._client.registered(known) is not None:
            raise RegistryError(
                f"{self._name} lists no models, and yet it has '{printable(known)}'; its answer "
                "is not believed"
            )

    def _look_at_pending(self) -> bool:
        """Asks for versions that were not ready, less and less often; whether anything is new."""
        if not self._pending:
            return False
        if self._skip:
            self._skip -= 1
            return False
        found = self._versions(sorted(self._pending))
        self._tries += 1
        self._skip = min(2 ** min(self._tries, 10) - 2, MOST_SKIPPED)
        new = any(self.known.versions.get(name) != versions for name, versions in found.items())
        if new:
            self.known = Known(self.known.models, self.known.versions | found)
            self._note_pending()
        return new

    def _note_pending(self) -> None:
        models = self.known.models
        self._pending = {
            name
            for name, versions in self.known.versions.items()
            if is_pending(versions) or not_listed(models[name], versions)
        }

    def restore(self, content: bytes) -> None:
        """Takes what `remembered` gave, unless something has been read; also while `read` is
        still on its way. Raises `msgspec.DecodeError`."""
        known = msgspec.json.decode(content, type=Known)
        with self._swapping:
            if not self._digest:
                self.known = known

    def remembered(self) -> bytes:
        """What has been read, to be kept."""
        return msgspec.json.encode(self.known)

    def _versions(self, names: Iterable[str]) -> dict[str, tuple[Version, ...]]:
        """All versions of some models."""
        names = list(names)
        if len(names) < MANY:
            return {name: tuple(self._client.versions(name)) for name in names}
        found: dict[str, list[Version]] = {name: [] for name in names}
        for version in self._client.versions():
            if version.name in found:
                found[version.name].append(version)
        return {name: tuple(versions) for name, versions in found.items()}


def is_pending(versions: Iterable[Version]) -> bool:
    """Whether a version's registration goes on, which the list of models may not show."""
    return any(each.status not in (READY, FAILED) for each in versions)


def not_listed(model: Registered, versions: Iterable[Version]) -> set[str]:
    """The versions that aliases name and that MLflow's list of versions lacks."""
    return set(model.by_alias.values()) - {each.version for each in versions}
