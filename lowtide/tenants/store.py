"""The records and the usage of tenants, read and written by the operators' role."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.core.errors import Conflict, NotFound
from lowtide.core.ids import DEFAULT_TENANT, TenantId
from lowtide.database.connections import begin, connect
from lowtide.tenants.audit import note
from lowtide.tenants.keys import (
    actor_of,
    add_key,
    hash_key,
    keys_of,
    let_expire,
    prefix_of,
    revoke_keys,
)
from lowtide.tenants.model import LIMITS, Tenant, TenantLimits, TenantUse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime, timedelta

    from sqlalchemy import Connection, Engine

    from lowtide.core.ids import KeyId
    from lowtide.tenants.keys import ApiKey, KeyTerms

# Before the split, the file has the number of requests.
USE = """
SELECT count(*) AS batches, coalesce(sum(n.open), 0)::bigint AS lines,
  coalesce(sum(ceil(b.enqueued_tokens * CASE WHEN b.status = 'validating' THEN 1
    ELSE n.open::double precision / nullif(b.total, 0) END)), 0)::bigint AS tokens
FROM batches b CROSS JOIN LATERAL (
  SELECT coalesce(CASE
    WHEN b.status = 'validating' THEN (SELECT lines FROM files WHERE id = b.input_file_id)
    WHEN b.status = 'in_progress' AND b.drained_at IS NULL AND NOT b.expiring
      THEN b.total - (SELECT coalesce(sum(completed + failed), 0) FROM tallies WHERE batch_id = b.id)
    END, 0) AS open) n
WHERE b.tenant_id = :tenant AND b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
"""
# Use of the limits of a row `t` of tenants, and its tables.
METERS = """open.batches AS active_batches, open.lines AS open_lines, open.tokens AS enqueued_tokens,
  held.running, quota.tokens AS tokens_today, quota.spend AS spend_this_month,
  CASE WHEN t.max_requests_per_minute IS NOT NULL THEN greatest(0, coalesce(rate.used
    - t.max_requests_per_minute * extract(epoch FROM now() - rate.at) / 60, 0)) END AS requests"""
METERED = f"""
CROSS JOIN LATERAL ({USE.replace(":tenant", "t.id")}) open
CROSS JOIN LATERAL (
  SELECT coalesce(sum(n.running), 0)::bigint AS running FROM fleets f CROSS JOIN LATERAL (
    SELECT sum(size) AS running FROM claimed_runs
    WHERE fleet = f.name AND pool IN ('spot', 'dedicated') AND tenant_id = t.id) n) held
CROSS JOIN LATERAL quota_use(t.id) quota
LEFT JOIN request_rates rate ON rate.tenant_id = t.id
"""  # noqa: S608
LIMIT_COLUMNS = {f"max_{name}": name for name in LIMITS}
TENANT_COLUMNS = ", ".join(
    ("id", "name", "weight", *LIMIT_COLUMNS, "created_at", "batch_retention", "zero_retention")
)
_LIST = text(f"SELECT {TENANT_COLUMNS} FROM tenants ORDER BY name")  # noqa: S608
_LOCK = text(f"SELECT {TENANT_COLUMNS} FROM tenants WHERE name = :name FOR UPDATE")  # noqa: S608
_ADD = text(f"""
INSERT INTO tenants ({TENANT_COLUMNS})
VALUES (:id, :name, :weight, {", ".join(f":{column}" for column in LIMIT_COLUMNS)}, :created_at,
  :batch_retention, :zero_retention)
ON CONFLICT (name) DO NOTHING
""")  # noqa: S608
_CHANGE = text(f"""
UPDATE tenants SET weight = :weight, batch_retention = :batch_retention,
  zero_retention = :zero_retention, {", ".join(f"{column} = :{column}" for column in LIMIT_COLUMNS)}
