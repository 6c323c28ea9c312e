"""Gunicorn's configuration for every function: `gunicorn -c python:lowtide.serving …`.

The functions framework makes the WSGI application; this adds what its own command cannot: health
and metrics on a port of their own (a CloudEvent function answers 405 to every GET), the workers'
pull loop, and a SIGTERM that lets them finish.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import functions_framework

from lowtide import connections, health, wiring
from lowtide.domain.events import EventType
from lowtide.domain.sightings import TICK, Sight
from lowtide.http.service import check_database
from lowtide.logs import configure
from lowtide.pull_loop import PULL_LOOP
from lowtide.services.inference import DRAIN_SECONDS
from lowtide.settings import read_settings

bind = f"{os.environ.get('HOST', '0.0.0.0')}:{os.environ.get('PORT', '8080')}"  # noqa: S104
workers = 1
threads = int(os.environ.get("THREADS", "8"))
worker_class = "lowtide.connections.Worker"
timeout = 0
# Work in hand may take its grace, then the last results are written and the lease is closed.
graceful_timeout = int(read_settings().worker_grace + DRAIN_SECONDS) + 5
keepalive = 75
loglevel = "warning"
# The longest paths of the API, with every parameter, have under 1,000 characters.
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190
# Fewer than the 1,024 files that many systems let a process open: accepting the last would fail.
worker_connections = 512
# Its file would be one for all functions of a user, and needs a writable home.
control_socket_disable = True

_LAST_WORDS_SECONDS = 2.0
_FUNCTION = os.environ.get("FUNCTION_TARGET", "")
_TAKES_EVENTS = os.environ.get("FUNCTION_SIGNATURE_TYPE") == "cloudevent"
# Brokers need not carry larger ones (CloudEvents 1.0, "Size Limits").
_MAX_EVENT_BYTES = 64 * 1024
_EVENT_TYPES = frozenset({*EventType, TICK})


def post_worker_init(worker: Any) -> None:
    """Start what runs beside the function, in the process that serves it."""
    settings = read_settings()
    configure(settings.log_format, settings.log_level)
    # Here, not before: its thread would not come along into this process.
    wiring.tracer()
    _protect(worker)
    health.serve(settings.health_port, is_ready=_check)

    def stop(signum: int, frame: Any) -> None:
        PULL_LOOP.begin_stop()
        worker.handle_exit(signum, frame)

    signal.signal(signal.SIGTERM, stop)
    # Until now gunicorn's own handler took the signal.
    if worker.alive:
        PULL_LOOP.start()


def _protect(worker: Any) -> None:
    """Have the application read no more of a body than it wants to."""
    # The framework's hook would read what a refused client still sends, whole, into memory.
    hooks = worker.wsgi.after_request_funcs.get(None, [])
    hooks[:] = [hook for hook in hooks if hook is not functions_framework.read_request]
    if _TAKES_EVENTS:
        worker.wsgi.config["MAX_CONTENT_LENGTH"] = _MAX_EVENT_BYTES
    worker.wsgi = connections.closing(worker.wsgi)


def _check() -> None:
    check_database()
    PULL_LOOP.check_engine()


def post_request(worker: Any, request: Any, environ: dict[str, Any], response: Any) -> None:  # noqa: ARG001
    """Note that this function answered, and the type of an event that it handled."""
    # Probes are no use of it, and would keep an idle function's sighting young. Without a response,
    # what came was no request at all.
    if not _FUNCTION or response is None or environ.get("PATH_INFO", "").startswith("/health/"):
        return
    status = response.status_code or 500
    problem = f"HTTP {status}" if status >= 500 else None
    sightings = wiring.sightings()
    sightings.note(Sight.FUNCTION, _FUNCTION, problem)
    type_ = environ.get("HTTP_CE_TYPE", "")
    if _TAKES_EVENTS and type_ in _EVENT_TYPES:
        sightings.note(Sight.DELIVERED, type_, problem)


def worker_exit(server: Any, worker: Any) -> None:  # noqa: ARG001
    """Let the pull loop finish its work in hand."""
    PULL_LOOP.begin_stop()
    PULL_LOOP.join()
    wiring.publisher().drain(_LAST_WORDS_SECONDS)
    wiring.sightings().close(_LAST_WORDS_SECONDS)
    wiring.tracer().close(_LAST_WORDS_SECONDS)
