"""The cache as its operator looks at it: what is there, whether it is sound, what may go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gateway.artifacts.blobs import digest_of, disk_error
from gateway.artifacts.eviction import MIB, Eviction, Tree, size_of, trees
from gateway.artifacts.layout import Layout
from gateway.artifacts.trees import take_away
from gateway.config import CacheConfig
from gateway.state import StateDir


@dataclass
class Report:
    """What was found by reading everything."""

    checked: int = 0
    removed: list[str] = field(default_factory=list)
    """URIs (or digests) of what was damaged, and is gone."""
    in_use: list[str] = field(default_factory=list)
    """URIs of what is damaged, and held by a gateway."""

    @property
    def damaged(self) -> int:
        return len(self.removed) + len(self.in_use)


class Inspection:
    """One cache; gateways may use it at the same time. Raises `ConfigError` where the state
    directory cannot be used; its methods raise `FetchError`."""

    def __init__(self, state: StateDir, config: CacheConfig) -> None:
        self.folder = state.folder("cache")
        self._layout = Layout(self.folder)
        self._most = config.max_mb * MIB
        with self._errors():
            self._layout.make()

    def trees(self) -> list[Tree]:
        """Every tree, the one used last first."""
        with self._errors():
            return sorted(trees(self._layout), key=lambda tree: -tree.used)

    def size(self) -> int:
        """Bytes of everything."""
        with self._errors():
            return size_of(self.folder)

    def clean(self, *, everything: bool) -> int:
        """See `Eviction.clean`."""
        with self._errors():
            return Eviction(self._layout, self._most).clean(everything=everything)

    def verify(self) -> Report:
        """Reads every file; removes what is damaged and not in use."""
        report = Report()
        # A file of many trees is one on the disk; it is read once.
        sound: dict[tuple[int, int], str] = {}
        with self._errors():
            for tree in self.trees():
                self._verify_tree(tree, report, sound)
            for blob in self._layout.blobs.all():
                if self._differs(blob, blob.name, report, sound):
                    blob.unlink(missing_ok=True)
                    report.removed.append(blob.name)
        return report

    def _verify_tree(self, tree: Tree, report: Report, sound: dict[tuple[int, int], str]) -> None:
        layout = self._layout
        lock = layout.lock("tree", tree.digest)
        if not lock.acquire(shared=True, wait=False):
            return  # it is being taken away
        known = layout.tree_list(tree.digest)
        root = layout.trees / tree.digest
        damaged = root.is_dir() and (
            known is None
            or any(
                self._differs(root / name, digest, report, sound)
                for name, (digest, _) in known.files.items()
            )
        )
        lock.release()
        if not damaged:
            return
        name = tree.uri or tree.digest
        if lock.acquire(wait=False):
            take_away(layout, tree.digest)
            lock.forget()
            report.removed.append(name)
        else:
            report.in_use.append(name)

    def _differs(
        self, file: Path, digest: str, report: Report, sound: dict[tuple[int, int], str]
    ) -> bool:
        try:
            stat = file.stat()
            found = sound.get((stat.st_dev, stat.st_ino))
            if found is None:
                found = sound[stat.st_dev, stat.st_ino] = digest_of(file)
                report.checked += 1
        except OSError:
            return True
        return found != digest

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise disk_error(error, self.folder) from None
