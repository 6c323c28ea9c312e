"""The portal application: its pages, middleware, poller and server."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final

from itsdangerous import TimestampSigner
from nicegui import app, ui
from starlette.middleware.sessions import SessionMiddleware

from portal import downloads, theme
from portal.components import shortcuts
from portal.dashboards import Dashboards
from portal.pages import (
    audit,
    batch,
    batches,
    cells,
    dead_letters,
    failed,
    health,
    keys,
    landing,
    queues,
    search,
    sign_in,
    tenants,
    upload,
    usage,
)
from portal.pulse import PULSE
from portal.services import add_threads
from portal.session_watch import SessionWatch
from portal.sessions import SIGNED_OUT, Guard, with_headers

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from lowtide.app import App
    from lowtide.settings import Settings
    from portal.single_sign_on import SingleSignOn
    from portal.watching import Watching


# NiceGUI boots each page with its own inline scripts and compiles templates in the browser: it
# needs 'unsafe-inline' and 'unsafe-eval'. Data never becomes a template or a script.
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class ContentPolicy:
    """ASGI middleware that adds the security headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app and add the headers to its response, unless already set."""
        await self._app(scope, receive, with_headers(send, _HEADERS))


# A page disconnected for longer is reloaded and loses its state. NiceGUI derives its ping timeout
# from this value: with the default of 3 s it drops a busy browser after 2 s.
_RECONNECT_SECONDS: Final = 20.0


def build(watching: Watching, lowtide: App) -> None:
    """Register the pages, the middleware and the poller."""
    poller, settings, guard = watching.poller, lowtide.settings, lowtide.guard
    app.state.lowtide = lowtide
    app.state.cells = watching.cells
    SIGNED_OUT.keep_in(lowtide.signed_out)
    # ui.run adds the session middleware later, so it wraps the guard.
    app.add_middleware(Guard, guard=guard, forbid=failed.forbid)
    app.add_middleware(ContentPolicy)
    poller.changed.subscribe(SessionWatch(guard).check)
    add_threads()
    app.on_startup(lambda: PULSE.start(lowtide.database_answers))
    app.on_startup(poller.start)
    app.on_shutdown(poller.stop)
    app.on_shutdown(PULSE.stop)
    if watching.alerts is not None:
        app.on_shutdown(watching.alerts.close)
    if watching.cells.watch is not None:
        app.on_shutdown(watching.cells.watch.close)
    app.add_api_route("/healthz", _healthz, methods=["GET", "HEAD"], include_in_schema=False)
    theme.install()
    theme.install_batches()
    shortcuts.install()
    sign_in.install(
        guard,
        _single_sign_on(lowtide),
        session_seconds=settings.portal_session_seconds,
        https_only=settings.portal_https_only,
    )
    dashboards = Dashboards.of(settings)
    landing.install(watching, dashboards, api_url=settings.api_url)
    downloads.install_batch_files()
    batch.install(poller, watching.readings, dashboards, api_url=settings.api_url)
    batches.install(poller, watching.readings, api_url=settings.api_url)
    queues.install(watching, dashboards, api_url=settings.api_url)
    dead_letters.install(api_url=settings.api_url)
    upload.install(api_url=settings.api_url)
    search.install(api_url=settings.api_url)
    failed.install()
    health.install(watching, api_url=settings.api_url)
    if watching.cells.watch is not None:
        cells.install(watching, watching.cells.watch, api_url=settings.api_url)
    for page in (tenants, keys, audit, usage):
        page.install(watching, api_url=settings.api_url)


def _single_sign_on(lowtide: App) -> SingleSignOn | None:
    sign_in = lowtide.token_sign_in
    if sign_in is None:
        return None
    from portal.single_sign_on import SingleSignOn

    settings = lowtide.settings
    return SingleSignOn(
        sign_in,
        settings.oidc_client_secret.get_secret_value(),
        session_seconds=settings.portal_session_seconds,
    )


def _accept(previous: str, secret: str) -> None:
    """Let the built application accept session cookies of a second secret, too.

    NiceGUI and Starlette take one secret; their signer takes several, and signs with the last.
    """
    layer: Any = app.middleware_stack
    while not isinstance(layer, SessionMiddleware):
        layer = layer.app
    layer.signer = TimestampSigner([previous, secret])


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    # Without a configured secret, sessions end with the process.
    secret = settings.portal_secret.get_secret_value() or secrets.token_urlsafe(32)
    if previous := settings.portal_secret_previous.get_secret_value():
        app.on_startup(lambda: _accept(previous, secret))
    ui.run(
        host=settings.portal_host,
        port=settings.portal_port,
        title="Lowtide",
        favicon=theme.FAVICON,
        dark=None,
        language="en-US",
        storage_secret=secret,
        session_middleware_kwargs={
            "same_site": "lax",  # a dashboard's link to a batch must carry the session
            "https_only": settings.portal_https_only,
            "max_age": settings.portal_session_seconds,
        },
        tailwind=False,
        show=False,
        reload=False,
        show_welcome_message=False,
        uvicorn_logging_level="warning",
        log_config=None,  # uvicorn's records go to our handlers
        reconnect_timeout=_RECONNECT_SECONDS,
        timeout_graceful_shutdown=1,
        # Any other peer could forge its address and evade the limit on sign-in attempts.
        proxy_headers=bool(settings.portal_trusted_proxies),
        forwarded_allow_ips=list(settings.portal_trusted_proxies),
    )


async def _healthz() -> dict[str, str]:
    """Answer health probes without building a page."""
    return {"status": "ok"}
