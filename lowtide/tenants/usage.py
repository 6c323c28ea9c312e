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
    """What accepted results used since `since`, the start of the month in UTC, to the last one.

    It outlives the batches. `costs` has one entry for each currency, at the prices stored with the
    batches.
    """

    since: datetime
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
    used: Mapping[str, float | None]
    month: MonthUse
    paused: tuple[PausedPool, ...]


LIMITS_IN_USE = f"""
SELECT t.name, {", ".join(f"t.{column}" for column in LIMIT_COLUMNS)}, {METERS},
  date_trunc('month', now(), 'UTC') AS month
FROM tenants t {METERED} WHERE t.id = :tenant
"""  # noqa: S608
_LIMITS_IN_USE = text(LIMITS_IN_USE)
MONTH = """
SELECT currency, sum(requests)::bigint AS requests, sum(input_tokens)::bigint AS input_tokens,
  sum(output_tokens)::bigint AS output_tokens,
  coalesce(sum(cost) FILTER (WHERE pool = 'spot'), 0) AS spot,
  coalesce(sum(cost) FILTER (WHERE pool = 'dedicated'), 0) AS dedicated,
  sum(dedicated_cost) AS all_dedicated
FROM usage_days
WHERE tenant_id = :tenant AND day >= date_trunc('month', now() AT TIME ZONE 'UTC')::date
GROUP BY currency
"""
_MONTH = text(MONTH)
_NAME = text("SELECT name FROM tenants WHERE id = :tenant")
_PAUSED = text("SELECT fleet, pool, since FROM paused_pools ORDER BY since, fleet, pool")


class UsageStore:
    """The usage of one tenant, as a role that may read its rows."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def name(self, tenant: TenantId) -> str:
        """Return a tenant's name; raises NotFound."""
        with acting_for(self._engine, tenant) as connection:
            name = connection.execute(_NAME, {"tenant": tenant}).scalar()
        if name is None:
            raise NotFound("Tenant not found.")
        return str(name)

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


def _used(row: Any) -> dict[str, float | None]:
    return {
        "requests_per_minute": None if row.requests is None else round(row.requests),
        "active_batches": row.active_batches,
        # Claims of cancelling batches run, but their requests are not among the open ones.
        "queued_lines": max(int(row.open_lines), row.running),
        "running_lines": row.running,
        "enqueued_tokens": row.enqueued_tokens,
        "tokens_per_day": row.tokens_today,
        "spend_per_month": row.spend_this_month,
    }


def _month(since: datetime, rows: Sequence[Any]) -> MonthUse:
    return MonthUse(
        since=since,
        requests=sum(row.requests for row in rows),
        input_tokens=sum(row.input_tokens for row in rows),
        output_tokens=sum(row.output_tokens for row in rows),
        costs=tuple(
            Cost(row.currency, row.spot, row.dedicated, row.all_dedicated)
            for row in sorted(rows, key=lambda row: row.currency)
        ),
    )
