"""Admission of new batches: limits of the tenant, and feasibility of the deadline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.batches.forecast import read_workloads
from lowtide.batches.workload import NO_CAPACITY
from lowtide.core.errors import Conflict
from lowtide.core.pools import Pool
from lowtide.planning.demand import Demand
from lowtide.planning.reasons import Reason
from lowtide.tenants.model import BatchSize, BatchUse, TenantLimits, check_room
from lowtide.tenants.store import USE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

    from lowtide.batches.model import NewBatch
    from lowtide.batches.workload import Workload, Workloads
    from lowtide.core.ids import TenantId
    from lowtide.planning.demand import Capacity


@dataclass(frozen=True, slots=True)
class Admission:
    """The verdict on a new batch.

    `held` is True if dedicated capacity alone meets its deadline without breaking another batch's;
    otherwise the batch is at risk from the start. `earliest` is the first feasible deadline, None
    without dedicated capacity or beyond the calendar's end.
    """

    held: bool
    earliest: datetime | None


def admit(new: Demand, others: Sequence[Demand], now: datetime, capacity: Capacity) -> Admission:
    """Judge a new batch against all open ones, assuming a cold start; O(n log n).

    New requests are not placed ahead of a batch that is already at risk either.

        >>> verdict = admit(Demand(deadline, lines), open_demand, now, capacity)
        >>> verdict.held or verdict.earliest
    """
    if new.lines <= 0:
        return Admission(held=True, earliest=now)
    if capacity.speed <= 0:
        return Admission(held=False, earliest=None)
    ordered = sorted(others, key=lambda other: other.deadline)
    start = now + timedelta(seconds=capacity.cold_start + capacity.lost)
    demand = 0
    lines_ahead = 0
    not_before = now
    # The last batch without room for the new requests ahead of it: they can only follow it.
    position = 0
    for number, other in enumerate(ordered, 1):
        demand += other.lines
        room = capacity.speed * max((other.deadline - start).total_seconds(), 0.0)
        if demand + new.lines > room:
            position, lines_ahead, not_before = number, demand, other.deadline
    for other in ordered[position:]:
        if (end := _completion(start, lines_ahead + new.lines, capacity)) is not None and (
            end < other.deadline
        ):
            break
        lines_ahead += other.lines
        not_before = other.deadline
    end = _completion(start, lines_ahead + new.lines, capacity)
    earliest = None if end is None else max(end, not_before)
    return Admission(held=earliest is not None and earliest <= new.deadline, earliest=earliest)


def _completion(start: datetime, lines: int, capacity: Capacity) -> datetime | None:
    """Return the time at which all replicas have run `lines`; None beyond the calendar's end."""
    try:
        return start + timedelta(seconds=lines / capacity.speed)
    except OverflowError:
        return None


@dataclass(frozen=True, slots=True)
class AdmissionPolicy:
    """The policy for infeasible deadlines: accept the batch as at risk, or reject it if `strict`.

    `capacities` are the configured ones by fleet; measured rates replace them.
    """

    capacities: Mapping[str, Capacity]
    strict: bool = False

    def risk(
        self, deadline: datetime, parts: Mapping[str, int], workloads: Workloads
    ) -> Reason | None:
        """Return the reason for which a new batch is at risk from the start; None if it is not.

        `parts` are its requests by fleet, each of which must hold the deadline. If strict, raise
        Conflict instead: retrying does not help, a longer window does, and the message names the
        shortest feasible one.
        """
        reasons = [
            self._risk(Demand(deadline, lines), fleet, workloads.of(fleet))
            for fleet, lines in parts.items()
        ]
        return next((reason for reason in reasons if reason is not None), None)

    def _risk(self, new: Demand, fleet: str, workload: Workload) -> Reason | None:
        capacity = self.capacities.get(fleet, NO_CAPACITY.dedicated)
        verdict = admit(new, workload.demand, workload.at, workload.measured(capacity))
        if verdict.held:
            return None
        if not self.strict:
            return _reason(workload, capacity)
        if Pool.DEDICATED in workload.paused:
            fix = "the dedicated pool is paused, and spot capacity is not guaranteed. Retry after it resumes"
        elif verdict.earliest is None:
            fix = (
                "the server has no dedicated capacity. LOWTIDE_ADMISSION=open accepts it as at risk"
            )
        else:
            window = math.ceil((verdict.earliest - workload.at) / timedelta(minutes=1))
            fix = (
                f"the earliest feasible deadline is {verdict.earliest:%Y-%m-%d %H:%M:%S} UTC, "
                f"a completion window of {window}m"
            )
        raise Conflict(
            f"The deadline {new.deadline:%Y-%m-%d %H:%M:%S} UTC of {new.lines} requests cannot be "
            f"met: {fix}.",
            param="completion_window",
            code="deadline_not_feasible",
        )


