"""What people have decided about one model, beside its split: kept in ``state/control/``.

The registry stays the authority of versions, settings and splits; a document here only says
what of them is loaded by hand, what is left out, and whether changes are held back. Without
the documents the registry alone counts.
"""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.errors import ConfigError
from gateway.model_settings import ModelSettings
from gateway.registries.traffic import Traffic
from gateway.state import StateDir, file_name
from gateway.telemetry.logs import log

FOLDER: Final = "control"


class Pause(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model as it was when somebody paused it; `at` is in Unix seconds."""

    who: str
    message: str = ""
    at: float
    versions: tuple[str, ...] = ()
    stand_ins: tuple[str, ...] = ()
    """Versions that answered, or were to, in the place of those wanted; the newest first."""
    settings: ModelSettings = ModelSettings()
    traffic: Traffic = Traffic()


class Control(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model's document. The default says nothing at all."""

    model: str
    loaded: bool | None = None
    """Loaded or unloaded by hand; `None`: as ``control.explicit`` says."""
    with_versions: tuple[str, ...] = ()
    """Versions loaded by hand, besides those of the version policy."""
    without_versions: tuple[str, ...] = ()
    """Versions unloaded by hand."""
    config: str = ""
    """A ``ModelConfig`` in protobuf's text form, in the place of the registry's."""
    files: str = ""
    """Folder of the files that came with a load; they stand for all versions."""
    pause: Pause | None = None

    @property
    def empty(self) -> bool:
        return self == Control(model=self.model)


class Documents:
    """The documents of all models. Reading and writing blocks."""

    def __init__(self, state: StateDir) -> None:
        self._state = state

    def read(self) -> dict[str, Control]:
        """Every model's document; one that cannot be read is reported and left out."""
        found: dict[str, Control] = {}
        folder = self._state.path / FOLDER
        for path in sorted(folder.glob("*.json")):
            try:
                control = msgspec.json.decode(path.read_bytes(), type=Control)
            except (OSError, msgspec.MsgspecError) as error:
                log.error("%s/%s cannot be read and counts for nothing: %s", FOLDER, path.name,
                          " ".join(str(error).split()))  # fmt: skip
                continue
            found[control.model] = control
        return found

    def write(self, control: Control) -> None:
        """Replaces a model's document. Raises `ConfigError`."""
        name = f"{file_name(control.model)}.json"
        if not control.empty:
            self._state.write(msgspec.json.encode(control), FOLDER, name)
            return
        try:
            self._state.delete(FOLDER, name)
        except OSError as error:
            raise ConfigError(f"cannot delete '{FOLDER}/{name}': {error.strerror}") from None
