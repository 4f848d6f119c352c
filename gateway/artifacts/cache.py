"""Fetched files on this machine, kept by content. See docs/cache.md."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from gateway.artifacts.archives import unpack
from gateway.artifacts.base import Lease, Origin, RemoteFile, Told
from gateway.artifacts.blobs import digest_of, disk_error
from gateway.artifacts.downloads import Content, Downloads
from gateway.artifacts.eviction import MIB, Eviction
from gateway.artifacts.layout import Layout, TreeList, short
from gateway.artifacts.names import check_names
from gateway.artifacts.progress import Transfer
from gateway.artifacts.trees import (
    HeldTree,
    declared,
    digest_of_tree,
    hold,
    known_contents,
    publish,
    remember,
    remembered,
    workplace,
)
from gateway.artifacts.workers import Job, in_threads
from gateway.config import CacheConfig
from gateway.errors import FetchError
from gateway.state import StateDir
from gateway.telemetry.logs import log

FIRST_PAUSE: Final = 0.5
"""Seconds before something is tried again for the first time."""
MOST_ASKED: Final = 3
"""How often an origin is asked for its files, when it does not answer or they change."""


class Cache:
    """See `gateway.artifacts.base.Fetcher`. For any thread, and for several processes on one
    folder. `pause`: seconds before the first new try."""

    def __init__(self, state: StateDir, config: CacheConfig, pause: float = FIRST_PAUSE) -> None:
        self._state = state
        self._most = config.max_mb * MIB
        self._threads = config.fetch_threads
        self._turns = threading.Semaphore(config.fetch_threads)
        self._pause = pause
        self._stopped = threading.Event()
        self._opening = threading.Lock()
        self._opened: tuple[Layout, Eviction, Downloads] | None = None

    def fetch(self, origin: Origin, told: Told) -> Lease:
        """See `Fetcher.fetch`. Raises `ConfigError` where the state directory cannot be used."""
        layout, _, _ = self._open()
        try:
            # Equal origins at the same time: the second finds what the first has fetched.
            with layout.lock("origin", short(origin.key)) as lock:
                try:
                    return self._fetch(origin, told)
                finally:
                    lock.forget()
        except OSError as error:
            raise disk_error(error, layout.root) from None

    def close(self) -> None:
        """Ends all fetching soon; what is here of it is gone on with next time."""
        self._stopped.set()

    # --- one origin

    def _fetch(self, origin: Origin, told: Told) -> Lease:
        layout, _, _ = self._open()
        before = remembered(layout, origin)
        asked = 0
        while True:
            asked += 1
            self._check()
            try:
                files = list(origin.files())
            except FetchError as error:
                if before is not None and (lease := self._hold(before[0], origin)):
                    log.warning("%s; using its files as they were fetched before", error)
                    return lease
                if error.final or asked >= MOST_ASKED:
                    raise
                self._stopped.wait(self._pause * 2**asked)
                continue
            same = before is not None and declared(files) == before[1]
            if same and all(file.identity or file.sha256 for file in files):
                assert before is not None
                if lease := self._hold(before[0], origin):
                    return lease
            try:
                return self._bring(origin, files, told)
            except FetchError as error:
                # Without an identity they were fetched again, to be sure.
                if same and before is not None and (lease := self._hold(before[0], origin)):
                    log.warning("%s; using its files as they were fetched before", error)
                    return lease
                if not error.changed or asked >= MOST_ASKED:
                    raise
                log.info("%s; looking again", error)

    def _bring(self, origin: Origin, files: Sequence[RemoteFile], told: Told) -> HeldTree:
        """Fetches what is not here, and puts the tree together."""
        layout, eviction, _ = self._open()
        if not files:
            raise FetchError(f"{origin.uri} has no files", final=True)
        check_names((file.name for file in files), origin.uri)
        with workplace(layout) as place:
            work = Work(origin, list(files), place)
            work.place_known(layout, self._open()[2])
            if work.missing:
                self._download(work, told)
            names = work.tree_files(layout, self._most)
            digest = digest_of_tree(names)
            if not any(name.startswith(f"{origin.folder}/") for name in names):
                raise FetchError(f"{origin.uri} has no files of the version", final=True)
            tree = TreeList(digest, origin.uri, {n: (c.digest, c.size) for n, c in names.items()})
            held = publish(layout, tree, work.tree, origin.folder, self._released)
        try:
            contents = [work.contents[number] for number in range(len(files))]
            remember(layout, origin, files, contents, digest)
            eviction.make_room()
        except BaseException:
            held.release()
            raise
        return held

    def _download(self, work: Work, told: Told) -> None:
        layout, eviction, downloads = self._open()
        left = [downloads.left(work.origin, work.files[number]) for number in work.missing]
        needed = sum(max(each, 0) for each in left)
        sizes = [work.files[number].size for number in work.missing]
        all_of_it = sum(max(file.size, 0) for file in work.files)
        if all_of_it > self._most:
            raise FetchError(
                f"{work.origin.uri} has {all_of_it // MIB + 1} MiB of files, more than "
                f"cache.max_mb ({self._most // MIB}) in all; raise it",
                final=True,
            )
        eviction.make_room(needed)
        if needed > shutil.disk_usage(layout.root).free:
            raise FetchError(
                f"{work.origin.uri} needs {needed // MIB + 1} MiB more than '{layout.root}' has "
                "room for; free some, or give another disk with --state-dir",
                final=True,
            )
        total = -1 if -1 in sizes else sum(sizes)
        transfer = Transfer(work.origin.uri, len(sizes), total, told)
        jobs: list[Job] = [partial(work.get, downloads, n, transfer) for n in work.missing]
        try:
            transfer.tell()
            in_threads(
                jobs, self._threads, self._turns, transfer.tell, transfer.over, self._stopped
            )
            transfer.done()
        finally:
            transfer.close()

    def _hold(self, digest: str, origin: Origin) -> HeldTree | None:
        return hold(self._open()[0], digest, origin.folder, self._released)

    # --- the folder

    def _open(self) -> tuple[Layout, Eviction, Downloads]:
        """Makes the folder when it is first needed. Raises `ConfigError`, `FetchError`."""
        with self._opening:
            if self._opened is None:
                layout = Layout(self._state.folder("cache"), self._check)
                eviction = Eviction(layout, self._most)
                downloads = Downloads(layout, self._pause, self._stopped)
                try:
                    layout.make()
                    eviction.sweep()
                except OSError as error:
                    raise disk_error(error, layout.root) from None
                self._opened = layout, eviction, downloads
            return self._opened

    def _released(self) -> None:
        """What stayed only because it was in use may go now."""
        _, eviction, _ = self._open()
        if eviction.over and not self._stopped.is_set():
            threading.Thread(target=self._tidy, name="sluice-cache", daemon=True).start()

    def _tidy(self) -> None:
        with suppress(OSError, FetchError):  # said when something is fetched next
            self._open()[1].make_room()

    def _check(self) -> None:
        if self._stopped.is_set():
            raise FetchError("the gateway stops", final=True)


@dataclass
class Work:
    """One tree that is being put together, in a folder of its own."""

    origin: Origin
    files: list[RemoteFile]
    place: Path
    contents: dict[int, Content] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)

    @property
    def tree(self) -> Path:
        return self.place / "tree"

    def target(self, number: int) -> Path:
        """Where a file is put; an archive lies beside the tree."""
        file = self.files[number]
        return self.place / f"archive-{number}" if file.archive else self.tree / file.name

    def place_known(self, layout: Layout, downloads: Downloads) -> None:
        """Puts what is here already where it belongs; the rest is missing. Raises `OSError`."""
        known = known_contents(layout, self.origin)
        for number, file in enumerate(self.files):
            digest = file.sha256.lower()
            if not digest and file.identity:
                before = known.get((file.name, file.size, file.identity))
                digest = before.digest if before is not None else ""
            content = downloads.known(digest, file.size, self.target(number)) if digest else None
            if content is None:
                self.missing.append(number)
            else:
                self.contents[number] = content

    def get(self, downloads: Downloads, number: int, transfer: Transfer) -> None:
        """Fetches one file. Raises `FetchError`."""
        self.contents[number] = downloads.get(
            self.origin, self.files[number], transfer.hear, self.target(number)
        )

    def tree_files(self, layout: Layout, most_bytes: int) -> dict[str, Content]:
        """Unpacks what has to be; name in the tree → content. Raises `FetchError`, `OSError`."""
        found: dict[str, Content] = {}
        names: list[str] = []
        for number, file in enumerate(self.files):
            if not file.archive:
                names.append(file.name)
                found[file.name] = self.contents[number]
                continue
            above, _, own = file.name.rpartition("/")
            what = f"{self.origin.uri}: '{own}'"
            into = self.place / f"unpacked-{number}"
            into.mkdir()
            inner = unpack(self.target(number), own, what, into, most_bytes)
            # It stays neither here nor among the blobs: what was in it does.
            self.target(number).unlink()
            layout.blobs.path(self.contents[number].digest).unlink(missing_ok=True)
            names += [f"{above}/{name}" if above else name for name in inner]
            check_names(names, what)
            for name in inner:
                full = f"{above}/{name}" if above else name
                size = (into / name).stat().st_size
                content = Content(digest_of(into / name), size)
                layout.blobs.adopt(into / name, content.digest, size)
                (self.tree / full).parent.mkdir(parents=True, exist_ok=True)
                os.rename(into / name, self.tree / full)
                found[full] = content
        return found