def _reason(workload: Workload, capacity: Capacity) -> Reason:
    if Pool.DEDICATED in workload.paused:
        return Reason.POOL_PAUSED
    return Reason.DEADLINE_BOUND if capacity.replicas else Reason.NO_DEDICATED


_LOCK_LIMITS = text("SELECT * FROM lock_batch_limits()")
# Otherwise concurrent strict creations would each claim the same capacity.
_LOCK_CAPACITY = text("SELECT pg_advisory_xact_lock(hashtext('lowtide.admission'))")
_IS_RETRY = text("""
SELECT EXISTS (SELECT 1 FROM batches WHERE tenant_id = :tenant AND idempotency_key = :key)
""")
_USE = text(f"""
SELECT open.*, q.tokens AS tokens_today, q.spend,
  extract(epoch FROM date_trunc('day', n.utc) + interval '1 day' - n.utc)::float8 AS day_left,
  extract(epoch FROM date_trunc('month', n.utc) + interval '1 month' - n.utc)::float8 AS month_left
FROM ({USE}) open, quota_use(:tenant) q, (SELECT now() AT TIME ZONE 'UTC' AS utc) n
""")  # noqa: S608


def admit_batch(
    connection: Connection, batch: NewBatch, size: BatchSize, policy: AdmissionPolicy | None
) -> Reason | None:
    """Return the reason for which a batch of this size is at risk from the start.

    It is None if the batch is not, or without a policy. Raises TooManyRequests or InvalidRequest if
    the tenant's limits leave no room, and the policy's errors; a retry with the same idempotency key
    passes. Creations that compete for the same room wait here until the caller's transaction ends.
    """
    row = connection.execute(_LOCK_LIMITS).one_or_none()
    if policy is not None and policy.strict:
        connection.execute(_LOCK_CAPACITY)
    if batch.idempotency_key is not None:
        parameters = {"tenant": batch.tenant, "key": batch.idempotency_key}
        if connection.execute(_IS_RETRY, parameters).scalar_one():
            return None
    if row is not None:
        _check_room(connection, batch.tenant, TenantLimits(**row._asdict()), size)
    if policy is None:
        return None
    parts = batch.placement.parts(size.lines)
    return policy.risk(batch.deadline, parts, read_workloads(connection))


def admit_requests(
    connection: Connection,
    tenant: TenantId,
    deadline: datetime,
    parts: Mapping[str, int],
    tokens: int,
    policy: AdmissionPolicy,
) -> Reason | None:
    """Admit the requests of a batch that was created without them, as `admit_batch` does.

    Acts for the tenant, before the batch's file is recorded.
    """
    row = connection.execute(_LOCK_LIMITS).one_or_none()
    if policy.strict:
        connection.execute(_LOCK_CAPACITY)
    if row is not None:
        # The batch is active already, and its creation met the quotas.
        limits = TenantLimits(queued_lines=row.queued_lines, enqueued_tokens=row.enqueued_tokens)
        _check_room(connection, tenant, limits, BatchSize(sum(parts.values()), tokens))
    return policy.risk(deadline, parts, read_workloads(connection))


def _check_room(
    connection: Connection, tenant: TenantId, limits: TenantLimits, size: BatchSize
) -> None:
    used = connection.execute(_USE, {"tenant": tenant}).one()
    use = BatchUse(
        used.batches,
        used.lines,
        used.tokens,
        used.tokens_today,
        used.spend,
        used.day_left,
        used.month_left,
    )
    check_room(limits, use, size)
