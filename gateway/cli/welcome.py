"""What `sluice serve` tells a person when the models are loaded."""

from __future__ import annotations

from gateway.app import Gateway


def welcome(gateway: Gateway) -> str:
    """Models, addresses, and lines to paste."""
    where = gateway.addresses()
    return "\n".join(
        [
            f"HTTP     {where['http']}",
            f"gRPC     {where['grpc']}  ({gateway.grpc_server}: {gateway.grpc_why})",
            f"metrics  {where['metrics']}",
            f"docs     {where['http']}/docs",
        ]
    )
