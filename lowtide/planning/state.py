"""What the scheduler knows when it decides, and the plan that follows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lowtide.core.pools import Depth, Pool
from lowtide.planning.demand import attempts_per_line
from lowtide.planning.escalation import plan_tick

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from lowtide.planning.demand import Capacity, Rate
    from lowtide.planning.escalation import OpenBatch, Plan


@dataclass(frozen=True, slots=True)
class Swept:
    """What a tick tidied up.

    `reaped` lines of expired leases, `interrupted` of them on spot; `in_time` and `late` lines ended
    for good by it, before or after their deadline; `buried` of them are dead letters.
    """

    reaped: int
    interrupted: int
    in_time: int
    late: int
    buried: int


@dataclass(frozen=True, slots=True)
class Situation:
    """One look at everything that is open.

    `present` dedicated replicas work; `wished` says since when each wanted one has been wanted,
    longest first. `models` are those of the open batches, whose lines so far `ended` or were
    `retried`; `rates` are dedicated's, by model ("" for workers that ran several). Nobody knows when
    `paused` pools run again. `stranded` pools have so many workers, and all their engines are away;
    `away` is how many of dedicated's are.
    """

    now: datetime
    batches: tuple[OpenBatch, ...]
    present: int = 0
    wished: tuple[datetime, ...] = ()
    models: frozenset[str] = frozenset()
    ended: int = 0
    retried: int = 0
    rates: Mapping[str, Rate] = field(default_factory=dict)
    paused: frozenset[Pool] = frozenset()
    stranded: Mapping[Pool, int] = field(default_factory=dict)
    away: int = 0

    @property
    def idle(self) -> frozenset[Pool]:
        """The pools that run nothing: paused ones, and those without an engine."""
        return self.paused | frozenset(self.stranded)

    def depths(self) -> dict[Pool, Depth]:
        """Return what waits and runs in each pool."""
        return {
            Pool.SPOT: Depth(
                sum(batch.spot for batch in self.batches),
                sum(batch.running_spot for batch in self.batches),
            ),
            Pool.DEDICATED: Depth(
                sum(batch.dedicated for batch in self.batches),
                sum(batch.running_dedicated for batch in self.batches),
            ),
        }

    def starts(self, cold_start: float) -> list[float]:
        """Return the seconds until each dedicated replica works.

        One that is overdue is counted on no more than one that was never asked for.
        """
        awaited = []
        for since in self.wished[self.present :]:
            left = cold_start - (self.now - since).total_seconds()
            awaited.append(left if 0 < left <= cold_start else cold_start)
        return [0.0] * self.present + awaited

    def wishes(self, replicas: int) -> tuple[datetime, ...]:
        """Return since when each of `replicas` has been wanted, longest first."""
        return self.wished[:replicas] + (self.now,) * (replicas - len(self.wished))

    def measured(self, capacity: Capacity) -> Capacity:
        """Return the capacity as measured: the configured rate is the prior.

        Lines of several models count at the rate of the slowest of them. A paused pool has no
        replicas, nor has one without an engine, and a replica whose engine is away counts for none.
        """
        bounds = [
            self.rates[known].lower_bound(capacity.rate)
            for model in self.models
            if (known := model if model in self.rates else "") in self.rates
        ]
        return replace(
            capacity,
            rate=min(bounds, default=capacity.rate),
            replicas=0 if Pool.DEDICATED in self.idle else max(0, capacity.replicas - self.away),
            attempts=attempts_per_line(self.ended, self.retried),
        )


def decide(situation: Situation, capacity: Capacity) -> Plan:
    """Return what must change now, given the configured capacity.

    The bound never counts on spot, so that a pause of it takes nothing from any promise; but no line
    goes back there to wait for nobody. While dedicated is paused or without an engine, nothing is
    promised: its waiting lines go back to spot, and every open batch is at risk.
    """
    plan = plan_tick(
        situation.batches,
        situation.now,
        situation.measured(capacity),
        situation.starts(capacity.cold_start),
    )
    return replace(plan, returns=()) if Pool.SPOT in situation.idle else plan


@dataclass(frozen=True, slots=True)
class Replanned:
    """A plan and the lines that moved by it: some may have been in somebody's hands by then.

    `before` is what waited and ran in each pool when it was made, `paused` which of them stood still,
    `stranded` how many workers those had whose engines were all away.
    """

    plan: Plan
    before: Mapping[Pool, Depth]
    paused: frozenset[Pool] = frozenset()
    stranded: Mapping[Pool, int] = field(default_factory=dict)
    escalated: int = 0
    revoked: int = 0
    returned: int = 0

    @property
    def waiting(self) -> dict[Pool, int]:
        """What waits in each pool now."""
        moved = self.escalated - self.returned
        return {
            Pool.SPOT: self.before[Pool.SPOT].queued - moved,
            Pool.DEDICATED: self.before[Pool.DEDICATED].queued + moved + self.revoked,
        }

    @property
    def after(self) -> dict[Pool, Depth]:
        """What waits and runs in each pool now; what was revoked ran on spot."""
        running = {pool: depth.running for pool, depth in self.before.items()}
        running[Pool.SPOT] -= self.revoked
        return {pool: Depth(queued, running[pool]) for pool, queued in self.waiting.items()}
