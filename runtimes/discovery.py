"""Which runtimes are installed, and which of them an artifact is for."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Final

from gateway.errors import ModelLoadError, printable
from runtimes.interface import Artifact, Model, Runtime, RuntimeReport
from runtimes.remote.settings import runtime_of

log = logging.getLogger(__name__)

GROUP: Final = "sluicegate.runtimes"
PACKAGE: Final = "sluicegate"
BUILT_IN: Final = {
    "oip": "runtimes.remote.oip:OipRuntime",
    "triton": "runtimes.remote.triton:TritonRuntime",
    "mlflow": "runtimes.mlflow:MlflowRuntime",
    "onnx": "runtimes.onnx:OnnxRuntime",
    "torch": "runtimes.torch:TorchRuntime",
    "python": "runtimes.python:PythonRuntime",
}
"""As the package's own entry points say, in the order in which artifacts are offered to them; a
checkout that is not installed has no others. An artifact that several could load is taken by
the first of them."""


class BrokenRuntime(Runtime):
    """Stands for a plugin that cannot be used: it says why instead of being absent."""

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


@dataclass(frozen=True)
class Installed:
    """One entry of the group, with its runtime (or a `BrokenRuntime`)."""

    runtime: Runtime
    package: str
    package_version: str
    built_in: bool
    used: bool = True
    """Whether models can have it; False for one whose name is taken."""

    def report(self) -> RuntimeReport:
        """What the runtime says of itself, and where it comes from."""
        return replace(
            report_of(self.runtime),
            package=self.package,
            package_version=self.package_version,
            built_in=self.built_in,
        )


def load_runtimes() -> dict[str, Runtime]:
    """Every runtime that models can have, by name, the built-in ones first.

    A plugin that cannot be imported is there as a `BrokenRuntime`, and the log says why; it
    never stops the others.
    """
    found = installed_runtimes()
    for each in found:
        if isinstance(each.runtime, BrokenRuntime):
            log.warning("%s", each.runtime.reason)
    return {each.runtime.name: each.runtime for each in found if each.used}


def installed_runtimes() -> list[Installed]:
    """Every entry of the group, the built-in ones first, also those that cannot be used.

    A name belongs to whoever had it first: a plugin does not replace a built-in runtime, nor a
    plugin of another package. Installing a package must not change how models run that are
    served already; ``runtime: NAME`` in ``model.yaml`` chooses a plugin instead.
    """
    try:
        ours = version(PACKAGE)
    except PackageNotFoundError:
        ours = ""
    found = [
        Installed(_make(EntryPoint(name, target, GROUP), PACKAGE), PACKAGE, ours, built_in=True)
        for name, target in BUILT_IN.items()
    ]
    owners = dict.fromkeys(BUILT_IN, PACKAGE)
    for point, package, package_version in _plugins(entry_points(group=GROUP)):
        owner = owners.setdefault(point.name, package)
        clash = "" if owner == package else _clash(point.name, package, owner)
        runtime = BrokenRuntime(point.name, clash) if clash else _make(point, package)
        found.append(Installed(runtime, package, package_version, built_in=False, used=not clash))
    return found


def report_of(runtime: Runtime) -> RuntimeReport:
    """`runtime.report()`; one that fails is not available, and says why."""
    try:
        report = runtime.report()
        if not isinstance(report, RuntimeReport):
            raise TypeError(f"report() gave a {type(report).__name__}, not a RuntimeReport")
    except Exception as error:
        reason = f"runtime '{runtime.name}' cannot say what it is: {_one_line(error)}"
        return RuntimeReport(name=runtime.name, available=False, reason=reason)
    return report


def _plugins(points: Iterable[EntryPoint]) -> Iterator[tuple[EntryPoint, str, str]]:
    """All but our own, in the order of names and packages, each once, with its package."""
    seen: set[tuple[str, str]] = set()
    entries = []
    for point in points:
        package = point.dist.name if point.dist is not None else ""
        # A distribution that is on the path twice gives its entries twice.
        if package != PACKAGE and (point.name, package) not in seen:
            seen.add((point.name, package))
            entries.append((point, package, point.dist.version if point.dist is not None else ""))
    return iter(sorted(entries, key=lambda entry: (entry[0].name, entry[1])))


def _clash(name: str, package: str, owner: str) -> str:
    whose = "a built-in runtime" if owner == PACKAGE else f"the runtime of package '{owner}'"
    return (
        f"runtime '{printable(name)}' of package '{package}' has the name of {whose} and is left "
        f"out; give its entry point in '{GROUP}' another name"
    )


def _make(point: EntryPoint, package: str) -> Runtime:
    what = f"runtime '{printable(point.name)}'"
    try:
        runtime = point.load()()
    except (Exception, SystemExit) as error:
        mend = "" if package == PACKAGE else f"; mend or uninstall package '{package}'"
        cause = _one_line(error)
        return BrokenRuntime(point.name, f"{what} ({point.value}) cannot be used: {cause}{mend}")
    if not isinstance(runtime, Runtime):
        reason = f"{what}: {point.value} is not a subclass of Runtime (runtimes.interface)"
        return BrokenRuntime(point.name, reason)
    name = getattr(runtime, "name", None)
    if name != point.name:
        reason = f"{what}: {point.value} has the name {name!r}; it must be that of its entry point"
        return BrokenRuntime(point.name, reason)
    return runtime


def _one_line(error: BaseException) -> str:
    return printable(" ".join(str(error).split()) or type(error).__name__, 300)


def choose(artifact: Artifact, runtimes: Mapping[str, Runtime]) -> Runtime:
    """The runtime that the settings name, else the first that takes the artifact.

    Raises `ModelLoadError` when there is none.
    """
    name = runtime_of(artifact)
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
    report = report_of(runtime)
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
