"""Portal sessions: the signed cookie, the guard of every page, and signed-out sessions."""

from __future__ import annotations

import asyncio
import threading
import time
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit
from uuid import UUID

from fastapi.responses import PlainTextResponse, RedirectResponse
from nicegui import ui
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request

from lowtide.core.errors import LowtideError, Unauthenticated, Unavailable
from lowtide.core.ids import TenantId
from lowtide.core.scopes import Role
from lowtide.tenants.sign_in import Principal
from portal.loading import is_browser
from portal.plain_pages import plain_page
from portal.services import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping

    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from lowtide.tenants.sign_in import SignedOutStore, SignInGuard


READ_EVERY: Final = 10.0


class SignedOut:
    """The signed-out sessions, in memory.

    The database keeps them across restarts and shares them between portals. Sessions opened before
    this process started are unknown until the database has been read once.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._expiries: dict[str, float] = {}
        self._unsaved: dict[str, float] = {}
        self._store: SignedOutStore | None = None
        self._started = clock()
        self._read_at: float | None = None
        self._lock = threading.Lock()

    def keep_in(self, store: SignedOutStore) -> None:
        """Save to and read from this store from now on."""
        self._store = store
        self._read_at = None

    def add(self, session: str, until: float) -> None:
        """Sign out a session that would have expired at Unix time `until`; `sync` saves it."""
        with self._lock:
            self._expiries[session] = self._unsaved[session] = until

    def knows(self, opened: float) -> bool:
        """Return True if a session opened at this Unix time is listed once it is signed out."""
        return self._store is None or self._read_at is not None or opened >= self._started

    def __contains__(self, session: str) -> bool:
        return session in self._expiries

    def is_due(self) -> bool:
        """Return True if there are unsaved sessions, or the last read is 10 s old."""
        if self._store is None:
            return False
        stale = self._read_at is None or self._clock() - self._read_at >= READ_EVERY
        return stale or bool(self._unsaved)

    def sync(self) -> None:
        """Save new sessions and read those that other portals saved; raises Unavailable."""
        if self._store is None:
            return
        unsaved = dict(self._unsaved)
        if unsaved:
            self._store.add(unsaved)
        saved = self._store.read()
        now = self._clock()
        with self._lock:
            for session in unsaved:
                self._unsaved.pop(session, None)
            # Sessions in memory stay: the read may be older than the last `add`.
            sessions = self._expiries | saved
            self._expiries = {session: until for session, until in sessions.items() if until > now}
            self._read_at = now


SIGNED_OUT: Final = SignedOut()
"""The sessions of this process, which serves all pages."""


SIGN_IN: Final = "/sign-in"
SIGN_IN_START: Final = "/sign-in/start"
SIGN_IN_CALLBACK: Final = "/sign-in/callback"
"""Paths of the sign-in at an identity provider."""
SIGN_OUT: Final = "/sign-out"
FIRST_PAGE: Final = "/batches"
"""The start page of a tenant's principals, which cannot open pages of the whole installation."""

_NAME: Final = "visitor"
_OPEN: Final = (SIGN_IN, SIGN_IN_START, SIGN_IN_CALLBACK, "/healthz", "/favicon.ico")
WHOLE_INSTALLATION: Final = ("/", "/queues", "/health", "/cells", "/tenants", "/keys", "/audit")
"""Pages that show the work of every tenant."""
_OPEN_FOLDERS: Final = ("/_nicegui/", "/_nicegui_ws/", "/assets/")
# Uploads to elements of open pages need a principal.
_CLOSED_FOLDER: Final = "/_nicegui/client/"
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}


def open_session(session: MutableMapping[str, Any], principal: Principal, seconds: int) -> None:
    """Store a principal for `seconds`; drop the previous content of the cookie, its id too."""
    session.clear()
    now = time.time()
    session[_NAME] = {
        "name": principal.name,
        "role": principal.role.value,
        "tenant": None if principal.tenant is None else str(principal.tenant),
        "credential": principal.credential,
        "opened": now,
        "until": now + seconds,
        "id": token_urlsafe(16),
    }


def leave_session(session: MutableMapping[str, Any]) -> None:
    """Sign out a session everywhere and clear the cookie."""
    data = session.get(_NAME)
    if isinstance(data, dict):
        SIGNED_OUT.add(data.get("id", ""), data["until"])
    session.clear()


