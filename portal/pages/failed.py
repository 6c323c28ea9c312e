"""The pages for errors and for unknown addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastapi.exception_handlers import http_exception_handler
from nicegui import Client, app, ui
from nicegui.page import page
from starlette.exceptions import HTTPException

from portal import theme
from portal.components.basics import heading
from portal.components.frame import explain, frame
from portal.sessions import principal_of

if TYPE_CHECKING:
    from fastapi import Request
    from starlette.responses import Response


_NOT_FOUND: Final = 404


def install(*, api_url: str) -> None:
    """Serve a page for errors and one for unknown addresses."""

    async def not_found(request: Request, error: Exception) -> Response:
        is_page = request.scope.get("endpoint") is None
        if not is_page and isinstance(error, HTTPException):
            return await http_exception_handler(request, error)
        with Client(page(""), request=request) as client:
            _build("Page not found", "There is no page at this address.", request, api_url)
        return client.build_response(request, _NOT_FOUND)

    def page_failed(error: Exception) -> None:
        request = ui.context.client.request
        _build("Page failed to load", explain(error), request, api_url)

    app.exception_handler(_NOT_FOUND)(not_found)
    app.on_page_exception(page_failed)


def _build(title: str, message: str, request: Request | None, api_url: str) -> None:
    principal = None if request is None else principal_of(request.session)
    if principal is None:
        # The frame needs a principal; the sign-in page, which may fail too, has none.
        theme.paint()
        ui.page_title(f"{title} · Lowtide")
        with ui.element("div").classes("page"):
            _show_message(title, message, "/sign-in", "Sign in")
        return
    with frame(title, api_url=api_url, on_interval=None):
        _show_message(title, message, "/batches", "View all batches")


def _show_message(title: str, message: str, path: str, name: str) -> None:
    with ui.element("div").classes("card section").props("role=alert"):
        heading(title, 1)
        ui.label(message).classes("break")
        ui.link(name, path)
