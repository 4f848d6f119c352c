"""A model's own numbers (`gateway.telemetry.custom`), from a child to the gateway's page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from gateway.isolation import messages as m
from gateway.isolation.channel import Message


class Numbers:
    """In the child: sends all of them whenever some have changed."""

    def __init__(self, send: Callable[[Message], object]) -> None:
        self._send = send
        self._told: list[Any] = []

    def tell(self) -> None:
        """Does nothing as long as no model has made any."""
        custom = sys.modules.get("gateway.telemetry.custom")
        if custom is None:
            return
        now = [
            (f.name, f.description, f.kind, list(f.values.items())) for f in custom.own_families()
        ]
        if now != self._told:
            self._told = now
            self._send((m.METRICS, now))


def families_of(told: Sequence[Any]) -> list[Any]:
    """In the gateway: the families that a child tells of."""
    from gateway.telemetry.custom import Family

    return [
        Family(name, description, kind, {tuple(map(tuple, key)): value for key, value in values})
        for name, description, kind, values in told
    ]
