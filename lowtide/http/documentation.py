"""`/openapi.json`, and a page that shows it without asking any other server."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import msgspec
from flask import Response

from lowtide.domain.errors import NotFound

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Lowtide API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = """window.ui = SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null,
});
"""
_ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"


@lru_cache(maxsize=1)
def _document() -> bytes:
    from lowtide.http.openapi import document as make
    from lowtide.http.routes import ALL

    return msgspec.json.encode(make(ALL))


def document() -> Response:
    """`GET /openapi.json`."""
    return Response(_document(), mimetype="application/json")


def page() -> Response:
    """`GET /docs`."""
    return Response(_PAGE, headers={"Content-Security-Policy": _POLICY}, mimetype="text/html")


def asset(name: str) -> Response:
    """`GET /docs/{name}`: the page's own files; raises NotFound."""
    if name == "start.js":
        return Response(_START, mimetype="text/javascript")
    spec = find_spec("flask_swagger_ui")
    if name not in _ASSETS or spec is None or spec.origin is None:
        raise NotFound("No such page.", code="unknown_url")
    content = (Path(spec.origin).parent / "dist" / name).read_bytes()
    return Response(content, mimetype=_ASSETS[name], headers={"Cache-Control": "max-age=86400"})
