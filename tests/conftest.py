"""Hypothesis profiles: `ci` is the default; `HYPOTHESIS_PROFILE=deep` looks much further."""

from __future__ import annotations

import os

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
