"""Pages without the framework, for requests that fail before it."""

from __future__ import annotations

from html import escape
from typing import Final

from fastapi.responses import HTMLResponse

_PAGE: Final = """<!doctype html>
<html lang="en-US">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Lowtide</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 36rem; margin: 15vh auto; padding: 0 24px; }}
h1 {{ font-size: 24px; line-height: 1.2; }}
</style>
</head>
<body><main role="alert"><h1>{title}</h1><p>{message}</p></main></body>
</html>
"""


def plain_page(
    title: str, message: str, status: int, *, retry_after: int | None = None
) -> HTMLResponse:
    """Return a page; the browser loads its address again after `retry_after` seconds."""
    headers = {} if retry_after is None else {"Refresh": str(retry_after)}
    content = _PAGE.format(title=escape(title), message=escape(message))
    return HTMLResponse(content, status, headers | {"Cache-Control": "no-store"})


def leaving_page(title: str, address: str) -> HTMLResponse:
    """Return a page from which the browser goes on to the address of another site."""
    content = _PAGE.format(title=escape(title), message="")
    return HTMLResponse(content, 200, {"Refresh": f"0; url={address}", "Cache-Control": "no-store"})
