"""MLflow's webhooks: whether one is genuine. Pure."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from gateway.errors import NotAllowed

SIGNATURE: Final = "x-mlflow-signature"
TIMESTAMP: Final = "x-mlflow-timestamp"
DELIVERY: Final = "x-mlflow-delivery-id"
WINDOW: Final = 300.0
"""Seconds by which a webhook's time may differ from ours. (Sent again within it, it makes us look
once more, which does no harm.)"""


def check(headers: Mapping[str, str], body: bytes, secret: str, now: float) -> None:
    """Raises `NotAllowed` unless the webhook was signed with `secret`, and lately.

    `now` is in seconds since the epoch.
    """
    if not secret:
        raise NotAllowed(
            "webhooks are off; set mlflow.webhook_secret to the secret of the webhook in MLflow"
        )
    given, sent, delivery = (headers.get(each, "") for each in (SIGNATURE, TIMESTAMP, DELIVERY))
    if not given or not sent or not delivery:
        raise NotAllowed(
            "the webhook is not signed; create it in MLflow with the secret that "
            "mlflow.webhook_secret holds"
        )
    expected = sign(secret, delivery, sent, body)
    signatures = [text.partition(",") for text in given.split()]
    if not any(
        version == "v1" and hmac.compare_digest(value.encode(), expected.encode())
        for version, _, value in signatures
    ):
        raise NotAllowed("the webhook's signature is wrong; is mlflow.webhook_secret its secret?")
    # Only now, so that somebody without the secret learns nothing of our clock.
    if not sent.isdecimal() or len(sent) > 15 or abs(now - int(sent)) > WINDOW:
        raise NotAllowed("the webhook's time is more than 5 minutes from ours; check both clocks")


def sign(secret: str, delivery: str, sent: str, body: bytes) -> str:
    """MLflow's signature, version 1: base64 of HMAC-SHA256."""
    content = f"{delivery}.{sent}.".encode("utf-8", "surrogateescape") + body
    return base64.b64encode(hmac.digest(secret.encode(), content, sha256)).decode()
