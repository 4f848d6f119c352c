"""Makes the virtual environment that the Triton side needs: ``python -m ... DIR``.

Its own, since nvidia-pytriton wants numpy below 2. It takes a few hundred MB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

from loadtests.errors import BenchError

from . import triton
from .peers import FOLDER

REQUIREMENTS = FOLDER / "triton" / "requirements.txt"


def create(folder: Path) -> None:
    """Makes the environment, installs the pins and starts the server's ``--help`` once."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        raise BenchError("numpy 1.26 and onnxruntime 1.23 need Python 3.10, 3.11 or 3.12")
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "-r", str(REQUIREMENTS)]
    subprocess.run(pip, check=True, timeout=1800)
    found = triton.find(folder)
    said = subprocess.run(
        [str(found.server / "bin" / "tritonserver"), "--help"],
        check=False,
        env=found.variables(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "--model-repository" not in said.stdout + said.stderr:
        raise BenchError(f"tritonserver does not start: {said.stderr.strip()[-400:]}")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.compare.triton_env")
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    try:
        create(args.directory.absolute())
    except (BenchError, subprocess.SubprocessError) as error:
        print(f"triton_env: {error}", file=sys.stderr)
        return 2
    print(f"ready: python -m loadtests.compare --triton-venv {args.directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
