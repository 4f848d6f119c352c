"""Splits of sources that cannot be written: kept here, over what the source declares."""

from __future__ import annotations

from hashlib import sha256
from threading import RLock
from typing import Any, Final

import msgspec
import yaml

from gateway.errors import ConfigError, InvalidModelSettings, RegistryError
from gateway.registries.traffic import Traffic, parse_traffic, traffic_tree
from gateway.state import StateDir, file_name
from gateway.telemetry.logs import log

FOLDER: Final = "overlays"


class Overlays:
    """The splits of one source, one document a model in ``overlays/<source>/`` of the state
    directory. Each holds until what the source declares changes. For any thread."""

    def __init__(self, state: StateDir | None, source: str) -> None:
        self._state = state
        self._source = source
        self._folder = file_name(source)
        self._known: dict[str, tuple[str, Traffic] | None] = {}
        self._lock = RLock()

    @property
    def possible(self) -> bool:
        """Whether there is a state directory to keep them in."""
        return self._state is not None

    def over(self, model: str, declared: Traffic) -> Traffic:
        """What holds for a model: its overlay, or else what is declared.

        An overlay over something else than `declared` is dropped.
        """
        if self._state is None:
            return declared
        with self._lock:
            if model not in self._known:
                self._known[model] = self._read(model)
            kept = self._known[model]
            if kept is None:
                return declared
            digest, traffic = kept
            if digest == digest_of(declared):
                return traffic
            self.drop(model)
        log.warning(
            "%s: the split declared in %s has changed; it holds now, and the one kept in the "
            "state directory is dropped",
            model, self._source,
        )  # fmt: skip
        return declared

    def put(self, model: str, declared: Traffic, traffic: Traffic) -> None:
        """Lets `traffic` hold over what is declared now. Raises `RegistryError`."""
        if self._state is None:
            raise RegistryError(f"{self._source} cannot be written, and there is no state_dir")
        digest = digest_of(declared)
        tree = {"model": model, "source": self._source, "over": digest}
        text = "# A split over what the source declares; it holds until that changes.\n"
        text += yaml.safe_dump({**tree, "traffic": traffic_tree(traffic)}, sort_keys=False)
        with self._lock:
            first = self._known.get(model) is None
            try:
                self._state.write(text.encode(), FOLDER, self._folder, f"{file_name(model)}.yaml")
            except ConfigError as error:
                log.error("%s: the split cannot be kept: %s", model, error)  # it names folders
                raise RegistryError(
                    f"{self._source} cannot be written, and neither can the state directory of "
                    "the gateway; its log says why"
                ) from None
            self._known[model] = (digest, traffic)
        if first:
            log.warning(
                "%s: %s cannot be written; the split is kept in the state directory until the "
                "declared one changes",
                model, self._source,
            )  # fmt: skip

    def drop(self, model: str) -> None:
        """What the source declares holds again."""
        if self._state is None:
            return
        with self._lock:
            if self._known.get(model, True) is not None:
                self._state.delete(FOLDER, self._folder, f"{file_name(model)}.yaml")
            self._known[model] = None

    def _read(self, model: str) -> tuple[str, Traffic] | None:
        assert self._state is not None
        content = self._state.read(FOLDER, self._folder, f"{file_name(model)}.yaml")
        if content is None:
            return None
        try:
            tree: Any = yaml.safe_load(content)
            return str(tree["over"]), parse_traffic(tree["traffic"], "the split kept for it")
        except (yaml.YAMLError, KeyError, TypeError, InvalidModelSettings):
            log.error("%s: the split kept in the state directory cannot be read", model)
            return None


def digest_of(traffic: Traffic) -> str:
    """Equal for documents that say the same."""
    weights = {version: float(weight) for version, weight in traffic.weights.items()}
    plain = msgspec.structs.replace(traffic, weights=weights)
    return sha256(msgspec.json.encode(plain, order="deterministic")).hexdigest()
