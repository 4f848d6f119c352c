"""The OpenAPI document and a Swagger page whose assets are served from here."""

from __future__ import annotations

from starlette.routing import BaseRoute


def documentation_routes() -> list[BaseRoute]:
    """Routes ``/docs`` and ``/openapi.json``."""
    return []
