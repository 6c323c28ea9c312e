"""Tenants with what they use, for operators.

A page of tenants is found by name; only of its tenants is anything counted: batches that are not over
by their index, those that ended within a day by theirs, and of these batches the tallies. Lines are
counted where they run, and what waits is the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.domain.tenants import TenantUse
from lowtide.postgres.admissions import USE
from lowtide.postgres.connections import begin
from lowtide.postgres.tenant_registry import TENANT_COLUMNS, tenant_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

PAGE = f"""
SELECT t.*, open.batches AS active_batches, open.lines AS open_lines, held.running, day.*,
  CASE WHEN t.max_requests_per_minute IS NOT NULL THEN greatest(0, coalesce(rate.used
    - t.max_requests_per_minute * extract(epoch FROM now() - rate.at) / 60, 0)) END AS requests
FROM (
  SELECT {TENANT_COLUMNS} FROM tenants
  WHERE (cast(:text AS text) IS NULL OR strpos(name, :text) > 0)
    AND (cast(:after AS text) IS NULL OR name > :after)
  ORDER BY name LIMIT :limit
) t
CROSS JOIN LATERAL ({USE.replace(":tenant", "t.id")}) open
CROSS JOIN LATERAL (
  SELECT count(*) AS running FROM claims
  WHERE tenant_id = t.id AND pool IN ('spot', 'dedicated')) held
CROSS JOIN LATERAL (
  SELECT count(DISTINCT b.id) AS batches,
    coalesce(sum(w.completed + w.failed), 0)::bigint AS lines,
    coalesce(sum(w.input_tokens), 0)::bigint AS input_tokens,
    coalesce(sum(w.output_tokens), 0)::bigint AS output_tokens,
    coalesce(sum(w.replica_seconds) FILTER (WHERE w.pool = 'spot'), 0) AS spot_seconds,
    coalesce(sum(w.replica_seconds) FILTER (WHERE w.pool = 'dedicated'), 0) AS dedicated_seconds
  FROM (
    SELECT id FROM batches WHERE tenant_id = t.id
      AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
    UNION ALL
    SELECT id FROM batches WHERE tenant_id = t.id
      AND status IN ('completed', 'failed', 'expired', 'cancelled')
      AND coalesce(completed_at, failed_at, expired_at, cancelled_at) > now() - interval '24 hours'
  ) b LEFT JOIN LATERAL (SELECT * FROM tallies WHERE batch_id = b.id OFFSET 0) w ON true) day
LEFT JOIN request_rates rate ON rate.tenant_id = t.id
ORDER BY t.name
"""  # noqa: S608
_PAGE = text(PAGE)


class PostgresTenantUsage:
    """Port TenantUsage, for a role that sees every tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(self, name: str, *, after: str | None, limit: int) -> Sequence[TenantUse]:
        """Return up to `limit` tenants behind `after` with `name` in their name, by name."""
        parameters = {"text": name or None, "after": after, "limit": limit}
        with begin(self._engine) as connection:
            return [_use(row) for row in connection.execute(_PAGE, parameters)]


def _use(row: Any) -> TenantUse:
    return TenantUse(
        tenant=tenant_of(row),
        requests=None if row.requests is None else float(row.requests),
        active_batches=row.active_batches,
        # A line may move into a worker's hands between the two counts.
        waiting_lines=max(int(row.open_lines) - row.running, 0),
        running_lines=row.running,
        batches=row.batches,
        lines=row.lines,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        spot_seconds=row.spot_seconds,
        dedicated_seconds=row.dedicated_seconds,
    )
