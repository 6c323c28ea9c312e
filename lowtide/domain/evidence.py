"""What the database tells of the parts around it, so that nobody has to wake them to ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from lowtide.domain.breaker import BreakerState
    from lowtide.domain.operations import Sample
    from lowtide.domain.pools import Pool
    from lowtide.domain.sightings import Sight, Sighting


@dataclass(frozen=True, slots=True)
class Backlog:
    """Batches that wait for a step, and since when the first of them does."""

    batches: int
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Crew:
    """Workers of a pool with a living lease, and when the last of them renewed it."""

    workers: int
    heartbeat_at: datetime


@dataclass(frozen=True, slots=True)
class LostEngine:
    """A worker whose engine breaker is not closed, since when, and why."""

    worker: str
    pool: Pool
    state: BreakerState
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Evidence:
    """One reading; `at` is the database's time, and so are all times in it.

    `unsplit` batches wait for their file to be split, `unfinalized` ones for their output files.
    """

    at: datetime
    sightings: Mapping[tuple[Sight, str], Sighting]
    unsplit: Backlog
    unfinalized: Backlog
    crews: Mapping[Pool, Crew]
    lost_engines: Sequence[LostEngine] = ()


@dataclass(frozen=True, slots=True)
class Scale:
    """Replicas that a pool should have and has; `short_since` is since when there are too few."""

    desired: int
    live: int
    short_since: datetime | None


def scales_of(samples: Sequence[Sample]) -> dict[Pool, Scale]:
    """Return how each pool scales by samples, oldest first; nothing is known without one."""
    if not samples:
        return {}
    found = {}
    for pool, last in samples[-1].pools.items():
        short_since = None
        for sample in reversed(samples):
            then = sample.pools.get(pool)
            if then is None or then.workers >= then.desired:
                break
            short_since = sample.at
        found[pool] = Scale(last.desired, last.workers, short_since)
    return found
