"""What an MLflow registry tells in the log, each thing once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.errors import printable
from gateway.telemetry.logs import log

MOST_NAMES: Final = 5
"""Most models that one log line names."""


class Notes:
    """For one source."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._ignored: Mapping[str, str] = {}
        self._told: set[tuple[str, str]] = set()

    def ignored(self, ignored: Mapping[str, str]) -> None:
        """Tells of models that are not served any more, by their reasons."""
        new: dict[str, list[str]] = {}
        for name, why in ignored.items():
            if self._ignored.get(name) != why:
                new.setdefault(why, []).append(name)
        for why, names in new.items():
            if len(names) == 1:
                log.warning(
                    "%s: not serving model '%s': %s", self._source, printable(names[0]), why
                )
            else:
                some = ", ".join(printable(name) for name in names[:MOST_NAMES])
                more = ", ..." if len(names) > MOST_NAMES else ""
                log.warning(
                    "%s: not serving %d models (%s%s), for each: %s",
                    self._source, len(names), some, more, why,
                )  # fmt: skip
        self._ignored = ignored

    def once(self, model: str, text: str) -> None:
        """Tells of something in a model's tags."""
        if (model, text) not in self._told:
            self._told.add((model, text))
            log.warning("%s: %s", model, text)
