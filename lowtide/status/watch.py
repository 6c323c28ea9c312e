"""The last snapshot, samples of the last hour, and the reachability of other components."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from lowtide.core.errors import LowtideError
from lowtide.core.pools import FleetPool, Pool
from lowtide.planning.demand import scaled_replicas

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from lowtide.batches.model import Batch
    from lowtide.planning.demand import PoolScale
    from lowtide.status.snapshot import SystemSnapshot
    from lowtide.status.snapshot_store import SnapshotStore


@dataclass(frozen=True, slots=True)
class Reachability:
    """The result of a probe: the seconds that it took, and the problem if it failed."""

    checked_at: datetime
    latency: float
    problem: str | None = None

    @property
    def reachable(self) -> bool:
        """True if the probe succeeded."""
        return self.problem is None


class Probe:
    """The last result of a probe, which raises a LowtideError without an answer."""

    def __init__(
        self,
        probe: Callable[[], None],
        *,
        clock: Callable[[], datetime],
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._probe = probe
        self._clock = clock
        self._timer = timer
        self.found: Reachability | None = None

    def look(self) -> None:
        """Probe once."""
        self.found = self.measure()

    def measure(self) -> Reachability:
        """Probe once, and return the result without keeping it."""
        start = self._timer()
        problem = None
        try:
            self._probe()
        except LowtideError as error:
            problem = error.message
        return Reachability(self._clock(), self._timer() - start, problem)


@dataclass(frozen=True, slots=True)
class PoolSample:
    """The live and the desired workers of a pool at one time."""

    workers: int
    desired: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The pools of all fleets at one time."""

    at: datetime
    pools: Mapping[FleetPool, PoolSample]


@dataclass(frozen=True, slots=True)
class Scale:
    """The desired and the live replicas of a pool; there are too few since `short_since`."""

    desired: int
    live: int
    short_since: datetime | None


def scales_of(samples: Sequence[Sample]) -> dict[FleetPool, Scale]:
    """Return the scale of each fleet's pools from samples, oldest first; empty without samples."""
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


PLAN_AGE: Final = timedelta(seconds=60)
"""An older plan bounds no replicas, as in KEDA's query."""
SAMPLE_SECONDS: Final = 15.0
SAMPLES: Final = 240


@dataclass(frozen=True, slots=True)
class Seen:
    """The last good snapshot, the reachability of the database, and the samples, oldest first."""

    snapshot: SystemSnapshot | None = None
    looked_at: datetime | None = None
    database: Reachability | None = None
    samples: tuple[Sample, ...] = ()

    @property
    def problem(self) -> str | None:
        """The error of the last attempt to read the database, if it failed."""
        return None if self.database is None else self.database.problem


class SystemWatch:
    """The last snapshot, and a sample every 15 s for an hour, in this process's memory.

    A snapshot is kept when the database fails. `scales` are those of the declared fleets, by name.
    `forecast` adds the ETA to its batches.
    """

    def __init__(
        self,
        source: SnapshotStore,
        scales: Mapping[str, Mapping[Pool, PoolScale]],
        *,
        clock: Callable[[], datetime],
        timer: Callable[[], float] = time.perf_counter,
        forecast: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> None:
        self._source = source
        self._forecast = forecast
        self._scales = scales
        self._check = Probe(source.check, clock=clock, timer=timer)
        self._sampled: SystemSnapshot | None = None
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self.seen = Seen()

    def look(self) -> None:
        """Read the database, or record its error."""
        database = self._check.measure()
        if database.reachable:
            try:
                snapshot = self._source.read()
                recent = tuple(map(self._forecast, snapshot.recent))
            except LowtideError as error:
                database = replace(database, problem=error.message)
            else:
                snapshot = replace(snapshot, recent=recent)
                self._sample(snapshot)
                self.seen = Seen(snapshot, database.checked_at, database, tuple(self._samples))
                return
        self.seen = replace(self.seen, database=database)

    def _sample(self, snapshot: SystemSnapshot) -> None:
        before = self._sampled
        if before and (snapshot.at - before.at).total_seconds() < SAMPLE_SECONDS - 1:
            return
        pools = {
            FleetPool(name, pool): PoolSample(fleet.workers(pool), self.desired(pool, fleet))
            for name, fleet in snapshot.by_fleet()
            for pool in Pool
        }
        self._samples.append(Sample(snapshot.at, pools))
        self._sampled = snapshot

    def desired(self, pool: Pool, snapshot: SystemSnapshot) -> int:
        """Return the replicas that KEDA should run in a pool of all fleets of a snapshot."""
        return sum(self._desired(pool, name, fleet) for name, fleet in snapshot.by_fleet())

    def _desired(self, pool: Pool, name: str, fleet: SystemSnapshot) -> int:
        """Return the replicas of one fleet: for dedicated at most the planned ones."""
        if name not in self._scales:  # no longer declared: nothing scales it
            return 0
        is_fresh = fleet.ticked_at is None or fleet.at - fleet.ticked_at <= PLAN_AGE
        is_planned = pool is Pool.DEDICATED and is_fresh
        return scaled_replicas(
            fleet.depth(pool),
            self._scales[name][pool],
            planned=fleet.fleets[name].planned if is_planned else None,
            paused=fleet.pause(FleetPool(name, pool)) is not None,
            stranded=fleet.stranded(pool),
        )
