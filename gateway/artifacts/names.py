"""Names of files in a tree: relative, plain, and at peace with each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gateway.errors import FetchError, printable

MOST_FILES: Final = 100_000
LONGEST_NAME: Final = 1024
LONGEST_PART: Final = 255


def check_name(name: str, what: str) -> None:
    """Raises `FetchError` unless `name` stays below the folder it is put into."""
    parts = name.split("/")
    wrong = (
        "is empty" if not name
        else "leads out of its folder" if name.startswith("/") or ".." in parts
        else "has an empty part" if "" in parts or "." in parts
        else "has a backslash" if "\\" in name
        else "has control characters" if any(ord(c) < 32 or ord(c) == 127 for c in name)
        else "is too long" if len(name.encode(errors="replace")) > LONGEST_NAME
        or any(len(part.encode(errors="replace")) > LONGEST_PART for part in parts)
        else "is no valid text" if not is_text(name)
        else ""
    )  # fmt: skip
    if wrong:
        raise FetchError(f"{what}: the file name '{printable(name)}' {wrong}", final=True)


def check_names(names: Iterable[str], what: str) -> None:
    """Raises `FetchError` for a name that is wrong, there twice, or a file and a folder."""
    seen: set[str] = set()
    folders: set[str] = set()
    for name in names:
        check_name(name, what)
        if name in seen:
            raise FetchError(f"{what}: the file '{printable(name)}' is there twice", final=True)
        seen.add(name)
        if len(seen) > MOST_FILES:
            raise FetchError(f"{what}: it has more than {MOST_FILES} files", final=True)
        above = name.rpartition("/")[0]
        while above and above not in folders:
            folders.add(above)
            above = above.rpartition("/")[0]
    if both := seen & folders:
        name = printable(min(both))
        raise FetchError(f"{what}: '{name}' is a file and a folder", final=True)


def is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
