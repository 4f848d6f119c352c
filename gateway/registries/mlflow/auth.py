"""Users and TLS for MLflow, as its own environment variables say."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping

from gateway.errors import RegistryError, printable


def bearer(environment: Mapping[str, str]) -> dict[str, str]:
    """The header of a token; a user's name and password win over it, as in MLflow."""
    token = environment.get("MLFLOW_TRACKING_TOKEN", "")
    if not token or basic(environment) is not None:
        return {}
    return {"authorization": f"Bearer {token}"}


def basic(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """User and password."""
    user = environment.get("MLFLOW_TRACKING_USERNAME", "")
    password = environment.get("MLFLOW_TRACKING_PASSWORD", "")
    return (user, password) if user and password else None


def tls(environment: Mapping[str, str]) -> ssl.SSLContext | bool:
    """How the server's certificate is checked, and which one we show.

    Raises `RegistryError` for files that cannot be used.
    """
    insecure = environment.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    authorities = environment.get("MLFLOW_TRACKING_SERVER_CERT_PATH", "")
    own = environment.get("MLFLOW_TRACKING_CLIENT_CERT_PATH", "")
    if insecure and authorities:
        raise RegistryError(
            "MLFLOW_TRACKING_INSECURE_TLS and MLFLOW_TRACKING_SERVER_CERT_PATH are both set; "
            "unset one of them"
        )
    if not (insecure or authorities or own):
        return True
    name, path = "MLFLOW_TRACKING_SERVER_CERT_PATH", authorities
    try:
        if authorities and os.path.isdir(authorities):
            context = ssl.create_default_context(capath=authorities)
        else:
            context = ssl.create_default_context(cafile=authorities or None)
        if insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if own:
            name, path = "MLFLOW_TRACKING_CLIENT_CERT_PATH", own
            context.load_cert_chain(own)
    except (OSError, ssl.SSLError) as error:
        raise RegistryError(f"{name} '{path}' cannot be used: {printable(error, 200)}") from None
    return context
