"""Virtual environments of other servers, whose packages do not go together with ours.

Each is made when a test first asks for it and kept beside the packages that the tests run
with, until its pins change. ``python tests/support/environments.py`` makes all of them, which
`make test` does while it installs its own packages.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

PEERS: Final = Path(__file__).parents[2] / "loadtests" / "compare" / "peers"


def pinned(peer: str) -> tuple[str, ...]:
    """What a server of the comparison is installed with."""
    lines = (PEERS / peer / "requirements.txt").read_text().splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


PINS: Final = {
    "triton": pinned("triton"),
    "mlflow": ("mlflow==3.17.2",),
    "mlserver": ("mlserver==1.7.1",),
    "old-numpy": ("numpy==1.26.4", "msgspec==0.22.0", "ml-dtypes==0.5.4"),
}
IMPORTS: Final = {
    "mlflow": "mlflow.cli, mlflow.server.fastapi_app, mlflow.pyfunc.scoring_server",
    "mlserver": "mlserver.cli.main",
}
"""What a server imports when it starts."""
FOLDER: Final = Path(sys.prefix) / "environments"
PATIENCE: Final = 1200


def environment(name: str) -> Path:
    """The folder of an environment, made if need be. Raises `CalledProcessError`."""
    folder = FOLDER / name
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "pins.txt"
        pins = "\n".join(PINS[name])
        if not stamp.exists() or stamp.read_text() != pins:
            shutil.rmtree(folder, ignore_errors=True)
            # Our pip serves them all. Most of their modules are never imported: only what servers
            # start with is compiled, which takes a fifth of the time.
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
            install = [sys.executable, "-m", "pip", "--python", python(folder), "install", "-qq"]
            subprocess.run([*install, "--no-compile", *PINS[name]], check=True, timeout=PATIENCE)
            if name in IMPORTS:
                load = [python(folder), "-c", f"import {IMPORTS[name]}"]
                subprocess.run(load, check=True, timeout=PATIENCE, capture_output=True)
            stamp.write_text(pins)
    return folder


def python(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


if __name__ == "__main__":
    for each in PINS:
        try:
            environment(each)
        except (subprocess.SubprocessError, OSError) as error:  # its tests will try again
            print(f"environment {each!r}: {error}", file=sys.stderr)
