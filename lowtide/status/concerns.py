"""Conditions that need an operator's attention."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from lowtide.core.pools import Pool
from lowtide.status.snapshot import MAX_COUNTED

if TYPE_CHECKING:
    from lowtide.status.snapshot import SystemSnapshot

TICK_SILENCE: Final = timedelta(minutes=2)
"""The scheduler ticks every 10 s; the next tick makes up for a few lost ones."""
EVENT_AGE: Final = timedelta(minutes=2)
"""A tick sends waiting events again, so they wait this long only if the broker refuses them."""
WORKER_WAIT: Final = timedelta(minutes=5)
"""Longer than a cold start of a node, an image and a model."""


@dataclass(frozen=True, slots=True)
class Concern:
    """A condition that needs attention, and the page that shows more."""

    text: str
    path: str


def concerns(snapshot: SystemSnapshot) -> tuple[Concern, ...]:
    """Return the concerns, the most urgent first."""
    found = []
    silence = None if snapshot.ticked_at is None else snapshot.at - snapshot.ticked_at
    depths = [snapshot.depth(pool) for pool in Pool]
    if silence is None and any(depth.queued or depth.running for depth in depths):
        found.append(Concern("The scheduler has not ticked yet", "/health"))
    elif silence is not None and silence > TICK_SILENCE:
        minutes = int(silence.total_seconds() // 60)
        found.append(Concern(f"No scheduler tick for {minutes:,} min", "/health"))
    oldest = snapshot.events.since
    if oldest is not None and snapshot.at - oldest > EVENT_AGE:
        verb = "is" if snapshot.events.count == 1 else "are"
        found.append(Concern(f"{events(snapshot)} {verb} waiting for the broker", "/health"))
    found += [
        Concern(f"Requests are queued in {pool}, but no worker is running", "/queues")
        for pool in Pool
        if not snapshot.workers(pool)
        and snapshot.pause(pool) is None
        and snapshot.oldest_age(pool) > WORKER_WAIT.total_seconds()
    ]
    if count := snapshot.totals.at_risk:
        what = "batch is" if count == 1 else "batches are"
        found.append(Concern(f"{count:,} {what} at risk of missing the deadline", "/batches"))
    return tuple(found)


def events(snapshot: SystemSnapshot) -> str:
    """Return the number of waiting events in words."""
    count = snapshot.events.count
    if count == 1:
        return "1 event"
    return f"{count:,}{'+' if count == MAX_COUNTED else ''} events"
