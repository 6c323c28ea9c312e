"""Health and metrics, on a port of their own beside what a process serves.

Example:
    serve(8081, is_ready=check_database)  # /health/live, /health/ready, /metrics
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from prometheus_client import make_wsgi_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Response

from lowtide.domain.errors import LowtideError
from lowtide.metrics import build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_exporter = make_wsgi_app()


def serve(port: int, *, is_ready: Callable[[], None], host: str | None = None) -> None:
    """Answer in a thread; `is_ready` raises LowtideError while the process is not.

    Without a `host`, `HOST` of the environment says where, or else every address: a pod's probes and
    scrapes come from outside.
    """
    build.export()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            exported: Iterable[bytes] = _exporter(environ, start_response)
            return exported
        status, text = 404, "not found"
        if path == "/health/live":
            status, text = 200, "ok"
        elif path == "/health/ready":
            try:
                is_ready()
                status, text = 200, "ok"
            except LowtideError as error:
                status, text = 503, error.message
        return Response(text, status)(environ, start_response)

    server = make_server(
        host or os.environ.get("HOST", "0.0.0.0"),  # noqa: S104
        port,
        answer,
        threaded=True,
        request_handler=_Quiet,
    )
    threading.Thread(target=server.serve_forever, daemon=True, name="health").start()


class _Quiet(WSGIRequestHandler):
    def log(self, *_: object) -> None:
        """Probes are not news."""
