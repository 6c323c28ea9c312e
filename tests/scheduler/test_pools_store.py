"""Pauses on the database: claims, counts and the audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from lowtide.batches.forecast import WorkloadStore
from lowtide.core.pools import DEFAULT_FLEET, OpenDeadlines, Pool
from lowtide.queue import claiming
from lowtide.scheduler import pauses
from lowtide.scheduler.pauses import PauseStore
from tests.plans import plan_nodes
from tests.worlds import done, numbers, together

if TYPE_CHECKING:
    from tests.worlds import World

BOTH = pytest.mark.parametrize("pool", list(Pool))


def pause_store(world: World) -> PauseStore:
    """Return the pause store of a world."""
    return PauseStore(world.database.engine("operator"))


def _audited(world: World) -> list[tuple[object, ...]]:
    with world.database.engine("operator").connect() as connection:
        rows = connection.execute(
            text("SELECT tenant_id, actor, action, subject FROM audit_log ORDER BY id")
        )
        return [tuple(row) for row in rows]


@BOTH
def test_paused_pool_claims_nothing_and_settles_running_requests(world: World, pool: Pool) -> None:
    batch = world.batch(10, pool=pool.value)
    lease = world.queue.open_lease(pool, "w")
    claims = world.queue.claim(lease, pool, 3)
    pause_store(world).pause(pool, "ana")
    # The worker still knows its lane: the claim itself must check for a pause.
    assert world.queue.claim(lease, pool, 3) == []
    assert world.queue.settle(lease, [done(claim) for claim in claims], []).finished == 3
    assert world.queue.claim(lease, pool, 3) == []
    assert world.queue.claim(world.queue.open_lease(pool, "new"), pool, 3) == []
    assert world.lines("queue", batch) == list(range(4, 11))
    pause_store(world).resume(pool, "ana")
    assert numbers(world.queue.claim(lease, pool, 99)) == list(range(4, 11))


def test_claim_in_paused_pool_runs_few_statements_for_any_backlog(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first worker keeps its lanes until they yield nothing.
    monkeypatch.setattr(claiming, "_MAX_LISTING_INTERVAL", 600.0)
    monkeypatch.setattr(claiming, "_LISTING_SHARE", 1_000_000)
    for due_in in range(600, 612):
        world.batch(2, due_in=due_in, pool="dedicated")
    lease = world.queue.open_lease(Pool.DEDICATED, "w")
    world.queue.claim(lease, Pool.DEDICATED, 1)
    pause_store(world).pause(Pool.DEDICATED, "ana")
    new = world.queue.open_lease(Pool.DEDICATED, "new")
    statements: list[str] = []

    def executed(*arguments: Any) -> None:
        statements.append(arguments[2])

    event.listen(world.worker, "before_cursor_execute", executed)
    try:
        assert world.queue.claim(lease, Pool.DEDICATED, 9) == []
        with_known_lanes = len(statements)
        assert world.queue.claim(new, Pool.DEDICATED, 9) == []
    finally:
        event.remove(world.worker, "before_cursor_execute", executed)
    assert (with_known_lanes, len(statements) - with_known_lanes) == (2, 1)
    pause_store(world).resume(Pool.DEDICATED, "ana")
    assert len(world.queue.claim(lease, Pool.DEDICATED, 99)) == 23


def test_other_pool_keeps_claiming(world: World) -> None:
    world.batch(4)
    world.batch(4, pool="dedicated")
    pause_store(world).pause(Pool.SPOT, "ana")
    lease = world.queue.open_lease(Pool.DEDICATED, "w")
    assert len(world.queue.claim(lease, Pool.DEDICATED, 9)) == 4


def test_paused_pool_claims_nothing_of_limited_tenant(world: World) -> None:
    world.batch(4)
    with world.database.engine("owner").begin() as connection:
        connection.execute(text("UPDATE tenants SET max_running_lines = 2"))
    try:
        pause_store(world).pause(Pool.SPOT, "ana")
        lease = world.queue.open_lease(Pool.SPOT, "w")
        assert world.queue.claim(lease, Pool.SPOT, 9) == []
    finally:
        with world.database.engine("owner").begin() as connection:
            connection.execute(text("UPDATE tenants SET max_running_lines = NULL"))


def test_pause_is_idempotent_and_audited_without_tenant(world: World) -> None:
    store = pause_store(world)
    first = store.pause(Pool.SPOT, "ana")
    assert store.pause(Pool.SPOT, "bo") == first
    assert (first.pool, first.by) == (Pool.SPOT, "ana")
    assert [standing.pause for standing in store.standings()] == [first, None]
    assert store.resume(Pool.SPOT, "bo") == first
    assert store.resume(Pool.SPOT, "bo") is None
    assert _audited(world) == [
        (None, "ana", "pool.paused", "spot"),
        (None, "bo", "pool.resumed", "spot"),
    ]


def test_concurrent_pauses_are_audited_once(world: World) -> None:
    store = pause_store(world)
    together(*[lambda: store.pause(Pool.SPOT, "ana")] * 3)
    together(*[lambda: store.resume(Pool.SPOT, "ana")] * 3)
    assert [action for _, _, action, _ in _audited(world)] == ["pool.paused", "pool.resumed"]


def test_standings_count_requests_and_live_workers(world: World) -> None:
    world.batch(9)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    world.expire_lease(world.queue.open_lease(Pool.SPOT, "gone"))
    world.queue.claim(lease, Pool.SPOT, 4)
    spot, dedicated = pause_store(world).standings()
    assert (spot.pool, spot.queued, spot.running, spot.workers) == (Pool.SPOT, 5, 4, 1)
    assert (dedicated.queued, dedicated.running, dedicated.workers) == (0, 0, 0)


def test_held_deadlines_exclude_batches_at_risk(world: World) -> None:
    assert pause_store(world).held_deadlines() == OpenDeadlines(0, None)
    world.batch(1, due_in=900)
    sooner, at_risk = world.batch(1, due_in=100), world.batch(1, due_in=5)
    world.run("UPDATE batches SET at_risk = (id = :lost)", lost=at_risk)
    deadlines = pause_store(world).held_deadlines()
    assert (deadlines.batches, deadlines.first) == (2, world.row(sooner).deadline)


def test_api_role_reads_paused_pools_but_not_who_paused_them(world: World) -> None:
    pause_store(world).pause(Pool.DEDICATED, "ana")
    assert WorkloadStore(world.api).read().of(DEFAULT_FLEET).paused == {Pool.DEDICATED}
    pause_store(world).resume(Pool.DEDICATED, "ana")
    assert WorkloadStore(world.api).read().of(DEFAULT_FLEET).paused == frozenset()
    with (
        pytest.raises(DBAPIError, match="permission denied"),
        world.api.begin() as connection,
    ):
        connection.execute(text("SELECT paused_by FROM paused_pools"))


def test_held_deadlines_query_needs_no_sequential_scan(world: World) -> None:
    with world.database.engine("worker").begin() as connection:
        connection.execute(
            text("""
                INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint,
                  completion_window, status, created_at, deadline)
                SELECT gen_random_uuid(), '00000000-0000-0000-0000-000000000000', 'u',
                  gen_random_uuid(), 'k', '/v1/embeddings', '24h', 'completed', now(), now()
                FROM generate_series(1, 10000)
            """)
        )
    with world.database.engine("owner").begin() as connection:
        connection.execute(text("ANALYZE batches"))
    nodes = plan_nodes(world.database.engine("operator"), pauses.HELD, fleet=DEFAULT_FLEET)
    scans = [node for node in nodes if node.get("Relation Name") in {"batches", "queue"}]
    assert scans
    assert all("Seq" not in node["Node Type"] for node in scans)
