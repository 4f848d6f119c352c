"""Which runtimes are installed, and which of them an artifact is for."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from gateway.errors import ModelLoadError, printable
from runtimes.interface import Artifact, Model, Runtime, RuntimeReport

log = logging.getLogger(__name__)

GROUP: Final = "sluicegate.runtimes"
BUILT_IN: Final = {
    "oip": "runtimes.remote.oip:OipRuntime",
    "triton": "runtimes.remote.triton:TritonRuntime",
    "mlflow": "runtimes.mlflow:MlflowRuntime",
    "onnx": "runtimes.onnx:OnnxRuntime",
    "torch": "runtimes.torch:TorchRuntime",
    "python": "runtimes.python:PythonRuntime",
}
"""For a checkout that is not installed; the installed package has the same as entry points.
An artifact that several could load is taken by the first of them."""


class BrokenRuntime(Runtime):
    """Stands for a plugin that cannot be imported: it says why instead of being absent."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason

    def report(self) -> RuntimeReport:
        """Not available, and why."""
        return RuntimeReport(name=self.name, available=False, reason=self.reason)

    def probe(self, artifact: Artifact) -> bool:
        """Never chosen by itself."""
        return False

    def estimate(self, artifact: Artifact) -> int:
        """Nothing will be loaded."""
        return 0

    def load(self, artifact: Artifact) -> Model:
        """Raises `ModelLoadError` with the reason."""
        raise ModelLoadError(self.reason)


def load_runtimes() -> dict[str, Runtime]:
    """Every installed runtime by name, the built-in ones first.

    A plugin that cannot be imported is there as a `BrokenRuntime`; it never stops the others.
    """
    points = {name: EntryPoint(name, target, GROUP) for name, target in BUILT_IN.items()}
    # Those of the installed package keep their places.
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        points[point.name] = point
    return {name: _make(point) for name, point in points.items()}


def _make(point: EntryPoint) -> Runtime:
    try:
        runtime = point.load()()
    except Exception as error:
        cause = " ".join(str(error).split())
        reason = f"runtime '{point.name}' ({point.value}) cannot be used: {cause}"
        log.warning("%s", reason)
        return BrokenRuntime(point.name, reason)
    if not isinstance(runtime, Runtime):
        reason = f"runtime '{point.name}': {point.value} is not a subclass of Runtime"
        log.warning("%s", reason)
        return BrokenRuntime(point.name, reason)
    return runtime


def choose(artifact: Artifact, runtimes: Mapping[str, Runtime]) -> Runtime:
    """The runtime that the settings name, else the first that takes the artifact.

    Raises `ModelLoadError` when there is none.
    """
    name = artifact.settings.runtime
    if name is not None:
        if name in runtimes:
            return runtimes[name]
        close = difflib.get_close_matches(name, runtimes, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ModelLoadError(
            f"runtime '{printable(name)}' is not installed{hint} "
            f"(installed: {', '.join(runtimes) or 'none'})"
        )
    for runtime in runtimes.values():
        if _probes(runtime, artifact):
            return runtime
    raise ModelLoadError(
        f"no runtime can load version {artifact.version}: it holds {_files(artifact)}, but "
        f"{'; '.join(map(_wants, runtimes.values())) or 'no runtime is installed'}; "
        "name the file with 'file' or the runtime with 'runtime'"
    )


def _probes(runtime: Runtime, artifact: Artifact) -> bool:
    try:
        return runtime.probe(artifact)
    except Exception:
        log.exception("runtime '%s' failed to probe %s", runtime.name, artifact.model)
        return False


def _wants(runtime: Runtime) -> str:
    report = runtime.report()
    if not report.formats:
        return f"runtime '{runtime.name}' is not available ({report.reason})"
    return f"runtime '{runtime.name}' loads {', '.join(report.formats)} files"


def _files(artifact: Artifact, most: int = 8) -> str:
    try:
        names = sorted(path.name for path in artifact.path.iterdir())
    except OSError:
        return "no folder"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return printable(", ".join(names[:most]) + more, 300) if names else "no files"
