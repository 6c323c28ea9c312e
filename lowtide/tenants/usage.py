"""A tenant's own view of its usage: limits, this month's cost, and paused pools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.core.errors import NotFound
from lowtide.core.pools import Cost, FleetPool, Pool
from lowtide.database.connections import acting_for
from lowtide.tenants.store import LIMIT_COLUMNS, METERED, METERS, limits_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Engine

    from lowtide.core.ids import TenantId
    from lowtide.tenants.model import TenantLimits


@dataclass(frozen=True, slots=True)
class MonthUse:
    """Totals of the batches that ended since `since`, the start of the month in UTC, or are active.

    `costs` has one entry for each currency, at the prices stored with the batches.
    """

    since: datetime
    batches: int
    requests: int
    input_tokens: int
    output_tokens: int
    costs: tuple[Cost, ...]


@dataclass(frozen=True, slots=True)
class PausedPool:
    """A paused pool of a fleet, as tenants see it: without who paused it."""

    place: FleetPool
    since: datetime


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """A tenant's limits and usage.

    `used` has the use of each limit by its name in TenantLimits; None if it is not counted.
    """

    tenant: str
    limits: TenantLimits
    used: Mapping[str, int | None]
    month: MonthUse
    paused: tuple[PausedPool, ...]


LIMITS_IN_USE = f"""
SELECT t.name, {", ".join(f"t.{column}" for column in LIMIT_COLUMNS)}, {METERS},
  date_trunc('month', now(), 'UTC') AS month
FROM tenants t {METERED} WHERE t.id = :tenant
"""  # noqa: S608
_LIMITS_IN_USE = text(LIMITS_IN_USE)
MONTH = """
SELECT b.currency, count(*) AS batches,
  sum(w.requests)::bigint AS requests, sum(w.input_tokens)::bigint AS input_tokens,
  sum(w.output_tokens)::bigint AS output_tokens, sum(w.spot) AS spot,
  sum(w.dedicated) AS dedicated, sum(w.all_dedicated) AS all_dedicated
FROM (
  SELECT id, fleet, spot_price, dedicated_price, currency FROM batches WHERE tenant_id = :tenant
    AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
  UNION ALL
  SELECT id, fleet, spot_price, dedicated_price, currency FROM batches WHERE tenant_id = :tenant
    AND status IN ('completed', 'failed', 'expired', 'cancelled')
    AND coalesce(completed_at, failed_at, expired_at, cancelled_at) >= date_trunc('month', now(), 'UTC')
) b CROSS JOIN LATERAL (
  SELECT coalesce(sum(completed + failed), 0) AS requests,
    coalesce(sum(input_tokens), 0) AS input_tokens,
    coalesce(sum(output_tokens), 0) AS output_tokens,
    coalesce(sum(cost) FILTER (WHERE pool = 'spot'), 0) AS spot,
    coalesce(sum(cost) FILTER (WHERE pool = 'dedicated'), 0) AS dedicated,
    coalesce(sum(dedicated_cost), 0) AS all_dedicated
  FROM tally_costs(b.id, b.fleet, b.spot_price, b.dedicated_price)) w
GROUP BY b.currency
"""
_MONTH = text(MONTH)
_PAUSED = text("SELECT fleet, pool, since FROM paused_pools ORDER BY since, fleet, pool")


class UsageStore:
    """The usage of one tenant, as a role that may read its rows."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self, tenant: TenantId) -> TenantUsage:
        """Return a tenant's usage; raises NotFound."""
        parameters = {"tenant": tenant}
        with acting_for(self._engine, tenant) as connection:
            row = connection.execute(_LIMITS_IN_USE, parameters).one_or_none()
            if row is None:
                raise NotFound("Tenant not found.")
            months = connection.execute(_MONTH, parameters).all()
            pauses = connection.execute(_PAUSED).all()
        return TenantUsage(
            row.name,
            limits_of(row),
            _used(row),
            _month(row.month, months),
            tuple(PausedPool(FleetPool(row.fleet, Pool(row.pool)), row.since) for row in pauses),
        )


def _used(row: Any) -> dict[str, int | None]:
    return {
        "requests_per_minute": None if row.requests is None else round(row.requests),
        "active_batches": row.active_batches,
        # Claims of cancelling batches run, but their requests are not among the open ones.
        "queued_lines": max(int(row.open_lines), row.running),
        "running_lines": row.running,
    }


def _month(since: datetime, rows: Sequence[Any]) -> MonthUse:
    return MonthUse(
        since=since,
        batches=sum(row.batches for row in rows),
        requests=sum(row.requests for row in rows),
        input_tokens=sum(row.input_tokens for row in rows),
        output_tokens=sum(row.output_tokens for row in rows),
        costs=tuple(
            Cost(row.currency, row.spot, row.dedicated, row.all_dedicated)
            for row in sorted(rows, key=lambda row: row.currency)
        ),
    )
