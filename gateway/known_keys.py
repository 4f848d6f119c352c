"""Refuses unknown keys of a document, at any depth, and says which key may have been meant."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

import msgspec

from gateway.errors import InvalidModelSettings, printable


def refuse_unknown_keys(
    tree: Any, kind: type[msgspec.Struct], where: str, without: frozenset[str] = frozenset()
) -> None:
    """Raises `InvalidModelSettings` for a key in `tree` that `kind` does not have (or that is
    one of `without`). Values are not looked at."""
    for path, inner, struct in places(tree, kind, ""):
        hidden = without if struct is kind else frozenset()
        known = [name for name in struct.__struct_fields__ if name not in hidden]
        for key in inner:
            if key in known:
                continue
            name = printable(f"{path}{key}")
            close = get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{path}{close[0]}'?" if close else f"known: {', '.join(known)}"
            raise InvalidModelSettings(f"{where}: unknown key '{name}'; {hint}")


def places(
    tree: Any, kind: Any, path: str
) -> Iterator[tuple[str, dict[Any, Any], type[msgspec.Struct]]]:
    """Every mapping in `tree` that stands for a struct: its dotted path, itself, the struct."""
    struct = struct_of(kind)
    if struct is None:
        return
    if isinstance(tree, (list, tuple)):
        for number, each in enumerate(tree):
            yield from places(each, struct, f"{path.removesuffix('.')}[{number}].")
    elif isinstance(tree, dict):
        if getattr(kind, "__origin__", None) is dict:
            for key, each in tree.items():
                yield from places(each, struct, f"{path}{key}.")
            return
        yield path, tree, struct
        hints = get_type_hints(struct)
        for key, each in tree.items():
            if key in hints:
                yield from places(each, hints[key], f"{path}{key}.")


def struct_of(kind: Any) -> type[msgspec.Struct] | None:
    """The struct that a type is, or holds, such as ``S | None`` or ``tuple[S, ...]``."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next(filter(None, map(struct_of, get_args(kind))), None)
