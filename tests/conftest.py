"""Hypothesis profiles: `ci` is the default; `HYPOTHESIS_PROFILE=deep` looks much further."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

_QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
_PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)

settings.register_profile(
    "ci",
    max_examples=150,
    derandomize=True,
    print_blob=True,
    deadline=None,
    phases=_PHASES,
    database=None,
    suppress_health_check=_QUIET,
)
settings.register_profile(
    "deep",
    max_examples=3000,
    print_blob=True,
    deadline=None,
    phases=_PHASES,
    database=None,
    suppress_health_check=_QUIET,
)
SCRATCH = pytest.StashKey[set[Path]]()

settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Hundreds of processes are started, and each would compile all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(scope="session", autouse=True)
def own_state() -> Iterator[None]:
    """Gateways of the tests keep no state in the home of whoever runs them."""
    with (
        tempfile.TemporaryDirectory(prefix="sluice-state-") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("XDG_STATE_HOME", folder)
        yield


def scratch() -> set[Path]:
    """The folders that Triton's Python backend has made, which are left where it is killed."""
    return set(Path("/tmp").glob("python_env_*"))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SCRATCH] = scratch()
    gc.disable()  # there is hardly any garbage, and much to look through, until the tests run


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return  # other workers may have servers that use theirs
    for folder in scratch() - config.stash[SCRATCH]:
        with contextlib.suppress(OSError):  # not empty: somebody else's, and in use
            folder.rmdir()
