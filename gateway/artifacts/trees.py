"""Versions as folders: put together from blobs, found again, held."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from gateway.artifacts.base import Origin, RemoteFile
from gateway.artifacts.blobs import sync_folder
from gateway.artifacts.downloads import Content
from gateway.artifacts.layout import Layout, TreeList, read_json, short, write_json
from gateway.artifacts.locks import FileLock
from gateway.errors import FetchError


class HeldTree:
    """See `gateway.artifacts.base.Lease`."""

    def __init__(
        self, layout: Layout, digest: str, lock: FileLock, folder: str,
        released: Callable[[], object],
    ) -> None:  # fmt: skip
        self.digest = digest
        self._layout = layout
        self._lock = lock
        self._path = layout.trees / digest / folder
        self._released = released

    @property
    def path(self) -> Path:
        """See `Lease.path`."""
        return self._path

    def release(self) -> None:
        """See `Lease.release`."""
        if self._lock.held:
            self._layout.touch(self.digest)
            self._lock.release()
            self._released()


def digest_of_tree(files: Mapping[str, Content]) -> str:
    """What a tree is called: the digest of its names and contents."""
    found = sha256()
    for name in sorted(files):
        found.update(f"{name}\0{files[name].digest}\n".encode())
    return found.hexdigest()


def hold(
    layout: Layout, digest: str, folder: str, released: Callable[[], object]
) -> HeldTree | None:
    """A hold on a tree that is complete; `None` where there is none. Raises `FetchError`."""
    lock = layout.lock("tree", digest)
    if not (layout.trees / digest).is_dir():
        return None
    lock.acquire(shared=True)
    if is_whole(layout, digest) and (layout.trees / digest / folder).is_dir():
        layout.touch(digest)
        return HeldTree(layout, digest, lock, folder, released)
    lock.release()
    return None


def is_whole(layout: Layout, digest: str) -> bool:
    """Whether every file of a tree is there with its size."""
    known = layout.tree_list(digest)
    if known is None:
        return False
    root = layout.trees / digest
    try:
        return all((root / name).stat().st_size == size for name, (_, size) in known.files.items())
    except OSError:
        return False


def publish(
    layout: Layout, tree: TreeList, built: Path, folder: str, released: Callable[[], object]
) -> HeldTree:
    """Gives a folder that was put together its place, and holds it; if a whole one is there,
    that one stays. Raises `OSError`, and `FetchError` if a damaged one is there and in use."""
    for at, _, _ in os.walk(built):
        sync_folder(Path(at))
    target = layout.trees / tree.digest
    lock = layout.lock("tree", tree.digest)
    if target.is_dir() and not is_whole(layout, tree.digest):
        if not lock.acquire(wait=False):
            raise FetchError(
                f"{tree.uri}: its files in the cache are damaged, and in use; see "
                "'sluice cache verify'"
            )
        take_away(layout, tree.digest)
        lock.release()
    # Shared: whoever holds the same tree, or builds it too, is welcome.
    lock.acquire(shared=True)
    try:
        layout.write_list(tree)
        try:
            os.rename(built, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync_folder(layout.trees)
    except BaseException:
        lock.release()
        raise
    return HeldTree(layout, tree.digest, lock, folder, released)


def take_away(layout: Layout, digest: str) -> None:
    """Removes a tree, for the one who holds its lock alone. Raises `OSError`."""
    root = layout.trees / digest
    with workplace(layout) as place:
        if root.is_dir():
            os.rename(root, place / "gone")  # in one step: there is never half a tree
        (layout.lists / f"{digest}.json").unlink(missing_ok=True)


@contextmanager
def workplace(layout: Layout) -> Iterator[Path]:
    """A folder of one's own to build in, removed at the end."""
    name = os.urandom(8).hex()
    lock = layout.lock("building", name)
    lock.acquire()
    place = layout.building / name
    try:
        place.mkdir()
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        lock.forget()


# --- which tree an origin's files are


def index_file(layout: Layout, origin: Origin) -> Path:
    return layout.index / f"{short(origin.uri)}-{short(origin.key)}.json"


def declared(files: Sequence[RemoteFile]) -> list[list[Any]]:
    """What was said of the files, as the index keeps it."""
    return [[f.name, f.size, f.identity, f.sha256.lower(), f.archive] for f in files]


def remember(
    layout: Layout, origin: Origin, files: Sequence[RemoteFile], contents: Sequence[Content],
    tree: str,
) -> None:  # fmt: skip
    """Notes which tree these files are. Raises `OSError`."""
    document = {
        "uri": origin.uri,
        "folder": origin.folder,
        "tree": tree,
        "files": declared(files),
        "contents": [[each.digest, each.size] for each in contents],
    }
    write_json(index_file(layout, origin), document, layout)


def remembered(layout: Layout, origin: Origin) -> tuple[str, list[list[Any]]] | None:
    """The tree that an equal origin's files were, and what was said of them."""
    document = read_json(index_file(layout, origin))
    try:
        if document["folder"] != origin.folder:
            return None
        return str(document["tree"]), list(document["files"])
    except (KeyError, TypeError):
        return None


def known_contents(layout: Layout, origin: Origin) -> dict[tuple[str, int, str], Content]:
    """Contents of files of this URI that had an identity: (name, size, identity) → content."""
    found: dict[tuple[str, int, str], Content] = {}
    for file in layout.index.glob(f"{short(origin.uri)}-*.json"):
        document = read_json(file)
        try:
            for said, content in zip(document["files"], document["contents"], strict=True):
                name, size, identity = said[:3]
                if identity:
                    found[name, size, identity] = Content(str(content[0]), int(content[1]))
        except (KeyError, TypeError, ValueError, IndexError):
            continue
    return found
