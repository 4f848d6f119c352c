"""Loads any model over any of the protocols.

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8080 --model digits

``Json`` asks unless the command line names others: ``--user-mix Json=3,Grpc=1``, or class names at
its end. ``locust -f loadtests/locustfile.py --help`` has all options; docs/load-testing.md explains
them.
"""

from __future__ import annotations

from loadtests.users import (
    GrpcStreamUser,
    GrpcUser,
    InvocationsUser,
    OipBinaryUser,
    OipJsonUser,
    V1User,
)


class Json(OipJsonUser):
    """Open Inference Protocol over HTTP, plain JSON."""


class Binary(OipBinaryUser):
    """Open Inference Protocol over HTTP, binary tensors."""

    usual = False


class Grpc(GrpcUser):
    """Open Inference Protocol over gRPC, one call a request."""

    usual = False


class Stream(GrpcStreamUser):
    """Open Inference Protocol over gRPC, one stream a user."""

    usual = False


class V1(V1User):
    """KServe's V1."""

    usual = False


class Invocations(InvocationsUser):
    """MLflow's scoring protocol."""

    usual = False
