"""Checks of a runtime: what it says of itself and of artifacts, loading, giving back."""

from __future__ import annotations

import base64
import gc
import inspect
import json
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace as changed

from gateway.errors import ModelLoadError
from gateway.model_settings import ModelSettings
from runtimes.conformance_base import ROWS, Suite, check_message, require
from runtimes.interface import Artifact, Model

UNKNOWN_OPTION: Final = "no_such_option_anywhere"
CYCLES: Final = 5

_ALONE: Final = """
import base64, importlib, importlib.util, json, pickle, sys

module, file, name, libraries, artifact = json.loads(sys.argv[1])

class Hiding:
    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        if artifact is not None and name.partition(".")[0] in libraries:
            return None
        for finder in self.finders:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec

sys.meta_path[:] = [Hiding(list(sys.meta_path))]
try:
    loaded = importlib.import_module(module)
except ModuleNotFoundError as error:
    if error.name.partition(".")[0] in libraries:
        raise
    spec = importlib.util.spec_from_file_location("conformance_subject", file)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["conformance_subject"] = loaded
    spec.loader.exec_module(loaded)
runtime = loaded
for part in name.split("."):
    runtime = getattr(runtime, part)
runtime = runtime()
report = runtime.report()
said = {"available": report.available, "reason": report.reason}
said["imported"] = sorted({m.partition(".")[0] for m in sys.modules} & set(libraries))
if artifact is not None:
    try:
        runtime.load(pickle.loads(base64.b64decode(artifact)))
        said["load"] = None
    except Exception as error:
        said["load"] = [type(error).__name__, str(error)]
print(json.dumps(said))
"""


