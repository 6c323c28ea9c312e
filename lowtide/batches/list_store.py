"""Filtered, paged lists of batches, for the portal.

A page is selected from `batches` alone, in the order of an index; only then are the tallies of its
batches summed. A filter is a condition on the rows of that index scan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from lowtide.batches.model import SLA_STATES, SlaState
from lowtide.batches.store import batch_of
from lowtide.batches.views import BatchFilter, BatchMark, BatchOrder
from lowtide.core.ids import BatchId, TenantId
from lowtide.tenants.sign_in import reading_as

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Engine

    from lowtide.batches.model import Batch


_RANK = (
    "(CASE WHEN status IN ('validating', 'in_progress', 'finalizing', 'cancelling') "
    "THEN 1 ELSE 0 END)"
)
_HAS_ENDED = _RANK.replace("THEN 1 ELSE 0", "THEN 0 ELSE 1")
_IS_LATE = """CASE WHEN coalesce(completed_at, failed_at, expired_at, cancelled_at) IS NULL
        THEN at_risk
        ELSE coalesce(completed_at, failed_at, expired_at, cancelled_at) > deadline END"""
_BY_STATUS = " ".join(
    f"WHEN '{status}' THEN CASE WHEN {_IS_LATE} THEN '{late}' ELSE '{in_time}' END"
    for status, (in_time, late) in SLA_STATES.items()
)
# As Batch.sla_state.
_SLA = f"CASE WHEN expiring THEN '{SlaState.MISSED}' ELSE CASE status {_BY_STATUS} END END"
_MATCHES = f"""(cast(:tenant AS uuid) IS NULL OR tenant_id = :tenant)
    AND (cast(:statuses AS text[]) IS NULL OR status = ANY(cast(:statuses AS text[])))
    AND (cast(:sla AS text[]) IS NULL OR {_SLA} = ANY(cast(:sla AS text[])))
    AND (cast(:user AS text) IS NULL OR strpos(lower(user_id), lower(cast(:user AS text))) > 0)
    AND (NOT cast(:all_failed AS boolean)
      OR status = 'completed' AND total > 0 AND completed = 0)
    AND (NOT cast(:ended_lately AS boolean)
      OR coalesce(completed_at, failed_at, expired_at, cancelled_at) > now() - interval '24 hours')"""
_ORDERS: Final = {
    BatchOrder.NEWEST: ("id < :after", "id DESC"),
    BatchOrder.OLDEST: ("id > :after", "id"),
    BatchOrder.ACTIVE: (
        f"({_RANK}, id) < (cast(:rank AS integer), cast(:after AS uuid))",
        f"{_RANK} DESC, id DESC",
    ),
    BatchOrder.DEADLINE: (
        f"""({_HAS_ENDED}, deadline, id)
      > (1 - cast(:rank AS integer), cast(:deadline AS timestamptz), cast(:after AS uuid))""",
        f"{_HAS_ENDED}, deadline, id",
    ),
}


def _of_page(columns: str) -> str:
    names = {_RANK: "p.rank", _HAS_ENDED: "p.has_ended", "deadline": "p.deadline", "id": "p.id"}
    for name, selected in names.items():
        columns = columns.replace(name, selected)
    return columns


PAGES: Final = {
    order: f"""
SELECT s.* FROM (
  SELECT id, deadline, {_RANK} AS rank, {_HAS_ENDED} AS has_ended FROM batches
  WHERE {_MATCHES}
    AND (cast(:after AS uuid) IS NULL OR {follows})
  ORDER BY {columns} LIMIT :limit
) p
CROSS JOIN LATERAL (SELECT * FROM batch_states WHERE id = p.id OFFSET 0) s
ORDER BY {_of_page(columns)}
"""  # noqa: S608
    for order, (follows, columns) in _ORDERS.items()
}
"""The statement for each order."""
_PAGES = {order: text(statement) for order, statement in PAGES.items()}
COUNT = f"SELECT count(*) FROM (SELECT 1 FROM batches WHERE {_MATCHES} LIMIT :most) m"  # noqa: S608
_COUNT = text(COUNT)
_CANCELLABLE = text(f"""
SELECT tenant_id, id FROM batches
WHERE {_MATCHES} AND (cast(:ids AS uuid[]) IS NULL OR id = ANY(cast(:ids AS uuid[])))
  AND status IN ('validating', 'in_progress', 'finalizing') AND NOT expiring
ORDER BY id LIMIT :most
""")  # noqa: S608
_TENANTS = text("SELECT id, name FROM tenants ORDER BY name")


class BatchListStore:
    """List batches."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(
        self,
        scope: TenantId | None,
        batch_filter: BatchFilter,
        order: BatchOrder,
        *,
        after: BatchMark | None,
        limit: int,
    ) -> Sequence[Batch]:
        """Return up to `limit` batches that follow `after`."""
        parameters = _parameters(scope, batch_filter) | {
            "after": None if after is None else after.batch,
            "limit": limit,
        }
        if order in (BatchOrder.ACTIVE, BatchOrder.DEADLINE):
            parameters["rank"] = int(after is not None and after.active)
        if order is BatchOrder.DEADLINE:
            parameters["deadline"] = None if after is None else after.deadline
        with reading_as(self._engine, scope) as connection:
            return [batch_of(row) for row in connection.execute(_PAGES[order], parameters)]

    def count(self, scope: TenantId | None, batch_filter: BatchFilter, *, limit: int) -> int:
        """Count matching batches, up to `limit`."""
        with reading_as(self._engine, scope) as connection:
            matches: int = connection.execute(
                _COUNT, _parameters(scope, batch_filter) | {"most": limit}
            ).scalar_one()
            return matches

    def cancellable(
        self, scope: TenantId | None, selector: BatchFilter | Sequence[BatchId], *, limit: int
    ) -> Sequence[tuple[TenantId, BatchId]]:
        """Return up to `limit` of these batches that can be cancelled, oldest first."""
        if isinstance(selector, BatchFilter):
            parameters = _parameters(scope, selector) | {"ids": None}
        else:
            parameters = _parameters(scope, BatchFilter()) | {"ids": list(selector)}
        with reading_as(self._engine, scope) as connection:
            rows = connection.execute(_CANCELLABLE, parameters | {"most": limit})
            return [(TenantId(row.tenant_id), BatchId(row.id)) for row in rows]

    def tenants(self, scope: TenantId | None) -> Mapping[TenantId, str]:
        """Return the names of all tenants; none for a scope of one tenant."""
        if scope is not None:
            return {}
        with reading_as(self._engine, scope) as connection:
            return {TenantId(row.id): row.name for row in connection.execute(_TENANTS)}


def _parameters(scope: TenantId | None, batch_filter: BatchFilter) -> dict[str, object]:
    return {
        # Row-level security adds the same condition; an explicit one can use the tenant's index.
        "tenant": scope or batch_filter.tenant,
        "statuses": sorted(batch_filter.statuses) or None,
        "sla": sorted(batch_filter.sla) or None,
        "user": batch_filter.user or None,
        "all_failed": batch_filter.all_failed,
        "ended_lately": batch_filter.ended_lately,
    }
