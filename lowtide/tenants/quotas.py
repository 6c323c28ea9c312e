"""Quotas of tenants: how much of them is used, and the note of those that are used up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.database.connections import begin
from lowtide.tenants.store import USE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Engine


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """A tenant's quota by its name in TenantLimits, and the used share of it; 1 is all."""

    tenant: str
    quota: str
    share: float


# Tenants without quotas are not looked at further. Rows are written only when something changed.
NOTE = """
WITH used_up AS MATERIALIZED (
  SELECT t.id AS tenant_id, q.quota, q.until
  FROM tenants t CROSS JOIN LATERAL used_up_quotas(t.id) q
  WHERE coalesce(t.max_tokens_per_day, t.max_spend_per_month) IS NOT NULL
), gone AS (
  DELETE FROM exhausted_quotas e
  WHERE NOT EXISTS (SELECT FROM used_up u WHERE u.tenant_id = e.tenant_id AND u.quota = e.quota)
)
INSERT INTO exhausted_quotas AS e (tenant_id, quota, until) SELECT * FROM used_up ORDER BY 1, 2
ON CONFLICT (tenant_id, quota) DO UPDATE SET until = excluded.until WHERE e.until <> excluded.until
RETURNING tenant_id
"""
SHARES = f"""
SELECT t.name, q.quota, q.used / q.most AS share
FROM tenants t CROSS JOIN LATERAL quota_use(t.id) u
CROSS JOIN LATERAL ({USE.replace(":tenant", "t.id")}) open
CROSS JOIN LATERAL (VALUES
  ('enqueued_tokens', t.max_enqueued_tokens, open.tokens::double precision),
  ('tokens_per_day', t.max_tokens_per_day, u.tokens::double precision),
  ('spend_per_month', t.max_spend_per_month, u.spend)) q (quota, most, used)
WHERE coalesce(t.max_enqueued_tokens, t.max_tokens_per_day, t.max_spend_per_month) IS NOT NULL
  AND q.most IS NOT NULL
ORDER BY t.name, q.quota
"""  # noqa: S608
_NOTE, _SHARES = text(NOTE), text(SHARES)


class QuotaStore:
    """The quotas of all tenants, as the scheduler's role."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def note_used_up(self) -> int:
        """Note the quotas that are used up now, and no others; return how many are new.

        Idempotent; of concurrent calls, the last one prevails.
        """
        with begin(self._engine) as connection:
            return len(connection.execute(_NOTE).all())


def read_shares(connection: Connection) -> Sequence[QuotaUse]:
    """Return how much of each quota is used, as a role with access to every tenant."""
    return [QuotaUse(row.name, row.quota, row.share) for row in connection.execute(_SHARES)]