class LoadingChecks(Suite):
    """Everything around `load`."""

    def test_reports_that_it_can_be_used(self) -> None:
        report = self.runtime.report()
        require(report.name == self.runtime.name, "report().name must be the runtime's name")
        require(report.available, f"not available: {report.reason}")
        require(bool(report.formats), "report().formats must say what is loaded")

    def test_imports_its_library_when_it_loads(self) -> None:
        if self.library:
            said = self._alone(None)
            require(not said["imported"], f"report() imports {', '.join(said['imported'])}")

    def test_says_what_to_install(self, tmp_path: Path) -> None:
        if self.library:
            said = self._alone(self.artifact(tmp_path))
            need = "without its library, {} must say what to install: pip install ..."
            require("pip install" in said["reason"], need.format("report().reason"))
            kind, text = said["load"] or ("", "")
            require(kind == "ModelLoadError" and "pip install" in text, need.format("load()"))

    def test_probes_only_its_own(self, tmp_path: Path) -> None:
        probe, settings = self.runtime.probe, ModelSettings()
        own, other = tmp_path / "own", tmp_path / "other"
        own.mkdir()
        require(not probe(Artifact("empty", "1", own, settings)), "probe() took an empty folder")
        gone = Artifact("gone", "1", tmp_path / "gone", settings)
        require(not probe(gone), "probe() took a missing folder")
        (other / "data").mkdir(parents=True)
        (other / "notes.txt").write_text("not a model")
        (other / "data" / "weights.foreign").write_bytes(b"\0")
        foreign = Artifact("foreign", "1", other, settings)
        require(not probe(foreign), "probe() took a folder with none of its files")
        require(probe(self.artifact(own)), "probe() must take the artifact")

    def test_estimates_memory(self, tmp_path: Path) -> None:
        estimate = self.runtime.estimate(self.artifact(tmp_path))
        require(type(estimate) is int and estimate >= 0, "estimate() must be bytes")
        if not estimate:
            with self.loaded(tmp_path) as model:
                require(model.elsewhere, "estimate() is 0, but the model is not elsewhere")

    def test_says_what_executes_code(self, tmp_path: Path) -> None:
        artifact = self.artifact(tmp_path)
        what = self.runtime.executes_code(artifact)
        require(isinstance(what, str), "executes_code() must be text, empty where nothing does")
        require("\n" not in what and str(tmp_path) not in what, f"no line for an error: {what!r}")
        file = self.runtime.code_file(artifact)
        inside = file is None or (file.is_file() and artifact.path in file.parents)
        require(inside, "code_file() must be a file in the version's folder, or None")

    def test_refuses_unknown_options(self, tmp_path: Path) -> None:
        if self.any_option:
            return
        artifact = self.artifact(tmp_path)
        options = {**artifact.settings.options, UNKNOWN_OPTION: 1}
        settings = changed(artifact.settings, options=options)
        error = self._refused(replace(artifact, settings=settings), tmp_path, "an unknown option")
        require(UNKNOWN_OPTION in str(error), f"the error must name the option: {error}")

    def test_says_why_a_broken_artifact_does_not_load(self, tmp_path: Path) -> None:
        self._refused(self.broken(tmp_path), tmp_path, "a broken artifact")

    def test_says_why_a_missing_artifact_does_not_load(self, tmp_path: Path) -> None:
        artifact = self.artifact(tmp_path)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        for file in files:
            file.unlink()
        if files:
            self._refused(artifact, tmp_path, "an artifact whose files are gone")

    def test_writes_nothing_into_the_folder(self, tmp_path: Path) -> None:
        with self.hosted(self.artifact(tmp_path)) as artifact:
            before = _marks(tmp_path)
            self._cycle(artifact)
        require(_marks(tmp_path) == before, "a version's folder may be read-only: write elsewhere")

    def test_can_be_loaded_twice(self, tmp_path: Path) -> None:
        with self.hosted(self.artifact(tmp_path)) as artifact:
            first, second = self.runtime.load(artifact), self.runtime.load(artifact)
            try:
                first.close()
                self.answers(second, self.inputs(second, ROWS))
            finally:
                second.close()

    def test_can_be_closed_twice(self, tmp_path: Path) -> None:
        with self.loaded(tmp_path) as model:
            model.close()

    def test_answers_in_any_thread(self, tmp_path: Path) -> None:
        with self.hosted(self.artifact(tmp_path)) as artifact:
            model = self.runtime.load(artifact)  # this thread lives on, so the others are others
            try:
                inputs = self.inputs(model, ROWS)
                for _ in range(3):
                    self.in_thread(lambda: self.answers(model, inputs), "infer()")
            finally:
                self.in_thread(model.close, "close()")

    def test_gives_threads_and_files_back(self, tmp_path: Path) -> None:
        with self.hosted(self.artifact(tmp_path)) as artifact:
            for _ in range(2):  # libraries keep some of their own from the first use on
                self._cycle(artifact)
            before = _held()
            for _ in range(CYCLES):
                self._cycle(artifact)
            ends = time.monotonic() + min(self.patience, 10)
            while (more := _more(before, _held())) and time.monotonic() < ends:
                gc.collect()
                time.sleep(0.02)
            require(not more, f"after {CYCLES} times load() and close() there are more {more}")

    def test_gives_memory_back(self, tmp_path: Path) -> None:
        with self.hosted(self.artifact(tmp_path)) as artifact:
            gone = weakref.ref(self._cycle(artifact))
            ends = time.monotonic() + min(self.patience, 10)
            while gone() is not None and time.monotonic() < ends:
                gc.collect()
                time.sleep(0.02)
            require(gone() is None, "something still holds the model after close()")

    # -- helpers -------------------------------------------------------------------------

    def _cycle(self, artifact: Artifact) -> Model:
        model = self.runtime.load(artifact)
        try:
            self.answers(model, self.inputs(model, ROWS))
        finally:
            model.close()
        return model

    def _refused(self, artifact: Artifact, folder: Path, what: str) -> ModelLoadError:
        with self.hosted(artifact) as hosted:
            try:
                self.runtime.load(hosted).close()
            except ModelLoadError as error:
                check_message(error, folder)
                return error
        raise AssertionError(f"{what} must raise ModelLoadError")

    def _alone(self, artifact: Artifact | None) -> dict[str, Any]:
        """What the runtime says in a fresh process; with an artifact, where its library is
        hidden."""
        kind = type(self.runtime)
        packed = (
            None
            if artifact is None
            else base64.b64encode(pickle.dumps(replace(artifact, host=None))).decode()
        )
        about = [kind.__module__, inspect.getsourcefile(kind), kind.__qualname__]
        done = subprocess.run(
            [sys.executable, "-c", _ALONE, json.dumps([*about, list(self.library), packed])],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
            timeout=self.patience,
        )
        last = (done.stderr.strip().splitlines() or [""])[-1]
        require(done.returncode == 0, f"report() failed in a process of its own: {last}")
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return said


def _marks(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def _held() -> dict[str, int]:
    """Threads and open files of this process."""
    try:
        return {
            "threads": len(os.listdir("/proc/self/task")),
            "open files": len(os.listdir("/proc/self/fd")),
        }
    except OSError:
        return {"threads": threading.active_count()}


def _more(before: dict[str, int], after: dict[str, int]) -> str:
    return " and ".join(
        f"{k} ({before[k]}, then {after[k]})" for k in after if after[k] > before[k]
    )
