"""One tick of the scheduler."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide.domain.errors import Unavailable
from lowtide.domain.escalation import plan_tick
from lowtide.domain.replicas import desired_replicas

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.domain.demand import Capacity
    from lowtide.domain.pools import Pool
    from lowtide.ports import ObjectStore, Ticks
    from lowtide.services.publishing import Publisher

_log = logging.getLogger(__name__)
_STRAYS_A_TICK = 200


@dataclass(frozen=True, slots=True)
class PoolScale:
    """How KEDA scales a pool: queued rows a replica, and the bound."""

    rows_per_replica: int
    replicas: int


@dataclass(frozen=True, slots=True)
class TickRules:
    """Settings of a tick; times in seconds."""

    capacity: Capacity
    scales: Mapping[Pool, PoolScale]
    cancel_grace: float
    stalled_after: float


@dataclass(frozen=True, slots=True)
class TickReport:
    """What a tick did and saw."""

    reaped: int
    escalated: int
    at_risk: int
    queued: Mapping[Pool, int]
    desired_replicas: Mapping[Pool, int]


class Scheduler:
    """Keeps promises: gives lost work back, ends what is due, escalates what would be late."""

    def __init__(
        self, ticks: Ticks, objects: ObjectStore, publisher: Publisher, rules: TickRules
    ) -> None:
        self._ticks = ticks
        self._objects = objects
        self._publisher = publisher
        self._rules = rules

    def tick(self) -> TickReport:
        """Do one round. Idempotent; two at once do no harm."""
        reaped = self._ticks.sweep(
            cancel_grace=self._rules.cancel_grace, stalled_after=self._rules.stalled_after
        )
        now, batches = self._ticks.snapshot()
        escalated = at_risk = 0
        if now is not None:
            plan = plan_tick(batches, now, self._rules.capacity)
            self._ticks.escalate(plan.escalations)
            self._ticks.mark_at_risk(plan.at_risk)
            escalated = sum(escalation.lines for escalation in plan.escalations)
            at_risk = len(plan.at_risk)
        self._publisher.resend()
        self._remove_strays()
        depths = self._ticks.depths()
        report = TickReport(
            reaped=reaped,
            escalated=escalated,
            at_risk=at_risk,
            queued={pool: depth.queued for pool, depth in depths.items()},
            desired_replicas={
                pool: desired_replicas(
                    depth.queued,
                    self._rules.scales[pool].rows_per_replica,
                    most=self._rules.scales[pool].replicas,
                )
                for pool, depth in depths.items()
            },
        )
        if reaped or escalated or at_risk:
            _log.info("tick", extra={"reaped": reaped, "escalated": escalated, "at_risk": at_risk})
        return report

    def _remove_strays(self) -> None:
        """Remove objects without a file; what fails here is due again at the next tick."""
        try:
            keys = self._ticks.strays(_STRAYS_A_TICK)
            if keys:
                self._objects.delete(keys)
                self._ticks.forget_strays(keys)
                _log.info("objects.removed", extra={"objects": len(keys)})
        except Unavailable as error:
            _log.warning("objects.not_removed", extra={"reason": error.message})
