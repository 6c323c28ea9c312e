"""Sign-in and sign-out. The form is an ordinary POST and needs no websocket."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, quote, unquote

from fastapi import Request  # noqa: TC002 - read at run time, to know what the routes take
from fastapi.responses import RedirectResponse
from nicegui import app, ui

from lowtide.core.errors import LowtideError
from lowtide.tenants.keys import PREFIX
from lowtide.tenants.sign_in import clean_name
from portal import theme
from portal.components.frame import cell_name, page, show_title
from portal.plain_pages import leaving_page
from portal.services import in_thread, known_cells, lowtide, run_blocking
from portal.sessions import (
    SIGN_IN,
    SIGN_IN_CALLBACK,
    SIGN_IN_START,
    SIGN_OUT,
    SIGNED_OUT,
    leave_session,
    open_session,
    principal_of,
)

if TYPE_CHECKING:
    from fastapi import Response

    from lowtide.tenants.sign_in import Principal, SignInGuard
    from portal.single_sign_on import SingleSignOn


_MAX_BYTES: Final = 8192
_MAX_PATH: Final = 500
_MAX_CONCURRENT: Final = 2
_NAME_COOKIE: Final = "name"
_YEAR: Final = 365 * 24 * 3600
_log: Final = logging.getLogger(__name__)
_PROBLEMS: Final = {
    "401": "Incorrect password or API key.",
    "account": "Your account has no role or no tenant here: ask the operator for one.",
    "provider": "The identity provider did not sign you in: try again.",
    "403": "This API key may not read: it needs the scopes files:read and batches:read.",
    "429": "Too many failed attempts: try again in a minute.",
    "503": "The database is not responding: try again.",
}


def install(
    guard: SignInGuard,
    single_sign_on: SingleSignOn | None,
    *,
    session_seconds: int,
    https_only: bool,
) -> None:
    """Serve sign-in and sign-out."""
    _install_sign_out(single_sign_on)
    if single_sign_on is not None:
        _install_single_sign_on(single_sign_on)

    @page(SIGN_IN)
    def sign_in(request: Request) -> None:
        _show(
            clean_name(unquote(request.cookies.get(_NAME_COOKIE, ""))),
            _own_path(request.query_params.get("next", "/")),
            _PROBLEMS.get(request.query_params.get("problem", "")),
            single_sign_on,
            takes_secrets=guard.takes_secrets,
        )

    # Comparing a password takes memory and a core by design: concurrent attempts queue here.
    hashing = asyncio.Semaphore(_MAX_CONCURRENT)

    async def principal_with(secret: str, address: str, name: str) -> Principal:
        def admit() -> Principal:
            return guard.admit(secret, address, name)

        if secret.startswith(PREFIX):
            return await in_thread(admit)
        # A password needs no database.
        async with hashing:
            return await run_blocking(admit)

    async def admit(request: Request) -> Response:
        form = await _form(request)
        target = _own_path(form.get("next", "/"))
        address = request.client.host if request.client else ""
        try:
            secret = form.get("secret", "").strip()
            name = clean_name(form.get("name", ""))
            principal = await principal_with(secret, address, name)
        except LowtideError as error:
            path = f"{SIGN_IN}?problem={error.status}&next={quote(target, safe='')}"
            return RedirectResponse(path, status_code=303)
        open_session(request.session, principal, session_seconds)
        response = RedirectResponse(target, status_code=303)
        if name:
            response.set_cookie(
                _NAME_COOKIE,
                quote(name),
                max_age=_YEAR,
                path=SIGN_IN,
                secure=https_only,
                httponly=True,
                samesite="lax",
            )
        return response

    app.add_api_route(SIGN_IN, admit, methods=["POST"], include_in_schema=False)


def _install_sign_out(single_sign_on: SingleSignOn | None) -> None:
    async def leave(request: Request) -> Response:
        principal = principal_of(request.session)
        leave_session(request.session)
        try:
            await in_thread(SIGNED_OUT.sync)
        except LowtideError as error:
            # Signed out in this process; the watch saves it once the database responds.
            _log.warning("session.not_saved", extra={"error": error.message})
        if single_sign_on is not None and single_sign_on.opened(principal):
            address = await single_sign_on.logout_address(request)
            if address is not None:
                # A redirect would be of the form, which may not lead to another site.
                return leaving_page("Signing out", address)
        return RedirectResponse(SIGN_IN, status_code=303)

    app.add_api_route(SIGN_OUT, leave, methods=["POST"], include_in_schema=False)


def _install_single_sign_on(single_sign_on: SingleSignOn) -> None:
    async def start(request: Request) -> Response:
        return await single_sign_on.start(request, _own_path(request.query_params.get("next", "/")))

    async def finish(request: Request) -> Response:
        return await single_sign_on.finish(request, lowtide().administration.ids)

    app.add_api_route(SIGN_IN_START, start, methods=["GET"], include_in_schema=False)
    app.add_api_route(SIGN_IN_CALLBACK, finish, methods=["GET"], include_in_schema=False)


def _show(
    name: str,
    target: str,
    problem: str | None,
    single_sign_on: SingleSignOn | None,
    *,
    takes_secrets: bool,
) -> None:
    theme.paint()
    show_title("Sign in")
    with ui.element("div").classes("page sign-in"), ui.element("div").classes("card section"):
        with ui.element("div").classes("brand"):
            ui.html(theme.FAVICON, sanitize=False).style("width: 28px; height: 28px")
            ui.html("Sign in to Lowtide", sanitize=False, tag="h1")
        if cell := known_cells().names.own_name:
            with ui.element("div"):
                cell_name(cell)
        if problem is not None:
            ui.label(problem).classes("banner").props("role=alert")
        if single_sign_on is not None:
            with ui.element("a").classes("primary") as link:
                ui.label(f"Sign in at {single_sign_on.provider}")
            link.props["href"] = f"{SIGN_IN_START}?next={quote(target, safe='')}"
        if takes_secrets:
            _show_form(name, target)


def _show_form(name: str, target: str) -> None:
    with ui.element("form").classes("section").props(f'method=post action="{SIGN_IN}"'):
        person = _field("name", "Your name, for the audit log")
        person.props("autocomplete=username maxlength=64")
        person.props["value"] = name
        secret = _field("secret", "Password or API key").props(
            'type=password autocomplete="current-password" required maxlength=256'
        )
        (secret if name else person).props("autofocus")
        hidden = ui.element("input").props('type=hidden name="next"')
        hidden.props["value"] = target
        with ui.element("button").classes("primary").props("type=submit"):
            ui.label("Sign in")
        ui.label(
            "A password gives access to all tenants, an API key to its own tenant under the key's name."
        ).classes("muted small")


def _field(name: str, label: str) -> ui.element:
    with ui.element("label").classes("field"):
        ui.label(label)
        return ui.element("input").props(f'name="{name}"')


async def _form(request: Request) -> dict[str, str]:
    """Return the last value of each field; none of an oversized body."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BYTES:
            return {}
    return {name: values[-1] for name, values in parse_qs(body.decode("latin-1")).items()}


def _own_path(path: str) -> str:
    """Return the path if it is one of this portal, else `/`: no redirect leaves the portal.

    A long one would not fit into the session's cookie.
    """
    is_own = path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if is_own and path.isprintable() and len(path) <= _MAX_PATH else "/"
