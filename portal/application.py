"""The portal: pages, the poller behind them, and the server."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from nicegui import app, ui
from starlette.datastructures import MutableHeaders

from portal import downloads, theme
from portal.components import shortcuts
from portal.dashboards import Dashboards
from portal.pages import (
    audit,
    batch,
    batches,
    dead_letters,
    failed,
    health,
    keys,
    landing,
    queues,
    sign_in,
    tenants,
    upload,
)
from portal.session_watch import SessionWatch
from portal.sessions import SIGNED_OUT, Guard

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from lowtide.app import App
    from lowtide.settings import Settings
    from portal.watching import Watching


# NiceGUI starts its pages with inline scripts that differ with every page, and compiles templates in
# the browser: without these two words it shows nothing. Data never becomes a template or a script.
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
    """ASGI middleware that tells browsers the policy with every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and add the headers to what comes back."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


# A page that is away for longer is loaded anew, and what was chosen there is lost. NiceGUI derives its pings
# from this: with its own 3 s it gives up a busy browser after 2.
_RECONNECT_SECONDS: Final = 20.0


def build(watching: Watching, lowtide: App) -> None:
    """Register every page and what runs beside them."""
    poller, settings, entrance = watching.poller, lowtide.settings, lowtide.entrance
    app.state.lowtide = lowtide
    SIGNED_OUT.keep_in(lowtide.signed_out)
    # The session's middleware comes with the server, and so goes around this one.
    app.add_middleware(Guard, entrance=entrance)
    app.add_middleware(ContentPolicy)
    poller.changed.subscribe(SessionWatch(entrance).check)
    app.on_startup(poller.start)
    app.on_shutdown(poller.stop)
    if watching.alerts is not None:
        app.on_shutdown(watching.alerts.close)
    app.add_api_route("/healthz", _healthz, methods=["GET", "HEAD"], include_in_schema=False)
    theme.install()
    theme.install_batches()
    shortcuts.install()
    sign_in.install(entrance, session_seconds=settings.portal_session_seconds)
    dashboards = Dashboards.of(settings)
    landing.install(watching, dashboards, api_url=settings.api_url)
    downloads.install_batch_files()
    batch.install(poller, watching.readings, dashboards, api_url=settings.api_url)
    batches.install(poller, watching.readings, api_url=settings.api_url)
    queues.install(watching, dashboards, api_url=settings.api_url)
    dead_letters.install(api_url=settings.api_url)
    upload.install(api_url=settings.api_url)
    failed.install(api_url=settings.api_url)
    health.install(watching, api_url=settings.api_url)
    for page in (tenants, keys, audit):
        page.install(watching, api_url=settings.api_url)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    ui.run(
        host=settings.portal_host,
        port=settings.portal_port,
        title="Lowtide",
        favicon=theme.FAVICON,
        dark=None,
        language="en-US",
        # Without a configured secret, sessions end with the process.
        storage_secret=settings.portal_secret.get_secret_value() or secrets.token_urlsafe(32),
        session_middleware_kwargs={
            "same_site": "lax",  # a dashboard's link to a batch should not ask who you are
            "https_only": settings.portal_https_only,
            "max_age": settings.portal_session_seconds,
        },
        tailwind=False,
        show=False,
        reload=False,
        show_welcome_message=False,
        uvicorn_logging_level="warning",
        log_config=None,  # its lines go through ours
        reconnect_timeout=_RECONNECT_SECONDS,
        timeout_graceful_shutdown=1,
        # Whoever is not named could say any address, and so be another at every try.
        proxy_headers=bool(settings.portal_trusted_proxies),
        forwarded_allow_ips=list(settings.portal_trusted_proxies),
    )


async def _healthz() -> dict[str, str]:
    """Answer probes; asking for a page would build one."""
    return {"status": "ok"}
