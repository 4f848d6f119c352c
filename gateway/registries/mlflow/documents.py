"""What an MLflow registry answers, as typed documents."""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar

import msgspec

from gateway.errors import RegistryError

PROMPT: Final = "mlflow.prompt.is_prompt"
"""Tag of registered "models" that are prompts."""
READY: Final = "READY"
FAILED: Final = "FAILED_REGISTRATION"

T = TypeVar("T")


class Tag(msgspec.Struct, frozen=True):
    key: str = ""
    value: str = ""


class Alias(msgspec.Struct, frozen=True):
    alias: str
    version: str


class Version(msgspec.Struct, frozen=True):
    """One version of a registered model."""

    name: str
    version: str
    creation_timestamp: int | str = 0
    source: str = ""
    status: str = READY


class Registered(msgspec.Struct, frozen=True):
    """One registered model. Equal ones need not be looked at again."""

    name: str
    creation_timestamp: int | str = 0
    last_updated_timestamp: int | str = 0
    latest_versions: tuple[Version, ...] = ()
    tags: tuple[Tag, ...] = ()
    aliases: tuple[Alias, ...] = ()

    @property
    def by_tag(self) -> dict[str, str]:
        """Tag → value."""
        return {tag.key: tag.value for tag in self.tags}

    @property
    def by_alias(self) -> dict[str, str]:
        """Alias → version."""
        return {alias.alias: alias.version for alias in self.aliases}


class ModelPage(msgspec.Struct, frozen=True):
    registered_models: tuple[Registered, ...]
    next_page_token: str = ""


class VersionPage(msgspec.Struct, frozen=True):
    model_versions: tuple[Version, ...]
    next_page_token: str = ""


class EmptyPage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A page without a single entry, as MLflow writes it: ``{}``."""

    next_page_token: str = ""


class OneModel(msgspec.Struct, frozen=True):
    registered_model: Registered


class RemoteEntry(msgspec.Struct, frozen=True):
    """One entry of a folder of artifacts."""

    path: str
    is_dir: bool = False
    file_size: int | str = -1


class Listing(msgspec.Struct, frozen=True):
    files: tuple[RemoteEntry, ...] = ()


class Known(msgspec.Struct):
    """Everything that a registry has said that matters here; what is remembered of it."""

    models: dict[str, Registered] = {}
    versions: dict[str, tuple[Version, ...]] = {}


_TOKEN: Final = re.compile(rb'"next_page_token"\s*:\s*"((?:[^"\\]|\\.)*)"')


def next_token(page: bytes) -> str:
    """The token of the page after this one, found without parsing; empty for the last one.

    The real one stands behind the models; a tag can only hold it with its quotes escaped. Raises
    `RegistryError` for one that is no text.
    """
    tail = page[-4096:]
    found = _TOKEN.findall(tail) or (_TOKEN.findall(page[:4096]) if len(page) > 4096 else [])
    return decoded(b'"' + found[-1] + b'"', str, "MLflow") if found else ""


def model_page(content: bytes, what: str) -> ModelPage:
    """A page of registered models; nothing but ``{}`` is one without any.

    Raises `RegistryError` for what is no such page, such as an answer of something in between.
    """
    empty = _empty(content)
    return decoded(content, ModelPage, what) if empty is None else ModelPage((), empty)


def version_page(content: bytes, what: str) -> VersionPage:
    """As `model_page`, of versions."""
    empty = _empty(content)
    return decoded(content, VersionPage, what) if empty is None else VersionPage((), empty)


def _empty(content: bytes) -> str | None:
    """The token of a page without entries; `None` for all that is none."""
    try:
        return msgspec.json.decode(content, type=EmptyPage).next_page_token
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def decoded(content: bytes, kind: type[T], what: str) -> T:
    """A document. Raises `RegistryError` for one that is none."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RegistryError(
            f"{what} answered with something else than was asked: {error}"
        ) from None


def tree(content: bytes, what: str) -> dict[str, Any]:
    """A JSON object. Raises `RegistryError`."""
    return decoded(content, dict[str, Any], what)
