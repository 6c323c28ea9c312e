"""What somebody should look at: conditions that do not mend themselves in time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from lowtide.domain.pools import Pool

if TYPE_CHECKING:
    from lowtide.domain.operations import Operations
    from lowtide.domain.overview import Overview

TICK_SILENCE: Final = timedelta(minutes=2)
"""The scheduler ticks every 10 s; a few lost ticks are repaired by the next."""
EVENT_AGE: Final = timedelta(minutes=2)
"""A tick sends waiting events again, so that they wait this long only while the sink refuses."""

WORKER_WAIT_SECONDS: Final = 300.0
"""Longer than a cold start: a node, an image, a model."""


@dataclass(frozen=True, slots=True)
class Concern:
    """Something to look at, and the page that shows more."""

    text: str
    path: str


def concerns(overview: Overview | None, operations: Operations | None) -> tuple[Concern, ...]:
    """Return what the last readings give cause to, the most pressing first."""
    found: list[Concern] = []
    if operations is not None:
        found += _of_operations(operations)
    if overview is not None and overview.totals.at_risk:
        count = overview.totals.at_risk
        what = "batch is" if count == 1 else "batches are"
        found.append(Concern(f"{count:,} {what} at risk of missing the deadline", "/batches"))
    return tuple(found)


def _of_operations(reading: Operations) -> list[Concern]:
    found = []
    silence = None if reading.ticked_at is None else reading.at - reading.ticked_at
    busy = any(load.queued or load.running for load in reading.loads)
    if silence is None and busy:
        found.append(Concern("The scheduler has not ticked yet", "/health"))
    elif silence is not None and silence > TICK_SILENCE:
        minutes = int(silence.total_seconds() // 60)
        found.append(Concern(f"No tick of the scheduler for {minutes:,} min", "/health"))
    if reading.oldest_event is not None and reading.at - reading.oldest_event > EVENT_AGE:
        events = (
            "1 event waits"
            if reading.events_waiting == 1
            else (f"{reading.events_waiting:,} events wait")
        )
        found.append(Concern(f"{events} for the broker", "/health"))
    found += [
        Concern(f"Lines wait in {pool}, and no worker takes them", "/queues")
        for pool in Pool
        if not reading.workers.get(pool)
        and reading.pause(pool) is None
        and reading.oldest_age(pool) > WORKER_WAIT_SECONDS
    ]
    return found
