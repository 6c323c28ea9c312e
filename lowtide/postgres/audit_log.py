"""Reading the audit log, as the operator's role sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from lowtide.domain.audit import AuditEntry
from lowtide.postgres.connections import begin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

    from lowtide.domain.audit import AuditFilter

PAGE = """
SELECT a.id, a.at, t.name AS tenant, a.actor, a.action, a.subject FROM (
  SELECT * FROM audit_log
  WHERE (cast(:actor AS text) IS NULL OR actor = :actor)
    AND (cast(:action AS text) IS NULL OR action = :action)
    AND (cast(:tenant AS uuid) IS NULL OR tenant_id = :tenant)
    AND (cast(:after AS bigint) IS NULL OR id < :after)
  ORDER BY id DESC LIMIT :limit
) a LEFT JOIN tenants t ON t.id = a.tenant_id
ORDER BY a.id DESC
"""
_PAGE = text(PAGE)
# From one action to the next in the index: there are few, however long the log.
ACTIONS = """
WITH RECURSIVE found AS (
  (SELECT action FROM audit_log ORDER BY action LIMIT 1)
  UNION ALL
  SELECT (SELECT a.action FROM audit_log a WHERE a.action > found.action ORDER BY a.action LIMIT 1)
  FROM found WHERE found.action IS NOT NULL
)
SELECT action FROM found WHERE action IS NOT NULL
"""
_ACTIONS = text(ACTIONS)


class PostgresAuditLog:
    """Port AuditLog, for a role that sees every tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(self, wanted: AuditFilter, *, after: int | None, limit: int) -> Sequence[AuditEntry]:
        """Return up to `limit` entries behind `after`, newest first."""
        parameters = {
            "actor": wanted.actor,
            "action": wanted.action,
            "tenant": wanted.tenant,
            "after": after,
            "limit": limit,
        }
        with begin(self._engine) as connection:
            return [AuditEntry(*row) for row in connection.execute(_PAGE, parameters)]

    def actions(self) -> Sequence[str]:
        """Return every action there is, by name."""
        with begin(self._engine) as connection:
            return list(connection.execute(_ACTIONS).scalars())
