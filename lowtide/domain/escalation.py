"""When spot is not enough: the laziest safe schedule over active batches.

Work is divisible, spot promises nothing, dedicated capacity is stable and bounded. Batches in
deadline order are safe while for every k (demand bound of earliest-deadline-first scheduling, Liu
and Layland 1973, Baruah et al. 1990)

    open_1 + ... + open_k  <=  rate * replicas * (deadline_k - now - cold_start - margin)

Lines stay on spot while that holds one tick ahead. When it would not, the fewest lines that restore
it move to dedicated, earliest deadline first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from lowtide.domain.ids import BatchId


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch with lines still open: `spot` wait for spot, `dedicated` wait for or run there."""

    id: BatchId
    deadline: datetime
    spot: int
    running_spot: int
    dedicated: int

    @property
    def open(self) -> int:
        """Lines without a result."""
        return self.spot + self.running_spot + self.dedicated


@dataclass(frozen=True, slots=True)
class Capacity:
    """What dedicated workers can do. Rates in lines per second a replica, times in seconds."""

    rate: float
    replicas: int
    cold_start: float
    margin: float
    tick: float


@dataclass(frozen=True, slots=True)
class Escalation:
    """Move `lines` of a batch's waiting spot lines to dedicated."""

    batch: BatchId
    lines: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What one tick decides; `at_risk` batches cannot be held even by all replicas."""

    escalations: tuple[Escalation, ...]
    at_risk: frozenset[BatchId]


def plan_escalations(batches: Sequence[OpenBatch], now: datetime, capacity: Capacity) -> Plan:
    """Return the fewest lines that must move to dedicated now, and the batches at risk."""
    escalations: dict[BatchId, int] = {}
    at_risk: set[BatchId] = set()
    by_deadline = sorted(batches, key=lambda batch: (batch.deadline, batch.id))
    demand = escalated = 0
    speed = capacity.rate * capacity.replicas
    for position, batch in enumerate(by_deadline):
        demand += batch.open
        escalated += batch.dedicated
        left = (batch.deadline - now).total_seconds() - capacity.cold_start - capacity.margin
        if demand > speed * max(left, 0.0):
            at_risk.add(batch.id)
        # Until the next tick only what is already on dedicated gets done for certain; the rest
        # of the demand must still fit into the time that is left after it.
        excess = math.ceil(demand - escalated - speed * max(left - capacity.tick, 0.0))
        for earlier in by_deadline[: position + 1]:
            # Without any dedicated replica, a line that moved there would never run.
            if excess <= 0 or speed <= 0:
                break
            movable = earlier.spot - escalations.get(earlier.id, 0)
            moved = min(movable, excess)
            if moved > 0:
                escalations[earlier.id] = escalations.get(earlier.id, 0) + moved
                escalated += moved
                excess -= moved
    return Plan(
        escalations=tuple(Escalation(batch, lines) for batch, lines in escalations.items()),
        at_risk=frozenset(at_risk),
    )
