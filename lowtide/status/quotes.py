"""What this cell would do with more work: the quotes of its fleets, for its heartbeats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from lowtide.batches.workload import NO_CAPACITY
from lowtide.cells.model import Quote, Report, price_of
from lowtide.core.pools import Pool
from lowtide.database.connections import begin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from lowtide.batches.forecast import Forecaster
    from lowtide.batches.workload import FleetCapacity, Workload
    from lowtide.fleets.model import Fleet, Fleets


INTERRUPTIONS: Final = """
SELECT fleet, sum(interrupted) / (sum(replica_seconds) / 3600) AS per_hour FROM pool_samples
WHERE pool = 'spot' AND at > now() - interval '1 hour'
GROUP BY fleet HAVING sum(replica_seconds) > 0
"""
_INTERRUPTIONS = text(INTERRUPTIONS)


class InterruptionStore:
    """How often spot workers are lost."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def per_hour(self) -> Mapping[str, float]:
        """Return the interruptions per spot replica and hour in the last hour, by fleet."""
        with begin(self._engine) as connection:
            return {row.fleet: float(row.per_hour) for row in connection.execute(_INTERRUPTIONS)}


class Quotes:
    """The quotes of this cell's fleets."""

    def __init__(
        self,
        cell: int,
        forecaster: Forecaster,
        interruptions: InterruptionStore,
        fleets: Fleets,
        capacities: Mapping[str, FleetCapacity],
        currency: str,
    ) -> None:
        self._cell = cell
        self._forecaster = forecaster
        self._interruptions = interruptions
        self._fleets = fleets
        self._capacities = capacities
        self._currency = currency

    def report(self) -> Report:
        """Return a heartbeat; raises Unavailable if the database does not answer."""
        workloads = self._forecaster.workloads()
        interruptions = self._interruptions.per_hour()
        quotes = tuple(
            _quote(
                fleet,
                workloads.of(fleet.name),
                self._capacities.get(fleet.name, NO_CAPACITY),
                interruptions.get(fleet.name, 0.0),
            )
            for fleet in self._fleets
        )
        return Report(quotes, self._currency, self._cell)


def _quote(
    fleet: Fleet, workload: Workload, capacity: FleetCapacity, interruptions: float
) -> Quote:
    """Return the quote of a fleet: at the price of spot while there may be spot workers."""
    measured = workload.measured(capacity.dedicated)
    unfinished = sum(work.lines for work in workload.work)
    spot, dedicated = workload.of(Pool.SPOT), workload.of(Pool.DEDICATED)
    spot_rate = workload.rate(Pool.SPOT, measured.rate)
    per_second = 0.0
    if capacity.spot is not None and Pool.SPOT not in workload.paused and not spot.is_stranded:
        # A fleet scaled to zero gets at least one.
        per_second += max(spot.ready, min(1, capacity.spot.replicas)) * spot_rate
    if Pool.DEDICATED not in workload.paused:
        per_second += measured.replicas * measured.line_rate
    wait = None if per_second <= 0 else unfinished / per_second
    if wait is not None and spot.ready + dedicated.ready == 0:
        wait += measured.cold_start
    on_spot = capacity.spot is not None and Pool.SPOT not in workload.paused
    replica_hour, rate = (
        (fleet.spot.price, spot_rate) if on_spot else (fleet.dedicated.price, measured.rate)
    )
    # The replica that follows an interrupted one is paid for while it starts.
    lost = interruptions * measured.cold_start / 3600 if on_spot else 0.0
    return Quote(
        models=(*fleet.models, *fleet.aliases),
        price=price_of(replica_hour, rate) * (1.0 + lost),
        wait=wait,
        interruptions=interruptions,
        fleet=fleet.name,
        unfinished=unfinished,
        spot_workers=spot.ready,
        dedicated_workers=dedicated.ready,
        measured=any(
            pool is (Pool.SPOT if on_spot else Pool.DEDICATED) for pool, _ in workload.rates
        ),
    )
