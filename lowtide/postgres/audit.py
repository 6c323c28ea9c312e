"""The audit log: who did what, written in the transaction that does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from lowtide.domain.ids import TenantId

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
