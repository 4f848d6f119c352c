"""Locust users of inference servers. Import what you need in a locustfile, and subclass it::

    from loadtests.users import GrpcUser

    class Digits(GrpcUser):
        model = "digits"

Whatever is imported brings the options (``--model``, ``--data``, ``--shape``, ``--fail-p99``, ...),
the table of versions and the thresholds with it. See docs/load-testing.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from loadtests.errors import BenchError

if TYPE_CHECKING:
    from loadtests.users.base import InferenceUser
    from loadtests.users.grpc import GrpcStreamUser, GrpcUser
    from loadtests.users.http import InvocationsUser, OipBinaryUser, OipJsonUser, V1User
    from loadtests.users.shapes import Diurnal, Ramp, Spike, StepToSaturation

__all__ = [
    "Diurnal",
    "GrpcStreamUser",
    "GrpcUser",
    "InferenceUser",
    "InvocationsUser",
    "OipBinaryUser",
    "OipJsonUser",
    "Ramp",
    "Spike",
    "StepToSaturation",
    "V1User",
]

# What imports locust, which changes the whole process, is imported when it is asked for.
_WHERE = {
    "InferenceUser": "base",
    "GrpcUser": "grpc",
    "GrpcStreamUser": "grpc",
    "OipJsonUser": "http",
    "OipBinaryUser": "http",
    "V1User": "http",
    "InvocationsUser": "http",
    "Diurnal": "shapes",
    "Ramp": "shapes",
    "Spike": "shapes",
    "StepToSaturation": "shapes",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name in ("locust", "gevent", "hdrh"):
            raise BenchError(
                f"{error.name} is missing; type: pip install 'sluicegate[locust]'"
            ) from None
        raise
