"""``/openapi.json`` and ``/docs``: a Swagger page whose assets come from this process, so that
it works without a network."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from swagger_ui_bundle import swagger_ui_path

from gateway.servers.http_app import answer
from gateway.servers.openapi import document

_ASSETS: Final = Path(swagger_ui_path)
_SHOWN: Final = frozenset(
    {
        "swagger-ui.css",
        "swagger-ui-bundle.js",
        "swagger-ui-standalone-preset.js",
        "favicon-16x16.png",
        "favicon-32x32.png",
    }
)

_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <title>Sluicegate</title>
  <link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
  <link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
  <div id="swagger-ui"></div>
  <script src="/docs/swagger-ui-bundle.js"></script>
  <script>
    SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true,
                     defaultModelsExpandDepth: 0, displayRequestDuration: true});
  </script>
</body>
</html>
"""


def documentation_routes() -> list[BaseRoute]:
    """Routes ``/docs``, its assets, and ``/openapi.json``."""
    return [
        Route("/docs", _page),
        Route("/docs/", _to_page),
        Route("/docs/{asset}", _asset),
        Route("/openapi.json", _openapi),
    ]


async def _page(request: Request) -> Response:
    return Response(_PAGE, media_type="text/html")


async def _to_page(request: Request) -> Response:
    return RedirectResponse("/docs")


async def _openapi(request: Request) -> Response:
    return answer(document())


async def _asset(request: Request) -> Response:
    name = request.path_params["asset"]
    if name not in _SHOWN:
        raise HTTPException(404)
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response((_ASSETS / name).read_bytes(), media_type=kind)
