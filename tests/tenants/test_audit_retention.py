"""How long the audit log is kept, and what the worker's role cannot hide."""

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
# An action that many days ago, in this order.
AUDITED = """
INSERT INTO audit_log (actor, action, subject, at)
SELECT 'ana', 'batch.create', 'b', now() - make_interval(days => day)
FROM unnest(cast(:days AS integer[])) day
"""
AGES = "SELECT cast(extract(day FROM now() - at) AS integer) FROM audit_log ORDER BY id"


def _note(world: World, *days: int) -> None:
    with world.database.engine("operator").begin() as connection:
        connection.execute(text(AUDITED), {"days": list(days)})


def _ages(world: World) -> list[int]:
    with world.database.engine("operator").begin() as connection:
        return list(connection.execute(text(AGES)).scalars())


def test_what_is_too_old_goes_a_few_at_a_time(world: World) -> None:
    _note(world, 420, 410, 401, 399, 0)
    dropped = [world.ticks.trim_audit(retention=400 * DAY, limit=2) for _ in range(3)]
    assert dropped == [2, 1, 0]
    assert _ages(world) == [399, 0]


def test_the_worker_cannot_hide_what_was_done_this_month(world: World) -> None:
    _note(world, 40, 20, 0)
    assert world.ticks.trim_audit(retention=0, limit=10) == 1
    assert _ages(world) == [20, 0]


def test_the_worker_does_not_read_who_did_what(world: World) -> None:
    with pytest.raises(DBAPIError, match="permission denied"):
        world.rows("SELECT actor FROM audit_log")


def test_the_plan_reads_the_oldest_alone(world: World) -> None:
    _note(world, *[1] * 20_000)
    with world.database.engine("owner").begin() as connection:
        connection.execute(text("ANALYZE audit_log"))
    nodes = plan_nodes(world.worker, audit.TRIM, kept=400 * DAY, limit=1000)
    assert {node["Index Name"] for node in nodes if "Index Name" in node} == {"audit_log_pkey"}
    assert "Seq Scan" not in {node["Node Type"] for node in nodes}
