"""What an MLflow registry says, read so that it costs little while nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Final

import msgspec

from gateway.registries.mlflow.client import Client
from gateway.registries.mlflow.documents import (
    FAILED,
    READY,
    Known,
    ModelPage,
    Registered,
    Version,
    decoded,
)

MANY: Final = 20
"""From so many changed models on, the versions of all models are asked for at once."""


class Reader:
    """The registry's state as it was last read. For one thread at a time."""

    def __init__(self, client: Client, name: str) -> None:
        self.known = Known()
        self._client = client
        self._name = name
        self._digest = b""
        self._pending: set[str] = set()

    def read(self, is_ours: Callable[[Registered], bool]) -> bool:
        """Reads; whether anything is new. `is_ours` says whose versions are of interest.

        Raises `RegistryError`; then nothing has changed here.
        """
        pages = self._client.pages()
        digest = blake2b(b"\0".join(pages), digest_size=16).digest()
        if digest == self._digest and not self._pending:
            return False
        # Setting an alias leaves `last_updated_timestamp` alone, so whole documents are compared.
        models: dict[str, Registered] = {}
        for page in pages:
            for model in decoded(page, ModelPage, self._name).registered_models:
                models.setdefault(model.name, model)
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
        self.known = Known(models=models, versions=versions)
        self._pending = {name for name, all_of_it in versions.items() if is_pending(all_of_it)}
        self._digest = digest
        return new

    def restore(self, content: bytes) -> None:
        """Takes what `remembered` gave. Raises `msgspec.DecodeError`."""
        self.known = msgspec.json.decode(content, type=Known)
        self._digest = b""

    def remembered(self) -> bytes:
        """What has been read, to be kept."""
        return msgspec.json.encode(self.known)

    def forget(self) -> None:
        """The next `read` parses what it gets, whatever it is."""
        self._digest = b""

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
