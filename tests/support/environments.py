"""Virtual environments of other servers, whose packages do not go together with ours.

Each is made when a test first asks for it and kept beside the packages that the tests run
with, until its pins change. ``python tests/support/environments.py`` makes all of them, which
`make test` does while it installs its own packages.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
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
RUN: Final = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
"""All processes of one run of the tests have the same."""


class CannotMake(Exception):
    """An environment could not be installed; the text holds what pip said."""


def environment(name: str) -> Path:
    """The folder of an environment, made if need be. Raises `CannotMake`."""
    folder = FOLDER / name
    failed = FOLDER / f"{name}.failed"
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "pins.txt"
        pins = "\n".join(PINS[name])
        if not stamp.exists() or stamp.read_text() != pins:
            run, _, reason = failed.read_text().partition("\n") if failed.exists() else ("",) * 3
            if run == RUN:
                raise CannotMake(reason)  # not each test that needs it tries for minutes
            try:
                _make(name, folder)
            except CannotMake as error:
                failed.write_text(f"{RUN}\n{error}")
                raise
            stamp.write_text(pins)
    return folder


def _make(name: str, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _call(sys.executable, "-m", "venv", "--without-pip", str(folder))
    # Our pip serves them all. Most of their modules are never imported: only what servers start
    # with is compiled, which takes a fifth of the time.
    pip = (sys.executable, "-m", "pip", "--python", str(python(folder)))
    _call(*pip, "install", "-qq", "--no-compile", *PINS[name])
    if name in IMPORTS:
        load = [str(python(folder)), "-c", f"import {IMPORTS[name]}"]
        subprocess.run(load, timeout=PATIENCE, capture_output=True)


def _call(*command: str) -> None:
    """Runs a command; nothing that it starts outlives it. Raises `CannotMake`."""
    with subprocess.Popen(
        command, process_group=0, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=PATIENCE)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise CannotMake(f"{command} took more than {PATIENCE} s") from None
            raise
    if process.returncode:
        raise CannotMake(f"{command} ended with {process.returncode}: {said}")


def python(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


if __name__ == "__main__":
    # A shell starts what is beside something else without it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for each in PINS:
        try:
            environment(each)
        except CannotMake as error:  # its tests will try again
            print(f"environment {each!r}: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            sys.exit(130)
