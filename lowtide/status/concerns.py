"""Conditions that need an operator's attention."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from lowtide.core.pools import DEFAULT_FLEET, FleetPool, Pool
from lowtide.engines.breaker import BreakerState
from lowtide.status.snapshot import MAX_COUNTED, MAX_LISTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowtide.status.snapshot import SystemSnapshot

TICK_SILENCE: Final = timedelta(minutes=2)
"""The scheduler ticks every 10 s; the next tick makes up for a few lost ones."""
EVENT_AGE: Final = timedelta(minutes=2)
"""A tick sends waiting events again, so they wait this long only if the broker refuses them."""
WORKER_WAIT: Final = timedelta(minutes=5)
"""Longer than a cold start of a node, an image and a model."""


class Severity(IntEnum):
    """The order of concerns: `CRITICAL` work does not go on, `WARNING` its outcome is bad."""

    CRITICAL = 0
    WARNING = 1


@dataclass(frozen=True, slots=True)
class Concern:
    """A condition that needs attention, and the page that shows more."""

    text: str
    path: str
    severity: Severity = Severity.CRITICAL


def concerns(snapshot: SystemSnapshot) -> tuple[Concern, ...]:
    """Return the concerns, the most urgent first."""
    return (*_about_work(snapshot), *_about_outcomes(snapshot))


def _about_work(snapshot: SystemSnapshot) -> Iterator[Concern]:
    silence = None if snapshot.ticked_at is None else snapshot.at - snapshot.ticked_at
    depths = [snapshot.depth(pool) for pool in Pool]
    if silence is None and any(depth.queued or depth.running for depth in depths):
        yield Concern("The scheduler has not ticked yet", "/health")
    elif silence is not None and silence > TICK_SILENCE:
        minutes = int(silence.total_seconds() // 60)
        yield Concern(f"No scheduler tick for {minutes:,} min", "/health")
    oldest = snapshot.events.since
    if oldest is not None and snapshot.at - oldest > EVENT_AGE:
        verb = "is" if snapshot.events.count == 1 else "are"
        yield Concern(f"{events(snapshot)} {verb} waiting for the broker", "/health")
    for name, fleet in snapshot.by_fleet():
        for pool in Pool:
            yield from _about_pool(fleet, FleetPool(name, pool))


def _about_pool(fleet: SystemSnapshot, place: FleetPool) -> Iterator[Concern]:
    pool = place.pool
    if count := _lost_engines(fleet, pool):
        noun, verb = ("worker", "has") if count == 1 else ("workers", "have")
        of_fleet = "" if place.fleet == DEFAULT_FLEET else f" of {place.fleet}"
        yield Concern(f"{count:,} {pool} {noun}{of_fleet} {verb} no working engine", "/health")
    idle = not fleet.workers(pool) and fleet.pause(place) is None
    if idle and fleet.oldest_age(pool) > WORKER_WAIT.total_seconds():
        text = f"Requests are queued in {place.label}, but no worker is running"
        yield Concern(text, queues_path(place.fleet))


def queues_path(fleet: str) -> str:
    """Return the path of the portal's queues page for a fleet."""
    return "/queues" if fleet == DEFAULT_FLEET else f"/queues?{urlencode({'fleet': fleet})}"


def _lost_engines(snapshot: SystemSnapshot, pool: Pool) -> int:
    """Return the number of workers whose breaker is open; an engine that starts is no concern."""
    return sum(
        lost.pool is pool and lost.state is not BreakerState.STARTING
        for lost in snapshot.lost_engines
    )


def _about_outcomes(snapshot: SystemSnapshot) -> Iterator[Concern]:
    totals = snapshot.totals
    if count := totals.at_risk:
        what = "batch is" if count == 1 else "batches are"
        yield Concern(
            f"{count:,} {what} at risk of missing the deadline",
            "/batches?sla=At+risk",
            Severity.WARNING,
        )
    if count := totals.missed:
        what = "batch" if count == 1 else "batches"
        yield Concern(
            f"{count:,} {what} missed the deadline in the last 24 hours",
            "/batches?sla=Missed&ended=24h",
            Severity.WARNING,
        )
    if count := totals.all_failed:
        what = "batch" if count == 1 else "batches"
        yield Concern(
            f"All requests of {count:,} {what} failed in the last 24 hours",
            "/batches?all_failed=1&ended=24h",
            Severity.WARNING,
        )
    if count := snapshot.letters:
        what = "dead letter is" if count == 1 else "dead letters are"
        more = "+" if count == MAX_LISTED else ""
        yield Concern(f"{count:,}{more} {what} open", "/dead-letters?state=open", Severity.WARNING)


def events(snapshot: SystemSnapshot) -> str:
    """Return the number of waiting events in words."""
    count = snapshot.events.count
    if count == 1:
        return "1 event"
    return f"{count:,}{'+' if count == MAX_COUNTED else ''} events"
