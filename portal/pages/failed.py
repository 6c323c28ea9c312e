"""The pages for errors, for unknown addresses, and for pages that are not for a tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastapi.exception_handlers import http_exception_handler
from nicegui import Client, app, ui
from nicegui.page import page
from starlette.exceptions import HTTPException

from lowtide.core.errors import Forbidden, LowtideError
from portal import theme
from portal.components.basics import heading
from portal.components.frame import explain, frame, show_title
from portal.plain_pages import plain_page
from portal.services import in_thread, lowtide
from portal.sessions import FIRST_PAGE, principal_of

if TYPE_CHECKING:
    from fastapi import Request
    from starlette.responses import Response

    from lowtide.tenants.sign_in import Principal


_NOT_FOUND: Final = 404


def install() -> None:
    """Serve a page for errors and one for unknown addresses."""

    async def not_found(request: Request, error: Exception) -> Response:
        is_page = request.scope.get("endpoint") is None
        if not is_page and isinstance(error, HTTPException):
            return await http_exception_handler(request, error)
        return _respond("Page not found", "There is no page at this address.", request, _NOT_FOUND)

    def page_failed(error: Exception) -> None:
        _build("Page failed to load", explain(error), ui.context.client.request)

    async def request_failed(_: Request, error: Exception) -> Response:
        return plain_page("Lowtide failed to respond", explain(error), 500)

    app.exception_handler(_NOT_FOUND)(not_found)
    app.exception_handler(Exception)(request_failed)
    app.on_page_exception(page_failed)


async def forbid(request: Request, principal: Principal) -> Response:
    """Return the page for a tenant at a page of the whole installation."""
    try:
        name = await in_thread(lambda: lowtide().administration.own_name(principal))
        identity = f"as tenant {name}"
    except LowtideError:
        identity = f"with {principal.name}"
    message = f"This page shows the whole installation; you are signed in {identity}."
    return _respond("Not available to tenants", message, request, Forbidden.status)


def _respond(title: str, message: str, request: Request, status: int) -> Response:
    with Client(page(""), request=request) as client:
        _build(title, message, request)
    return client.build_response(request, status)


def _build(title: str, message: str, request: Request | None) -> None:
    principal = None if request is None else principal_of(request.session)
    if principal is None:
        # The frame needs a principal; the sign-in page, which may fail too, has none.
        theme.paint()
        show_title(title)
        with ui.element("div").classes("page"):
            _show_message(title, message, "/sign-in", "Sign in")
        return
    with frame(title, api_url=lowtide().settings.api_url, on_interval=None):
        _show_message(title, message, FIRST_PAGE, "View all batches")


def _show_message(title: str, message: str, path: str, name: str) -> None:
    with ui.element("div").classes("card section").props("role=alert"):
        heading(title, 1)
        ui.label(message).classes("break")
        ui.link(name, path)
