"""The audit log: written in the transaction of each change, read by operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from lowtide.database.connections import begin

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Engine

    from lowtide.core.ids import TenantId


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An action in the log; `tenant` is None for actions on the whole installation."""

    id: int
    at: datetime
    tenant: str | None
    actor: str
    action: str
    subject: str


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """A filter of entries; None matches all."""

    actor: str | None = None
    action: str | None = None
    tenant: TenantId | None = None


# Ids follow time except for concurrent transactions, so that `at` needs no index.
TRIM = """
DELETE FROM audit_log WHERE id = ANY(ARRAY(
  SELECT id FROM (SELECT id, at FROM audit_log ORDER BY id LIMIT :limit) oldest
  WHERE at < now() - make_interval(secs => :kept)))
"""
_TRIM = text(TRIM)
_NOTE = text("""
INSERT INTO audit_log (tenant_id, actor, action, subject)
SELECT cast(:tenant AS uuid), :actor, :action, unnest(cast(:subjects AS text[]))
""")


def note(
    connection: Connection,
    tenant: TenantId | None,
    actor: str,
    action: str,
    subjects: Sequence[str],
) -> None:
    """Record an action in the caller's transaction, once per subject.

    `tenant` is None for an action on the whole installation.
    """
    connection.execute(
        _NOTE, {"tenant": tenant, "actor": actor, "action": action, "subjects": list(subjects)}
    )


def trim(connection: Connection, *, retention: float, limit: int) -> int:
    """Delete up to `limit` actions older than `retention` seconds; return their number."""
    return connection.execute(_TRIM, {"kept": retention, "limit": limit}).rowcount


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
# A transaction ends within a minute, and may take its ids at its end. So the id of an entry from two
# minutes ago is a minute old at least, and those below it are committed: a page ends before the
# first younger entry.
SETTLED_SECONDS: Final = 120.0
EXPORT = """
WITH page AS (
  SELECT * FROM audit_log
  WHERE id > :after AND (cast(:since AS timestamptz) IS NULL OR at >= :since)
  ORDER BY id LIMIT :limit
), unsettled AS (
  SELECT min(id) AS id FROM page WHERE at >= now() - make_interval(secs => :settled)
)
SELECT a.id, a.at, t.name AS tenant, a.actor, a.action, a.subject
FROM unsettled u JOIN page a ON a.id < u.id OR u.id IS NULL LEFT JOIN tenants t ON t.id = a.tenant_id
ORDER BY a.id
"""
_EXPORT = text(EXPORT)
_EXPORT_PAGE: Final = 1000
# A loose index scan: jumps from one action to the next, as there are few in a long log.
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


class AuditLog:
    """Queries of the audit log, as a role with access to every tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(
        self, audit_filter: AuditFilter, *, after: int | None, limit: int
    ) -> Sequence[AuditEntry]:
        """Return up to `limit` entries after the id `after`, newest first."""
        parameters = {
            "actor": audit_filter.actor,
            "action": audit_filter.action,
            "tenant": audit_filter.tenant,
            "after": after,
            "limit": limit,
        }
        with begin(self._engine) as connection:
            return [AuditEntry(*row) for row in connection.execute(_PAGE, parameters)]

    def export(
        self, *, since: datetime | None = None, after: int = 0, settled: float = SETTLED_SECONDS
    ) -> Iterator[AuditEntry]:
        """Yield the entries since a time and after an id, oldest first.

        It ends before the first entry of the last `settled` seconds: the next export, after the
        last id, misses none.
        """
        while True:
            parameters = {
                "since": since, "after": after, "settled": settled, "limit": _EXPORT_PAGE,
            }  # fmt: skip
            with begin(self._engine) as connection:
                entries = [AuditEntry(*row) for row in connection.execute(_EXPORT, parameters)]
            yield from entries
            if len(entries) < _EXPORT_PAGE:
                return
            after = entries[-1].id

    def actions(self) -> Sequence[str]:
        """Return the distinct actions, sorted by name."""
        with begin(self._engine) as connection:
            return list(connection.execute(_ACTIONS).scalars())