WHERE id = :id
""")  # noqa: S608


class TenantStore:
    """The records of tenants and their keys."""

    def __init__(self, engine: Engine, *, pepper: str) -> None:
        self._engine = engine
        self._pepper = pepper

    def tenants(self) -> Sequence[Tenant]:
        """Return all tenants, sorted by name."""
        with begin(self._engine) as connection:
            return [tenant_of(row) for row in connection.execute(_LIST)]

    def add(self, tenant: Tenant, actor: str) -> None:
        """Insert a tenant; raises Conflict if its name is taken."""
        values = _values(tenant)
        with begin(self._engine) as connection:
            row = values | {"name": tenant.name, "created_at": tenant.created_at}
            if connection.execute(_ADD, row).rowcount == 0:
                raise Conflict(f"Tenant {tenant.name!r} already exists.", param="name")
            note(connection, tenant.id, actor, "tenant.created", [tenant.name])
            _audit_changes(connection, tenant, {"weight": 1, "zero_retention": False}, actor)

    def change(self, name: str, change: Callable[[Tenant], Tenant], actor: str) -> Tenant:
        """Store the weight and limits that `change` returns for a tenant; raises NotFound."""
        with begin(self._engine) as connection:
            before = _lock(connection, name)
            after = change(before)
            connection.execute(_CHANGE, _values(after))
            _audit_changes(connection, after, _values(before), actor)
        return after

    def keys(self, tenant: str) -> Sequence[ApiKey]:
        """Return a tenant's keys, oldest first; raises NotFound."""
        with begin(self._engine) as connection:
            return keys_of(connection, _lock(connection, tenant).id)

    def add_key(self, tenant: str, name: str, key: str, terms: KeyTerms, actor: str) -> None:
        """Store a key's hash; raises NotFound, or Conflict if a key of that name is in use."""
        with begin(self._engine) as connection:
            tenant_id = _lock(connection, tenant).id
            key_id = add_key(connection, tenant_id, name, key, self._pepper, terms)
            scopes = "" if terms.scopes is None else f": {', '.join(terms.scopes)}"
            note(connection, tenant_id, actor, "key.created", [f"{actor_of(name, key_id)}{scopes}"])

    def rotate_key(
        self, tenant: str, name: str, key: str, overlap: timedelta, actor: str
    ) -> datetime:
        """Store the hash of a key's successor; return the time until which the old key works."""
        with begin(self._engine) as connection:
            tenant_id = _lock(connection, tenant).id
            expires_at, terms = let_expire(connection, tenant_id, name, overlap)
            key_id = add_key(connection, tenant_id, name, key, self._pepper, terms, reuse_name=True)
            subject = f"{actor_of(name, key_id)}: the previous key ends {expires_at:%Y-%m-%d %H:%M:%S} UTC"
            note(connection, tenant_id, actor, "key.rotated", [subject])
        return expires_at

    def revoke_key(self, tenant: str, name: str, actor: str, key: KeyId | None = None) -> None:
        """Revoke the keys of a name, or only `key`; raises NotFound if none is in use."""
        with begin(self._engine) as connection:
            tenant_id = _lock(connection, tenant).id
            key_ids = revoke_keys(connection, tenant_id, name, key)
            note(
                connection,
                tenant_id,
                actor,
                "key.revoked",
                [actor_of(name, key_id) for key_id in key_ids],
            )


def _lock(connection: Connection, name: str) -> Tenant:
    row = connection.execute(_LOCK, {"name": name}).one_or_none()
    if row is None:
        raise NotFound(
            f"Tenant {name[:100]!r} not found: see `lowtide tenants list`.",
            param="name",
        )
    return tenant_of(row)


def _audit_changes(
    connection: Connection, tenant: Tenant, before: dict[str, object], actor: str
) -> None:
    """Record the changed values, such as `max_running_lines: 5 -> none`."""
    subjects = [
        f"{name}: {_format_value(before.get(name))} -> {_format_value(value)}"
        for name, value in _values(tenant).items()
        if name != "id" and value != before.get(name)
    ]
    if subjects:
        note(connection, tenant.id, actor, "tenant.changed", subjects)


