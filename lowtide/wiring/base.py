"""What every process is built from: clock, ids, connections, objects, events."""

from __future__ import annotations

import os
import socket
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from lowtide import __version__
from lowtide.domain.ids import uuid7
from lowtide.domain.lines import Limits
from lowtide.events.sink import HttpSink, NoSink
from lowtide.objects.store import ObstoreObjects
from lowtide.postgres.connections import connect
from lowtide.postgres.outbox import PostgresOutbox
from lowtide.postgres.sightings import PostgresSightings
from lowtide.services.publishing import Publisher
from lowtide.services.scopes import UNTRACED
from lowtide.services.sightings import SightedSink, Sightings
from lowtide.settings import Admission, read_settings

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy import Engine

    from lowtide.domain.demand import Capacity
    from lowtide.domain.promises import AdmissionPolicy
    from lowtide.ports.tracing import Tracer


def now() -> datetime:
    """Return the current time."""
    return datetime.now(UTC)


def new_id() -> UUID:
    """Return a time-ordered id."""
    return uuid7(now(), os.urandom)


@lru_cache(maxsize=1)
def database() -> Engine:
    """Return the process's connections."""
    settings = read_settings()
    return connect(
        settings.database_url.get_secret_value(),
        pool_size=settings.database_pool_size,
        timeout=settings.database_timeout,
        application=f"lowtide {os.environ.get('FUNCTION_TARGET', '')}".strip(),
    )


@lru_cache(maxsize=1)
def objects() -> ObstoreObjects:
    """Return the object store."""
    return ObstoreObjects(read_settings().object_store_url)


@lru_cache(maxsize=1)
def publisher() -> Publisher:
    """Return the way events go out."""
    settings = read_settings()
    source = f"/lowtide/{os.environ.get('FUNCTION_TARGET', 'cli')}"
    if settings.event_sink is None:
        sink = SightedSink(NoSink(), sightings(), refusal="no broker is configured")
    else:
        http = HttpSink(settings.event_sink, source=source, timeout=settings.event_sink_timeout)
        sink = SightedSink(http, sightings(), refusal="the broker did not take it")
    return Publisher(sink, PostgresOutbox(database()), tracer=tracer())


@lru_cache(maxsize=1)
def tracer() -> Tracer:
    """Return what work is told to. Not before the process that serves is there: it has a thread."""
    from lowtide.tracing.switch import is_wanted

    if not is_wanted(os.environ):
        return UNTRACED
    from lowtide.tracing.otel import OpenTelemetryTracer

    function = os.environ.get("FUNCTION_TARGET", "portal")
    return OpenTelemetryTracer(
        {
            "service.name": f"lowtide-{function.replace('_', '-')}",
            "service.namespace": "lowtide",
            "service.version": __version__,
            "service.instance.id": instance(),
            "faas.name": function,
        }
    )


def instance() -> str:
    """Return this process's name, which a worker's lease bears, too."""
    return f"{socket.gethostname()}/{os.getpid()}"


@lru_cache(maxsize=1)
def sightings() -> Sightings:
    """Return where this process notes what it sees."""
    return Sightings(PostgresSightings(database()), timer=time.monotonic)


def line_limits() -> Limits:
    """Return the bounds on input files."""
    settings = read_settings()
    return Limits(max_lines=settings.max_batch_lines, max_line_bytes=settings.max_line_bytes)


def capacity() -> Capacity:
    """Return what dedicated workers can do."""
    from lowtide.domain.demand import Capacity

    settings = read_settings()
    return Capacity(
        rate=settings.dedicated_rate,
        replicas=settings.dedicated_replicas,
        cold_start=settings.cold_start,
        margin=settings.safety_margin,
        tick=settings.tick,
        in_flight=settings.worker_concurrency,
    )


def admission_policy() -> AdmissionPolicy:
    """Return what happens to new batches whose window cannot be promised."""
    from lowtide.domain.promises import AdmissionPolicy

    return AdmissionPolicy(capacity(), strict=read_settings().admission is Admission.STRICT)
