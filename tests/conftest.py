"""Hypothesis profiles: `ci` is the default; `HYPOTHESIS_PROFILE=deep` looks much further."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

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
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session", autouse=True)
def own_state() -> Iterator[None]:
    """Gateways of the tests keep no state in the home of whoever runs them."""
    with (
        tempfile.TemporaryDirectory(prefix="sluice-state-") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("XDG_STATE_HOME", folder)
        yield
