"""Retention of the audit log, and the limits of the worker's role."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from lowtide.tenants import audit
from tests.plans import plan_nodes

if TYPE_CHECKING:
    from tests.worlds import World

DAY = 86_400.0
# One entry for each number of days ago, in this order.
AUDITED = """
INSERT INTO audit_log (actor, action, subject, at)
SELECT 'ana', 'batch.create', 'b', now() - make_interval(days => day)
FROM unnest(cast(:days AS integer[])) day
"""
AGES = "SELECT cast(extract(day FROM now() - at) AS integer) FROM audit_log ORDER BY id"


def _add_entries(world: World, *days: int) -> None:
    with world.database.engine("operator").begin() as connection:
        connection.execute(text(AUDITED), {"days": list(days)})


def _ages(world: World) -> list[int]:
    with world.database.engine("operator").begin() as connection:
        return list(connection.execute(text(AGES)).scalars())


def test_old_entries_are_trimmed_in_small_steps(world: World) -> None:
    _add_entries(world, 420, 410, 401, 399, 0)
    dropped = [world.ticks.trim_audit(retention=400 * DAY, limit=2) for _ in range(3)]
    assert dropped == [2, 1, 0]
    assert _ages(world) == [399, 0]


def test_worker_cannot_trim_recent_entries(world: World) -> None:
    _add_entries(world, 40, 20, 0)
    assert world.ticks.trim_audit(retention=0, limit=10) == 1
    assert _ages(world) == [20, 0]


def test_worker_cannot_read_actors(world: World) -> None:
    with pytest.raises(DBAPIError, match="permission denied"):
        world.rows("SELECT actor FROM audit_log")


def test_trim_reads_entries_by_primary_key(world: World) -> None:
    _add_entries(world, *[1] * 20_000)
    with world.database.engine("owner").begin() as connection:
        connection.execute(text("ANALYZE audit_log"))
    nodes = plan_nodes(world.worker, audit.TRIM, kept=400 * DAY, limit=1000)
    assert {node["Index Name"] for node in nodes if "Index Name" in node} == {"audit_log_pkey"}
    assert "Seq Scan" not in {node["Node Type"] for node in nodes}
