"""Gunicorn's configuration for every function: `gunicorn -c python:lowtide.serving …`.

The functions framework builds the WSGI application. This adds features that its own command lacks:
health and metrics on a separate port (a CloudEvent function answers 405 to every GET), the pull
loop of workers, and a graceful SIGTERM.
"""

from __future__ import annotations

import gc
import os
import signal
from typing import TYPE_CHECKING, Any

import functions_framework

from lowtide.app import App
from lowtide.events.model import EventType
from lowtide.http import connections
from lowtide.settings import read_settings, secret_values
from lowtide.status.last_seen import TICK, Component
from lowtide.telemetry import health
from lowtide.telemetry.logs import configure
from lowtide.worker.loop import DRAIN_SECONDS

if TYPE_CHECKING:
    from lowtide.status.last_seen import Observations

bind = f"{os.environ.get('HOST', '0.0.0.0')}:{os.environ.get('PORT', '8080')}"  # noqa: S104
workers = 1
threads = int(os.environ.get("THREADS", "8"))
worker_class = "lowtide.http.connections.Worker"
timeout = 0
_settings = read_settings()
connections.Worker.client_timeout = _settings.client_timeout
connections.Worker.client_rate = _settings.client_rate
# Running requests get the grace period; then the last results are written and the lease is closed.
graceful_timeout = int(_settings.worker_grace + DRAIN_SECONDS) + 5
keepalive = 75
loglevel = "warning"
# The API's longest paths, with all parameters, have under 1,000 characters.
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190
# Below the common limit of 1,024 open files per process, at which accepting a connection fails.
worker_connections = 512
# All functions of a user would share its file, which also needs a writable home.
control_socket_disable = True

_CLOSE_SECONDS = 2.0
_FUNCTION = os.environ.get("FUNCTION_TARGET", "")
_TAKES_EVENTS = os.environ.get("FUNCTION_SIGNATURE_TYPE") == "cloudevent"
# Brokers need not forward larger events (CloudEvents 1.0, "Size Limits").
_MAX_EVENT_BYTES = 64 * 1024
_EVENT_TYPES = frozenset({*EventType, TICK})


def post_fork(_server: Any, _worker: Any) -> None:
    """Configure logging before the function is loaded, which builds the App."""
    settings = read_settings()
    configure(settings.log_format, settings.log_level, secrets=secret_values(os.environ))


def post_worker_init(worker: Any) -> None:
    """Start health, metrics and the pull loop in the process that serves the function."""
    # An App, or a FrontApp, which is served alike.
    app = worker.lowtide = App.of_server(worker.wsgi)
    _protect(worker)
    health.serve(app.settings.health_port, is_ready=app.check)
    # Collections would walk through all that is loaded: a tenth of a busy worker's time.
    gc.freeze()
    loop = app.pull_loop
    if loop is None:
        return

    def stop(signum: int, frame: Any) -> None:
        loop.begin_stop()
        worker.handle_exit(signum, frame)

    signal.signal(signal.SIGTERM, stop)
    # An earlier signal went to gunicorn's own handler.
    if worker.alive:
        loop.start()


def _protect(worker: Any) -> None:
    """Make the application read no more of a body than it needs."""
    # The framework's hook would read the rest of a rejected body into memory.
    hooks = worker.wsgi.after_request_funcs.get(None, [])
    hooks[:] = [hook for hook in hooks if hook is not functions_framework.read_request]
    if _TAKES_EVENTS:
        worker.wsgi.config["MAX_CONTENT_LENGTH"] = _MAX_EVENT_BYTES
    worker.wsgi = connections.closing(worker.wsgi)


def post_request(worker: Any, request: Any, environ: dict[str, Any], response: Any) -> None:  # noqa: ARG001
    """Record that this function answered, and the type of an event that it handled."""
    # Probes would keep the last-seen time of an idle function fresh. Without a response, no valid
    # request arrived.
    if not _FUNCTION or response is None or environ.get("PATH_INFO", "").startswith("/health/"):
        return
    status = response.status_code or 500
    problem = f"HTTP {status}" if status >= 500 else None
    observations: Observations | None = worker.lowtide.observations
    if observations is None:
        return
    observations.note(Component.FUNCTION, _FUNCTION, problem)
    type_ = environ.get("HTTP_CE_TYPE", "")
    if _TAKES_EVENTS and type_ in _EVENT_TYPES:
        observations.note(Component.DELIVERED, type_, problem)


def worker_exit(server: Any, worker: Any) -> None:  # noqa: ARG001
    """Let the pull loop finish its running requests."""
    # Gunicorn also calls this if the function could not be loaded.
    app: App | None = getattr(worker, "lowtide", None)
    if app is None:
        return
    if app.pull_loop is not None:
        app.pull_loop.begin_stop()
        app.pull_loop.join()
    app.close(_CLOSE_SECONDS)
