"""The audit log: who did what, written in the transaction that does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from lowtide.domain.ids import TenantId

# In order of id, which is that of time but for transactions at once: no index of times is needed.
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
    """Record an action in the caller's transaction, once for each subject.

    It belongs to the whole installation when there is no tenant.
    """
    connection.execute(
        _NOTE, {"tenant": tenant, "actor": actor, "action": action, "subjects": list(subjects)}
    )


def trim(connection: Connection, *, kept: float, limit: int) -> int:
    """Drop up to `limit` actions that are older than `kept` seconds; return how many."""
    return connection.execute(_TRIM, {"kept": kept, "limit": limit}).rowcount
