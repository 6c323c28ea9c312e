"""Whether a new batch may be recorded: the tenant's limits, and the promise of its deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.domain.demand import Demand
from lowtide.domain.limits import BatchUse, TenantLimits, check_room
from lowtide.postgres.outlook import read_outlook

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from lowtide.domain.batches import NewBatch
    from lowtide.domain.promises import AdmissionPolicy

_LOCK_LIMITS = text("SELECT * FROM lock_batch_limits()")
# Two strict creations at once would each find room for itself alone.
_LOCK_CAPACITY = text("SELECT pg_advisory_xact_lock(hashtext('lowtide.admission'))")
_IS_RETRY = text("""
SELECT EXISTS (SELECT 1 FROM batches WHERE tenant_id = :tenant AND idempotency_key = :key)
""")
# Before the split the file tells how many lines there will be.
USE = """
SELECT count(*) AS batches, coalesce(sum(CASE
    WHEN b.status = 'validating' THEN f.lines
    WHEN b.status = 'in_progress' AND b.drained_at IS NULL AND NOT b.expiring
      THEN b.total - b.tallied_completed - b.tallied_failed
    ELSE 0 END), 0) AS lines
FROM batch_states b LEFT JOIN files f ON f.id = b.input_file_id
WHERE b.tenant_id = :tenant AND b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
"""
_USE = text(USE)


def admit_batch(
    connection: Connection, batch: NewBatch, lines: int, policy: AdmissionPolicy | None
) -> bool:
    """Return whether a batch of `lines` lines is at risk from the start; False without a policy.

    Raises TooManyRequests or InvalidRequest when the tenant's limits leave no room, and what the
    policy raises; a retry with the same idempotency key passes. Creations that could take the same
    room wait here for each other until the caller's transaction ends.
    """
    row = connection.execute(_LOCK_LIMITS).one_or_none()
    if policy is not None and policy.strict:
        connection.execute(_LOCK_CAPACITY)
    if batch.idempotency_key is not None:
        parameters = {"tenant": batch.tenant, "key": batch.idempotency_key}
        if connection.execute(_IS_RETRY, parameters).scalar_one():
            return False
    if row is not None:
        limits = TenantLimits(active_batches=row.active_batches, queued_lines=row.queued_lines)
        used = connection.execute(_USE, {"tenant": batch.tenant}).one()
        check_room(limits, BatchUse(used.batches, used.lines), lines)
    if policy is None:
        return False
    return policy.is_at_risk(Demand(batch.deadline, lines), read_outlook(connection))
