"""The order of claims: by urgency, then by the tenants' weights, then each tenant's own order.

Tenants whose requests are equally urgent share a worker by start-time fair queueing (Goyal, Vin and
Cheng, "Start-Time Fair Queuing", SIGCOMM 1996): each tenant has a tag that grows by 1 / weight with
every request it gets, and the smallest tag goes next. A tenant that arrives or returns starts at
the smallest tag of those that stayed, so turns cannot be saved up. Every worker keeps its own tags:
if each worker is fair, so is their sum, and no row has to be shared.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide.core.pools import Pool
from lowtide.planning.urgency import own_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lowtide.core.ids import BatchId, TenantId


@dataclass(frozen=True, slots=True)
class Lane:
    """The requests of one batch that wait in one pool; `left` is seconds until its deadline.

    `max_running` bounds the tenant's claimed requests, over all of its lanes; with `has_quota`, it may
    have used up one. `barrier` is as of `Queued`.
    """

    batch: BatchId
    tenant: TenantId
    left: float
    weight: int = 1
    at_risk: bool = False
    max_running: int | None = None
    has_quota: bool = False
    priority: int = 0
    barrier: float = math.inf


@dataclass(frozen=True, slots=True)
class Share:
    """Up to `lines` requests for a tenant, from these lanes in this order."""

    tenant: TenantId
    lines: int
    lanes: tuple[Lane, ...]


def ranked(by_deadline: Sequence[Lane], pool: Pool) -> list[tuple[float, Lane]]:
    """Return the lanes of one tenant in their order, each with its urgency; smaller is more urgent.

    Spot promises nothing, so deadlines that are about as far away count as equal there, a batch at
    risk comes first, and priorities count. Requests are moved to dedicated because their deadline
    needs it, by a bound that assumes the earliest deadline first: nothing else counts there.
    """
    if pool is Pool.DEDICATED:
        return [(lane.left, lane) for lane in by_deadline]
    return own_order(by_deadline)


class FairShare:
    """Divides the requests that one worker claims, and remembers how many each tenant got."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._tags: dict[TenantId, float] = {}

    def plan(self, lanes: Iterable[Lane], lines: int) -> list[Share]:
        """Return each tenant's share of `lines`, among the most urgent lanes alone."""
        lanes_of: dict[TenantId, list[Lane]] = {}
        for lane in sorted(lanes, key=lambda lane: (lane.left, lane.batch)):
            lanes_of.setdefault(lane.tenant, []).append(lane)
        orders = {tenant: ranked(own_lanes, self._pool) for tenant, own_lanes in lanes_of.items()}
        most_urgent = min((order[0][0] for order in orders.values()), default=0.0)
        by_tenant = {
            tenant: [lane for level, lane in order if level <= most_urgent]
            for tenant, order in orders.items()
            if order[0][0] <= most_urgent
        }
        self._admit(by_tenant)
        turns = self._turns(
            {tenant: own_lanes[0].weight for tenant, own_lanes in by_tenant.items()}, lines
        )
        return [
            Share(tenant, turns[tenant], tuple(own_lanes))
            for tenant, own_lanes in by_tenant.items()
            if turns[tenant]
        ]

    def served(self, share: Share, lines: int) -> None:
        """Count the requests that a tenant actually got."""
        self._tags[share.tenant] += lines / share.lanes[0].weight

    def _admit(self, tenants: Iterable[TenantId]) -> None:
        existing_tags = [self._tags[tenant] for tenant in tenants if tenant in self._tags]
        start = min(existing_tags, default=0.0)
        self._tags = {tenant: self._tags.get(tenant, start) for tenant in tenants}

    def _turns(self, weights: dict[TenantId, int], lines: int) -> Counter[TenantId]:
        if len(weights) <= 1:
            return Counter(dict.fromkeys(weights, lines))
        turns: Counter[TenantId] = Counter()
        heap = [(self._tags[tenant], tenant) for tenant in weights]
        heapq.heapify(heap)
        for _ in range(lines):
            tag, tenant = heap[0]
            turns[tenant] += 1
            heapq.heapreplace(heap, (tag + 1 / weights[tenant], tenant))
        return turns


def without(lanes: Iterable[Lane], exhausted: Iterable[Lane]) -> list[Lane]:
    """Return the lanes of other batches."""
    batches = {lane.batch for lane in exhausted}
    return [lane for lane in lanes if lane.batch not in batches]
