"""Many cells on recorded spot markets, in time steps: replicas, open requests and plans, with numpy.

Requests are a fluid, in slots of equal deadlines, earliest first. Replicas start cold, the newest stop
first, and each is paid from its start until it stops. Spot follows its queue as KEDA scales it;
dedicated is what `lowtide.planning` decides, tick by tick.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import numpy as np

from lowtide.cells.model import Quote, Report
from lowtide.core.ids import BatchId
from lowtide.planning.escalation import OpenBatch, plan_tick

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowtide.planning.demand import Capacity
    from lowtide.planning.escalation import Plan

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

_ALL: Final = ("*",)
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
SLOT: Final = 600.0
"""Seconds between the deadlines that differ."""
LONGEST: Final = 36
"""Slots of the longest completion window."""
STEP: Final = 10.0
"""Seconds of a time step, and between two heartbeats."""
QUOTED: Final = 3600.0
"""Seconds of work whose place, spot or dedicated, decides the price that a cell quotes."""
SPOT_SECONDS: Final = 300.0
"""Seconds of queued work for which spot gets a replica."""


@dataclass(frozen=True, slots=True)
class Market:
    """A recorded market as a cell sees it: its zone, spot replicas every `gap` seconds, prices.

    Prices are of a replica hour. `interruptions` are per spot replica and hour.
    """

    zone: str
    places: Ints
    gap: float
    spot: float
    dedicated: float
    interruptions: float

    def at(self, now: float) -> int:
        """Return the available spot replicas; the market repeats after its end."""
        return int(self.places[int(now / self.gap) % len(self.places)])


class Crews:
    """The replicas of one pool in each cell; `paid` are replica-seconds, `ended` requests.

    `present` are those that work or start.
    """

    def __init__(self, cells: int, capacity: Capacity) -> None:
        self._rate = capacity.rate
        self.ready = np.zeros(cells, dtype=np.int64)
        self.present = np.zeros(cells, dtype=np.int64)
        # One column for each step of a cold start; the last one is ready next.
        self.starting = np.zeros((cells, int(capacity.cold_start / STEP)), dtype=np.int64)
        self.paid = np.zeros(cells)
        self.ended = 0.0

    def resize(self, wanted: Ints) -> None:
        """Start replicas, or stop the newest ones."""
        surplus = np.maximum(self.present - wanted, 0)
        for column in range(self.starting.shape[1]):
            if not surplus.any():
                break
            stopped = np.minimum(surplus, self.starting[:, column])
            self.starting[:, column] -= stopped
            surplus -= stopped
        self.ready -= surplus
        self.starting[:, 0] += np.maximum(wanted - self.present, 0)
        self.present = wanted.copy()

    def run(self, lines: Floats, done: Floats) -> None:
        """Advance one step: the earliest open requests, by cell and slot, end."""
        self.paid += self.present * STEP
        busy = np.flatnonzero(self.ready)
        if busy.size:
            most = self.ready[busy] * (self._rate * STEP)
            ended = np.minimum(lines[busy].cumsum(axis=1), most[:, None])
            ended[:, 1:] -= ended[:, :-1].copy()
            lines[busy] -= ended
            done[busy] += ended
            self.ended += float(ended.sum())
        self.ready += self.starting[:, -1]
        self.starting[:, 1:] = self.starting[:, :-1]
        self.starting[:, 0] = 0

    def starts(self, cell: int) -> list[float]:
        """Return the seconds until each replica of a cell works."""
        steps = self.starting.shape[1]
        starts = [0.0] * int(self.ready[cell])
        for column, count in enumerate(self.starting[cell].tolist()):
            starts += [(steps - column) * STEP] * count
        return starts


class World:
    """All cells. Arrays are by cell, or by cell and slot; slot s is due at s x SLOT seconds.

    A slot is `overfull` if dedicated alone could not hold it when a batch was added: no promise was
    made.
    """

    def __init__(self, markets: Sequence[Market], capacity: Capacity, slots: int) -> None:
        count = len(markets)
        self.markets = markets
        distinct = {id(market): market for market in markets}
        self._distinct = list(distinct.values())
        order = {key: number for number, key in enumerate(distinct)}
        self._market_of = np.array([order[id(market)] for market in markets])
        self.capacity = capacity
        self.now = 0.0
        self.away = np.zeros(count, dtype=bool)
        self.spot, self.dedicated = Crews(count, capacity), Crews(count, capacity)
        self.on_spot, self.on_dedicated = np.zeros((count, slots)), np.zeros((count, slots))
        self.placed, self.done = np.zeros((count, slots)), np.zeros((count, slots))
        self.late = np.zeros((count, slots))
        self.overfull = np.zeros((count, slots), dtype=bool)
        self.planned = 0
        self._wanted = np.zeros(count, dtype=np.int64)
        self._spot_price = np.array([market.spot for market in markets])
        self._dedicated_price = np.array([market.dedicated for market in markets])
        interruptions = np.array([market.interruptions for market in markets])
        # Each interruption costs a cold start.
        lost = np.minimum(interruptions * capacity.cold_start / 3600, 0.9)
        self._effective_spot_price = self._spot_price / (1 - lost)

    @property
    def open(self) -> Floats:
        """The open requests of each cell."""
        total: Floats = self.on_spot.sum(axis=1) + self.on_dedicated.sum(axis=1)
        return total

    @property
    def missed(self) -> float:
        """The late requests of slots that dedicated could always hold."""
        return float(self.late[~self.overfull].sum())

    @property
    def cost(self) -> float:
        """The price of all replica-seconds."""
        spot, dedicated = self.spot.paid, self.dedicated.paid
        return float(spot @ self._spot_price + dedicated @ self._dedicated_price) / 3600

    def places(self) -> Ints:
        """Return the available spot replicas of each cell."""
        places: Ints = np.array([market.at(self.now) for market in self._distinct])[self._market_of]
        return places

    def add(self, cell: int, slot: int, lines: float) -> float:
        """Add a batch; return the requests of its slot up to its last one."""
        self.on_spot[cell, slot] += lines
        self.placed[cell, slot] += lines
        demand = (self.on_spot[cell] + self.on_dedicated[cell]).cumsum()[slot:]
        self.overfull[cell, slot:] |= demand > self._room()[slot:]
        return float(self.placed[cell, slot])

    def drop(self, cell: int) -> None:
        """Drop all open requests of a cell."""
        self.on_spot[cell] = self.on_dedicated[cell] = 0.0
        self.placed[cell] = self.done[cell]

    def advance(self) -> None:
        """Run until the next step; then what is due and has not ended is late."""
        first = int(self.now / SLOT)
        slots = slice(first, first + LONGEST + 1)
        market = self.places()
        market[self.away] = 0
        rows = np.ceil(self.on_spot.sum(axis=1) / (self.capacity.rate * SPOT_SECONDS))
        self.spot.resize(np.minimum(market, rows.astype(np.int64)))
        self.dedicated.resize(np.where(self.away, 0, self._wanted))
        for crew, lines in ((self.spot, self.on_spot), (self.dedicated, self.on_dedicated)):
            crew.run(lines[:, slots], self.done[:, slots])
        self.now += STEP
        if self.now % SLOT == 0:
            due = int(self.now / SLOT)
            self.late[:, due] = self.on_spot[:, due] + self.on_dedicated[:, due]
            self.on_spot[:, due] = self.on_dedicated[:, due] = 0.0

    def needs_plan(self) -> Ints:
        """Return the cells in which dedicated has work, replicas, or a deadline to hold from now on.

        For the others the plan of a tick is empty: all of cold dedicated after the next tick has
        room for what is due by each deadline.
        """
        demand = np.ceil(self.on_spot).cumsum(axis=1)
        short = (demand > self._room()).any(axis=1)
        busy = (self.dedicated.present > 0) | (self.on_dedicated.sum(axis=1) > 0)
        found: Ints = np.flatnonzero((short | busy) & ~self.away)
        return found

    def _room(self) -> Floats:
        """Return what dedicated can run by each deadline if all of it starts after the next tick."""
        capacity = self.capacity
        horizons = np.arange(self.on_spot.shape[1]) * SLOT - self.now - capacity.lost
        room: Floats = np.maximum(horizons - capacity.tick - capacity.cold_start, 0.0)
        return room * capacity.speed

    def tick(self) -> None:
        """Plan dedicated capacity in every cell, as the scheduler does."""
        self._wanted[self.away] = 0
        for cell in self.needs_plan().tolist():
            self.planned += 1
            self._apply(cell, self.plan(cell))

    def plan(self, cell: int) -> Plan:
        """Return the scheduler's plan for a cell. Requests of a slot count as one batch."""
        spot, dedicated = np.ceil(self.on_spot[cell]), np.ceil(self.on_dedicated[cell])
        batches = [
            OpenBatch(
                BatchId(uuid.UUID(int=slot)),
                START + timedelta(seconds=slot * SLOT),
                spot=int(spot[slot]),
                dedicated=int(dedicated[slot]),
            )
            for slot in np.flatnonzero(spot + dedicated).tolist()
        ]
        now = START + timedelta(seconds=self.now)
        return plan_tick(batches, now, self.capacity, self.dedicated.starts(cell))

    def _apply(self, cell: int, plan: Plan) -> None:
        spot, dedicated = self.on_spot[cell], self.on_dedicated[cell]
        for move in plan.escalations:
            lines = min(float(move.lines), spot[move.batch.int])
            spot[move.batch.int] -= lines
            dedicated[move.batch.int] += lines
        for move in plan.returns:
            lines = min(float(move.lines), dedicated[move.batch.int])
            dedicated[move.batch.int] -= lines
            spot[move.batch.int] += lines
        self._wanted[cell] = plan.replicas

    def waits(self, lines: Floats) -> Floats:
        """Return the seconds until the open `lines` have run, on all of dedicated if need be."""
        rate, full, start = self.capacity.rate, self.capacity.replicas, self.capacity.cold_start
        spot = self.spot.ready * rate
        first = spot * start
        seconds: Floats = np.where(
            lines <= first,
            lines / np.maximum(spot, rate),
            start + np.maximum(lines - first, 0.0) / (spot + full * rate),
        )
        return seconds

    def prices(self, lines: Floats) -> Floats:
        """Return the price of a request in each cell.

        That of spot for the share of the open requests that the present market could run in an
        hour; that of dedicated for the rest.
        """
        market = self.places()
        room = market * (self.capacity.rate * QUOTED)
        share = np.where(market > 0, np.minimum(1.0, room / np.maximum(lines, 1.0)), 0.0)
        hour = share * self._effective_spot_price + (1 - share) * self._dedicated_price
        price: Floats = hour / 3600 / self.capacity.rate
        return price

    def reports(self) -> dict[int, Report]:
        """Return the heartbeats of the cells that answer, by number."""
        lines = self.open
        quotes = zip(
            self.prices(lines).tolist(),
            self.waits(lines).tolist(),
            self.away.tolist(),
            self.markets,
            strict=True,
        )
        return {
            number: Report((Quote(_ALL, price, wait, market.interruptions),))
            for number, (price, wait, away, market) in enumerate(quotes, 1)
            if not away
        }