def _format_value(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


def _values(tenant: Tenant) -> dict[str, object]:
    limits = {column: getattr(tenant.limits, name) for column, name in LIMIT_COLUMNS.items()}
    kept = {
        "batch_retention": tenant.batch_retention,
        "zero_retention": tenant.zero_retention,
    }
    return {"id": tenant.id, "weight": tenant.weight, **limits, **kept}


def tenant_of(row: Any) -> Tenant:
    """Return the tenant in a row of `tenants`."""
    return Tenant(
        TenantId(row.id),
        row.name,
        row.weight,
        limits_of(row),
        row.created_at,
        row.batch_retention,
        row.zero_retention,
    )


def limits_of(row: Any) -> TenantLimits:
    """Return the limits in a row of `tenants`."""
    return TenantLimits(**{name: getattr(row, column) for column, name in LIMIT_COLUMNS.items()})


PAGE = f"""
SELECT t.*, {METERS}, day.* FROM (
  SELECT {TENANT_COLUMNS} FROM tenants
  WHERE (cast(:text AS text) IS NULL OR strpos(name, :text) > 0)
    AND (cast(:after AS text) IS NULL OR name > :after)
  ORDER BY name LIMIT :limit
) t
{METERED}
CROSS JOIN LATERAL (
  SELECT count(DISTINCT b.id) AS batches,
    coalesce(sum(w.completed + w.failed), 0)::bigint AS lines,
    coalesce(sum(w.input_tokens), 0)::bigint AS input_tokens,
    coalesce(sum(w.output_tokens), 0)::bigint AS output_tokens,
    coalesce(sum(w.cost) FILTER (WHERE b.currency = :currency), 0) AS cost
  FROM (
    SELECT id, fleet, spot_price, dedicated_price, currency FROM batches WHERE tenant_id = t.id
      AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
    UNION ALL
    SELECT id, fleet, spot_price, dedicated_price, currency FROM batches WHERE tenant_id = t.id
      AND status IN ('completed', 'failed', 'expired', 'cancelled')
      AND coalesce(completed_at, failed_at, expired_at, cancelled_at) > now() - interval '24 hours'
  ) b LEFT JOIN LATERAL (
    SELECT * FROM tally_costs(b.id, b.fleet, b.spot_price, b.dedicated_price) OFFSET 0) w ON true) day
ORDER BY t.name
"""  # noqa: S608
_PAGE = text(PAGE)


class TenantUsageStore:
    """Queries for tenants with their usage, as a role with access to every tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(
        self, name: str, currency: str, *, after: str | None, limit: int
    ) -> Sequence[TenantUse]:
        """Return up to `limit` tenants after `after` whose name contains `name`, sorted by name.

        Costs are those of batches with prices in `currency`.
        """
        parameters = {"text": name or None, "currency": currency, "after": after, "limit": limit}
        with begin(self._engine) as connection:
            return [_use(row) for row in connection.execute(_PAGE, parameters)]


def _use(row: Any) -> TenantUse:
    return TenantUse(
        tenant=tenant_of(row),
        requests=None if row.requests is None else float(row.requests),
        active_batches=row.active_batches,
        # Claims of cancelling batches run, but their requests are not among the open ones.
        waiting_lines=max(int(row.open_lines) - row.running, 0),
        running_lines=row.running,
        batches=row.batches,
        lines=row.lines,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cost=row.cost,
    )


def ensure_default_tenant(url: str, pepper: str, api_key: str) -> None:
    """Create the tenant `default` and this API key, unless they exist. `url` is the owner's."""
    engine = connect(url, pool_size=1)
    try:
        with engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO tenants (id, name) VALUES (:id, 'default') ON CONFLICT DO NOTHING"
                ),
                {"id": DEFAULT_TENANT},
            )
            connection.execute(
                text(
                    "INSERT INTO api_keys (hash, tenant_id, name, prefix) "
                    "VALUES (:hash, :tenant, 'default', :prefix) ON CONFLICT DO NOTHING"
                ),
                {
                    "hash": hash_key(api_key, pepper),
                    "tenant": DEFAULT_TENANT,
                    "prefix": prefix_of(api_key),
                },
            )
    finally:
        engine.dispose()