def is_over(session: MutableMapping[str, Any]) -> bool:
    """Return True if the session had a principal and has ended."""
    return _NAME in session and principal_of(session) is None


def principal_of(session: MutableMapping[str, Any]) -> Principal | None:
    """Return the principal in the cookie; None once the session has ended."""
    data = session.get(_NAME)
    if not isinstance(data, dict) or data["until"] < time.time():
        return None
    if data.get("id", "") in SIGNED_OUT:
        return None
    tenant = data["tenant"]
    return Principal(
        data["name"],
        Role(data["role"]),
        None if tenant is None else TenantId(UUID(tenant)),
        # An old session without a credential gets an empty one, which counts as ended.
        data.get("credential", ""),
    )


def current_principal() -> Principal:
    """Return the principal of the open page; raises Unauthenticated once the session has ended."""
    request = ui.context.client.request
    principal = None if request is None else principal_of(request.session)
    if principal is None:
        raise Unauthenticated("Your session has ended: sign in again.")
    return principal


_CHECK_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 3


class Guard:
    """ASGI middleware inside the session's: no page and no download without a principal.

    A session ends with the credential that opened it. Requests and websockets from pages of another
    site are refused. `forbid` builds the page that tells a tenant why a page is not for it.
    """

    def __init__(
        self,
        app: ASGIApp,
        guard: SignInGuard,
        forbid: Callable[[Request, Principal], Awaitable[Response]],
    ) -> None:
        self._app = app
        self._guard = guard
        self._forbid = forbid

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app, redirect to the sign-in or first page, or refuse."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        responder: ASGIApp = self._app
        if _is_foreign(Headers(scope=scope)):
            responder = PlainTextResponse("Requests from other sites are refused.", status_code=403)
        elif not _is_open(scope["path"]):
            responder = await self._authorize(scope)
        if scope["type"] == "websocket":
            if responder is self._app:
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        await responder(scope, receive, with_headers(send, _HEADERS))

    async def _authorize(self, scope: Scope) -> ASGIApp:
        principal = principal_of(scope["session"])
        if principal is None:
            return _sign_in_response(scope)
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                valid = await self._is_valid(scope["session"], principal.credential)
        except (LowtideError, TimeoutError):
            return _retry_response(scope)
        if not valid:
            scope["session"].clear()
            return _sign_in_response(scope)
        if principal.tenant is not None and scope["path"] in WHOLE_INSTALLATION:
            # The sign-in page leads to "/" by default.
            if scope["path"] == "/":
                return RedirectResponse(FIRST_PAGE, status_code=303)
            return await self._forbid(Request(scope), principal)
        return self._app

    async def _is_valid(self, session: MutableMapping[str, Any], credential: str) -> bool:
        """Check a session; a password's needs no database once the signed-out sessions are known."""
        if not SIGNED_OUT.knows(session[_NAME].get("opened", 0.0)):
            await in_thread(SIGNED_OUT.sync)
            if principal_of(session) is None:
                return False
        if self._guard.holds_offline(credential):
            return True
        return not await in_thread(lambda: self._guard.ended({credential}))


def _retry_response(scope: Scope) -> ASGIApp:
    status = Unavailable.status
    if scope["type"] == "websocket" or not is_browser(Headers(scope=scope)):
        return PlainTextResponse("The database is not answering: try again.", status_code=status)
    return plain_page(
        "The database is not answering",
        "Your session cannot be checked. Trying again every few seconds.",
        status,
        retry_after=_RETRY_SECONDS,
    )


def _is_open(path: str) -> bool:
    if path.startswith(_CLOSED_FOLDER):
        return False
    return path in _OPEN or path.startswith(_OPEN_FOLDERS)


def _is_foreign(headers: Headers) -> bool:
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


def _sign_in_response(scope: Scope) -> ASGIApp:
    if scope["type"] == "websocket" or scope["method"] not in {"GET", "HEAD"}:
        return PlainTextResponse("Sign in first.", status_code=401)
    target = scope["path"]
    if scope["query_string"]:
        target += "?" + scope["query_string"].decode("latin-1")
    return RedirectResponse(f"{SIGN_IN}?next={quote(target, safe='')}", status_code=303)


def with_headers(send: Send, added: Mapping[str, str]) -> Send:
    """Return `send` that adds headers to a response, unless it has them."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in added.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers
