"""Placement of batches in many cells by fronts that know only heartbeats, and an outage of some.

Each front asks `Cells.place`, with reports that are up to two steps old, and knows nothing of the
others. A creation in a cell that is away is refused, and the caller repeats it in the next step.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.cell_world import LONGEST, SLOT, STEP, World
from lowtide.cells.model import Cell, Cells, Demand

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.cell_world import Floats, Market
    from lowtide.cells.model import Report
    from lowtide.planning.demand import Capacity

LAGS: Final = (0, 1)
"""Steps since the reports of each front; within a step all are up to one more old."""
FRONTS: Final = 8
LARGEST: Final = 5_000_000
WINDOWS: Final = ((3600.0, 0.3), (3 * 3600.0, 0.4), (LONGEST * SLOT, 0.3))
"""Seconds of the completion windows, and their shares of the batches."""
SAMPLE: Final = 600.0
_EVACUATION_STEPS: Final = 6
_ROUNDING: Final = 1.0


@dataclass(frozen=True, slots=True)
class Outage:
    """A share of the cells is away for a while; with `evacuate`, their batches move after as long."""

    at: float
    seconds: float
    share: float
    evacuate: float | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """The batches that are created: `rate` requests a second for `seconds`, of `mean` requests."""

    rate: float
    seconds: float
    mean: float


@dataclass(slots=True)
class Batch:
    """A batch, its cell, and the requests of its slot there up to its last one."""

    created: float
    slot: int
    lines: float
    cell: int = -1
    upto: float = 0.0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Moment:
    """A sample: seconds of queued work and open requests by cell; ready and available replicas."""

    at: float
    waits: Floats
    open: Floats
    spot: int
    dedicated: int
    market: int


@dataclass(slots=True)
class Outcome:
    """The result of a run; requests, the price of all replicas, and what an outage did.

    Of the `late` requests, `missed` were in cells whose dedicated pool could hold all deadlines.
    `repeated` requests had ended in a cell that was evacuated. `elsewhere` is the seconds from an
    outage to the last creation that it refused.
    """

    cost: float = 0.0
    created: float = 0.0
    done: float = 0.0
    late: float = 0.0
    missed: float = 0.0
    left: float = 0.0
    repeated: float = 0.0
    on_spot: float = 0.0
    batches: int = 0
    late_batches: int = 0
    refused: int = 0
    elsewhere: float = 0.0
    planned: int = 0
    away: set[int] = field(default_factory=set)
    history: list[Moment] = field(default_factory=list)

    @property
    def useful(self) -> float:
        """The requests that ended in time, each once."""
        return self.done - self.repeated


def batches(work: Work, seed: int) -> list[Batch]:
    """Return the batches in order; the same for each way to place them."""
    rng = np.random.default_rng(seed)
    count = rng.poisson(work.rate / work.mean * work.seconds)
    times = np.sort(rng.uniform(0.0, work.seconds, count))
    sizes = np.minimum(rng.lognormal(np.log(work.mean) - 0.5, 1.0, count), LARGEST)
    sizes = np.maximum(1.0, np.round(sizes * (work.rate * work.seconds / max(sizes.sum(), 1.0))))
    windows, shares = zip(*WINDOWS, strict=True)
    due = times + rng.choice(windows, count, p=shares)
    slots = (due / SLOT).astype(np.int64)
    return [
        Batch(*each) for each in zip(times.tolist(), slots.tolist(), sizes.tolist(), strict=True)
    ]


class Run:
    """One run. `window` is what fronts take for every window; None: the batch's own."""

    def __init__(
        self,
        markets: Sequence[Market],
        capacity: Capacity,
        work: Work,
        seed: int,
        *,
        outage: Outage | None = None,
        blind: bool = False,
        window: float | None = None,
    ) -> None:
        last = work.seconds + max(seconds for seconds, _ in WINDOWS)
        self.world = World(markets, capacity, int(last / SLOT) + 2)
        self.cells = Cells(
            [
                Cell(number, f"cell-{number}", f"http://cell-{number}", market.zone)
                for number, market in enumerate(markets, 1)
            ]
        )
        self.batches = batches(work, seed)
        self.outcome = Outcome(batches=len(self.batches))
        self._work = work
        self._outage = outage
        self._blind = blind
        self._window = window
        self._rng = random.Random(seed)  # noqa: S311
        self._reports: deque[dict[int, Report]] = deque(maxlen=max(LAGS) + 1)
        self._moving: list[Batch] = []
        self._expired = 0.0

    def run(self) -> Outcome:
        """Run until all batches have ended or are late."""
        world, outcome = self.world, self.outcome
        coming = deque(self.batches)
        retried: list[Batch] = []
        while coming or retried or self._moving or world.open.sum() > _ROUNDING:
            now = world.now
            if coming or retried or self._moving:
                self._reports.appendleft(world.reports())
            self._switch(now)
            due = retried
            retried = []
            while coming and coming[0].created < now + STEP:
                due.append(coming.popleft())
                outcome.created += due[-1].lines
            retried += [batch for batch in due if not self._create(batch)]
            self._move()
            if now % world.capacity.tick == 0:
                world.tick()
            world.advance()
            if now % SAMPLE == 0:
                self._sample()
        self._finish()
        return outcome

    def is_late(self, batch: Batch) -> bool:
        """Return whether a batch had requests without a result at its deadline."""
        return bool(self.world.done[batch.cell, batch.slot] < batch.upto - _ROUNDING)

    def _place(self, batch: Batch) -> int:
        """Return the position of the cell that a front chooses."""
        if self._blind:
            return self._rng.randrange(len(self.cells.cells))
        lag = min(LAGS[self._rng.randrange(FRONTS) % len(LAGS)], len(self._reports) - 1)
        window = self._window or batch.slot * SLOT - self.world.now
        demand = Demand("tenant", window)
        return self.cells.place(demand, self._reports[lag], self._rng).number - 1

    def _create(self, batch: Batch) -> bool:
        """Create a batch in a cell; return False if it is refused."""
        cell = self._place(batch)
        if self.world.away[cell]:
            batch.refused += 1
            self.outcome.refused += 1
            if self._outage is not None:
                self.outcome.elsewhere = self.world.now + STEP - self._outage.at
            return False
        batch.cell = cell
        batch.upto = self.world.add(cell, batch.slot, batch.lines)
        return True

    def _switch(self, now: float) -> None:
        outage, away = self._outage, self.world.away
        if outage is None:
            return
        if now == outage.at:
            lost = self._rng.sample(range(len(away)), round(outage.share * len(away)))
            away[lost] = True
            self.outcome.away = set(lost)
        if now == outage.at + outage.seconds:
            away[:] = False
        if outage.evacuate is not None and now == outage.at + outage.evacuate:
            self._moving = list(self._evacuate(now))

    def _evacuate(self, now: float) -> Iterator[Batch]:
        """Take the unfinished batches from the cells that are away; all their requests repeat."""
        world = self.world
        for batch in self.batches:
            if batch.cell not in self.outcome.away or batch.slot * SLOT <= now:
                continue
            left = min(batch.upto - world.done[batch.cell, batch.slot], batch.lines)
            if left > _ROUNDING:
                self.outcome.repeated += batch.lines - left
                yield batch
        for cell in self.outcome.away:
            world.drop(cell)

    def _move(self) -> None:
        """Create the next evacuated batches elsewhere."""
        count = -(-len(self._moving) // _EVACUATION_STEPS)
        chosen, self._moving = self._moving[:count], self._moving[count:]
        for batch in chosen:
            if batch.slot * SLOT <= self.world.now:
                self._expired += batch.lines
                batch.upto = np.inf
            elif not self._create(batch):
                self._moving.append(batch)

    def _sample(self) -> None:
        world = self.world
        market = int(world.places().sum())
        pools = [int(pool.ready.sum()) for pool in (world.spot, world.dedicated)]
        lines = world.open
        moment = Moment(world.now, world.waits(lines), lines, pools[0], pools[1], market)
        self.outcome.history.append(moment)

    def _finish(self) -> None:
        world, outcome = self.world, self.outcome
        outcome.cost = world.cost
        outcome.done = float(world.done.sum())
        outcome.late = float(world.late.sum()) + self._expired
        outcome.missed = world.missed
        outcome.left = float(world.open.sum())
        outcome.planned = world.planned
        outcome.on_spot = float(world.spot.ended)
        outcome.late_batches = sum(map(self.is_late, self.batches))
