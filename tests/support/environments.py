"""Virtual environments of other servers, whose packages do not go together with ours.

Each is made when a test first asks for it and kept beside the packages that the tests run
with, until its pins change.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

PINS: Final = {
    "triton": ("nvidia-pytriton==0.7.0", "onnxruntime==1.23.2", "numpy==1.26.4"),
    "kserve": ("kserve==0.21.0",),
    "mlflow": ("mlflow==3.17.2",),
    "mlserver": ("mlserver==1.7.1",),
    "old-numpy": ("numpy==1.26.4", "msgspec==0.22.0", "ml-dtypes==0.5.4"),
}
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
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            install = [str(python(folder)), "-m", "pip", "install", "-q", *PINS[name]]
            subprocess.run(install, check=True, timeout=PATIENCE)
            stamp.write_text(pins)
    return folder


def python(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"
