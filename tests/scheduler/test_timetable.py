"""Plans on the database: moves between pools, their records, and concurrent ticks."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, text

from lowtide.core.ids import DEFAULT_TENANT, BatchId
from lowtide.core.pools import DEFAULT_FLEET, Depth, FleetPool, Pool
from lowtide.engines.breaker import BreakerState
from lowtide.planning.escalation import Move, OpenBatch, Plan
from lowtide.planning.reasons import Bound
from lowtide.queue.claims import Returned
from lowtide.queue.rates import ConcurrencyStore
from tests.e2e.waiting import until
from tests.worlds import World, done, numbers, together

if TYPE_CHECKING:
    from lowtide.planning.state import PlanResult, SchedulerState


def _pools(world: World, batch: BatchId) -> dict[int, tuple[str, bool]]:
    rows = world.rows("SELECT line, pool, escalated FROM queue WHERE batch_id = :b", b=batch)
    return {row.line: (row.pool, row.escalated) for row in rows}


def _scheduler_state(world: World) -> SchedulerState:
    states: list[SchedulerState] = []

    def decide(state: SchedulerState) -> Plan:
        states.append(state)
        return Plan()

    world.timetable.replan(decide)
    return states[0]


def test_escalation_moves_given_number_of_last_requests(world: World) -> None:
    batch, other = world.batch(5), world.batch(5)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    world.queue.claim(lease, Pool.SPOT, 1)
    assert world.escalate(batch, 2) == 2
    assert _pools(world, batch) == {
        2: ("spot", False),
        3: ("spot", False),
        4: ("dedicated", True),
        5: ("dedicated", True),
    }
    assert set(_pools(world, other).values()) == {("spot", False)}
    assert world.row(batch).escalated == 2
    (recorded,) = world.rows("SELECT lines, kind, pool FROM request_events")
    assert tuple(recorded) == (2, "escalated", "dedicated")
    assert world.escalate(batch, 99) == 2
    assert world.row(batch).escalated == 4
    assert world.escalate(batch, 99) == world.escalate(BatchId(uuid.uuid4()), 1) == 0
    dedicated = world.queue.open_lease(Pool.DEDICATED, "d")
    claims = world.queue.claim(dedicated, Pool.DEDICATED, 9)
    assert sorted(numbers(claims)) == [2, 3, 4, 5]
    world.queue.settle(dedicated, [done(claim) for claim in claims], [])
    assert world.row(batch).on_dedicated == 4
    assert world.value("SELECT bool_and(escalated) FROM results")


def test_delayed_requests_escalate_last(world: World) -> None:
    batch = world.batch(3)
    world.split_runs()
    world.run("UPDATE queued_runs SET available_at = now() + interval '1 h' WHERE line = 3")
    assert world.escalate(batch, 2) == 2
    assert [line for line, (pool, _) in _pools(world, batch).items() if pool == "spot"] == [3]
    assert world.escalate(batch, 2) == 1
    assert world.value("SELECT available_at > now() FROM queue WHERE line = 3")


def test_worker_claims_requests_escalated_before_its_mark(world: World) -> None:
    batch = world.batch(8)
    world.escalate(batch, 4)
    dedicated = world.queue.open_lease(Pool.DEDICATED, "d")
    first = world.queue.claim(dedicated, Pool.DEDICATED, 4)
    world.escalate(batch, 2)
    second = world.queue.claim(dedicated, Pool.DEDICATED, 2)
    spot = world.queue.open_lease(Pool.SPOT, "w")
    world.queue.claim(spot, Pool.SPOT, 1)
    assert (sorted(numbers(first)), sorted(numbers(second))) == ([5, 6, 7, 8], [3, 4])


def test_concurrent_claim_and_escalation_take_different_requests(world: World) -> None:
    batch = world.batch(40)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims, _ = together(
        lambda: world.queue.claim(lease, Pool.SPOT, 20), lambda: world.escalate(batch, 20)
    )
    waiting = _pools(world, batch)
    assert len(waiting) + len(claims) == 40
    assert set(waiting).isdisjoint(numbers(claims))
    dedicated = sum(pool == "dedicated" for pool, _ in waiting.values())
    assert world.row(batch).escalated == dedicated


def test_waiting_requests_return_to_spot_and_claimed_ones_stay(world: World) -> None:
    batch = world.batch(6)
    world.escalate(batch, 5)
    dedicated = world.queue.open_lease(Pool.DEDICATED, "d")
    (claim,) = world.queue.claim(dedicated, Pool.DEDICATED, 1)
    assert world.apply(Plan(returns=(Move(batch, 2),))).returned == 2
    assert (
        sorted(pool for pool, _ in _pools(world, batch).values())
        == ["dedicated"] * 2 + ["spot"] * 3
    )
    assert world.row(batch).escalated == 3
    assert world.apply(Plan(returns=(Move(batch, 99),))).returned == 2
    assert set(_pools(world, batch).values()) == {("spot", False)}
    assert world.row(batch).escalated == 1
    events = world.rows("SELECT lines, pool, detail FROM request_events ORDER BY id")
    assert [(row.lines, row.pool) for row in events] == [(5, "dedicated"), (2, "spot"), (2, "spot")]
    spot = world.queue.open_lease(Pool.SPOT, "w")
    assert len(world.queue.claim(spot, Pool.SPOT, 9)) == 5
    assert world.queue.settle(dedicated, [done(claim)], []).finished == 1


def test_statement_count_of_moves_is_independent_of_batch_count(world: World) -> None:
    def move_requests(batches: int) -> tuple[PlanResult, int]:
        """Move requests of new batches both ways; return the sums and the statements."""
        running = [world.batch(4) for _ in range(batches)]
        world.queue.claim(world.queue.open_lease(Pool.SPOT, "worker"), Pool.SPOT, 99)
        spot, dedicated = ([world.batch(4) for _ in range(batches)] for _ in range(2))
        world.split_runs()
        world.run(
            "UPDATE queued_runs SET pool = 'dedicated', escalated = true WHERE batch_id = ANY(:ids)",
            ids=dedicated,
        )
        world.run(
            "UPDATE queued_runs SET available_at = now() + interval '1 h' WHERE line > 2 AND "
            "batch_id = ANY(:ids)",
            ids=spot,
        )
        statements: list[str] = []
        listen = (
            world.worker,
            "before_cursor_execute",
            lambda *arguments: statements.append(arguments[2]),
        )
        event.listen(*listen)
        result = world.apply(
            Plan(
                escalations=tuple(Move(batch, 3) for batch in spot),
                returns=tuple(Move(batch, 2) for batch in dedicated),
                revocations=tuple(Move(batch, 1) for batch in running),
            )
        )
        event.remove(*listen)
        for batch in spot:  # delayed requests are the last to move
            assert [line for line, (pool, _) in _pools(world, batch).items() if pool == "spot"] == [
                3
            ]
            assert world.row(batch).escalated == 3
        return result, len(statements)

    one, statements = move_requests(1)
    assert (one.escalated, one.returned, one.revoked) == (3, 2, 1)
    three, statements_of_three = move_requests(3)
    assert (three.escalated, three.returned, three.revoked) == (9, 6, 3)
    assert statements_of_three == statements


def test_revoked_requests_are_settled_only_by_dedicated(world: World) -> None:
    batch = world.batch(5)
    world.split_runs()
    hoarder = world.queue.open_lease(Pool.SPOT, "hoarder")
    claims = world.queue.claim(hoarder, Pool.SPOT, 5)
    world.run(
        "UPDATE claimed_runs SET attempts = 2, lost_leases = 1, claimed_at = now() WHERE line = 4"
    )
    replanned = world.apply(Plan(revocations=(Move(batch, 2),)))
    assert (replanned.revoked, replanned.escalated) == (2, 0)
    revoked = world.rows("SELECT * FROM queue ORDER BY line")
    # A revocation counts as an interruption, not as an attempt or a lost lease.
    assert [(row.pool, row.escalated, row.interruptions) for row in revoked] == [
        ("dedicated", True, 1)
    ] * 2
    (of_four,) = [row for row in revoked if row.line == 4]
    assert (of_four.attempts, of_four.lost_leases) == (2, 1)
    row = world.row(batch)
    assert (row.interrupted, row.retried, row.escalated) == (2, 0, 2)
    recorded = world.rows("SELECT kind, pool, reason, lease_id FROM request_events")
    assert {tuple(event) for event in recorded} == {("revoked", "spot", "deadline_bound", hoarder)}
    # The spot worker's results for revoked requests are rejected, its others accepted.
    revoked_lines = {row.line for row in revoked}
    dedicated = world.queue.open_lease(Pool.DEDICATED, "d")
    again = world.queue.claim(dedicated, Pool.DEDICATED, 9)
    assert set(numbers(again)) == revoked_lines
    assert world.queue.settle(hoarder, [done(claim) for claim in claims], []).finished == 3
    assert world.queue.settle(dedicated, [done(claim) for claim in again], []).finished == 2
    assert world.lines("results", batch) == [1, 2, 3, 4, 5]
    assert world.drained(batch) == 1


def test_concurrent_settlement_and_revocation_take_different_requests(world: World) -> None:
    for _ in range(5):
        batch = world.batch(10)
        lease = world.queue.open_lease(Pool.SPOT, "w")
        claims = world.queue.claim(lease, Pool.SPOT, 10)
        settled, replanned = together(
            partial(world.queue.settle, lease, [done(claim) for claim in claims], []),
            partial(world.apply, Plan(revocations=(Move(batch, 10),))),
        )
        assert settled.finished + replanned.revoked == 10
        assert len(_pools(world, batch)) == replanned.revoked
        world.cancel(batch)


def test_revoking_last_requests_drains_cancelled_batch(world: World) -> None:
    batch = world.batch(2)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    world.queue.claim(lease, Pool.SPOT, 2)
    world.cancel(batch)
    assert world.apply(Plan(revocations=(Move(batch, 2),))).revoked == 2
    assert _pools(world, batch) == {}
    assert world.drained(batch) == 1


def test_at_risk_follows_latest_plan(world: World) -> None:
    first, second, completed = (world.batch(1) for _ in range(3))
    world.run("UPDATE batches SET status = 'completed' WHERE id = :id", id=completed)
    for at_risk, expected in (
        ({first, completed}, [True, False, False]),
        ({second}, [False, True, False]),
        (set(), [False, False, False]),
    ):
        world.apply(Plan(at_risk=frozenset(at_risk)))
        assert [world.row(batch).at_risk for batch in (first, second, completed)] == expected


def test_scheduler_state_counts_requests_by_pool_and_state(world: World) -> None:
    assert _scheduler_state(world).batches == ()
    batch = world.batch(10)
    new = world.new_batch()
    world.cancel(world.batch(2))
    world.batch(2, due_in=-1)
    world.escalate(batch, 4)
    dedicated, spot = (world.queue.open_lease(pool, "w") for pool in (Pool.DEDICATED, Pool.SPOT))
    world.queue.claim(dedicated, Pool.DEDICATED, 1)
    world.sweep()
    claims = world.queue.claim(spot, Pool.SPOT, 3)
    world.queue.settle(
        spot, [done(claims[0])], [Returned(batch, claims[1].line, "again", failed=True)]
    )
    state = _scheduler_state(world)
    assert abs(state.now - datetime.now(UTC)) < timedelta(seconds=30)
    by_id = {each.id: each for each in state.batches}
    of_tenant = partial(OpenBatch, tenant=DEFAULT_TENANT)
    assert by_id[batch] == of_tenant(batch, by_id[batch].deadline, 4, 1, 3, 1)
    # A batch that is not split yet counts with the one line of its file.
    assert by_id[new] == of_tenant(new, by_id[new].deadline, 0, unsplit=1)
    assert set(by_id) == {batch, new}
    assert (state.present, state.models) == (1, frozenset({"m"}))
    assert (state.ended, state.retried) == (1, 1)
    assert state.depths() == {Pool.SPOT: Depth(4, 1), Pool.DEDICATED: Depth(3, 1)}


def test_scheduler_state_has_what_the_search_of_dedicated_found(world: World) -> None:
    assert _scheduler_state(world).concurrency is None
    for pool, found in ((Pool.SPOT, 500), (Pool.DEDICATED, 80)):
        ConcurrencyStore(world.worker, FleetPool(DEFAULT_FLEET, pool), "").record(found)
    assert _scheduler_state(world).concurrency == 80


def test_replica_keeps_time_when_it_was_first_wanted(world: World) -> None:
    assert _scheduler_state(world).wished == ()
    world.apply(Plan(replicas=1))
    (first,) = _scheduler_state(world).wished
    world.run("UPDATE wanted_replicas SET since = '{2026-01-01 00:00+00}', replicas = 1")
    world.apply(Plan(replicas=2))
    long, short = _scheduler_state(world).wished
    assert long == datetime(2026, 1, 1, tzinfo=UTC)
    assert short >= first
    world.apply(Plan())
    assert _scheduler_state(world).wished == ()
    assert world.value("SELECT replicas FROM wanted_replicas WHERE pool = 'dedicated'") == 0


def test_concurrent_tick_plans_nothing(world: World) -> None:
    batch = world.batch(10)
    deciding, decided = threading.Event(), threading.Event()

    def slowly(_: SchedulerState) -> Plan:
        deciding.set()
        assert decided.wait(20)
        return Plan(escalations=(Move(batch, 3),))

    def beside() -> object:
        assert deciding.wait(20)
        try:
            return world.timetable.replan(lambda _: Plan(escalations=(Move(batch, 3),)))
        finally:
            decided.set()

    first, second = together(lambda: world.timetable.replan(slowly), beside)
    assert (first[DEFAULT_FLEET].escalated, second) == (3, None)
    assert world.row(batch).escalated == 3


def test_ticks_that_mark_at_once_record_one_event(world: World) -> None:
    batch = world.batch(10)
    plans = [
        Plan(at_risk=frozenset({batch}), bounds={batch: Bound(10, seconds, 1, 0.1, 5)})
        for seconds in (60.0, 59.0)
    ]
    with world.worker.begin() as connection:
        connection.execute(
            text("SELECT FROM batches WHERE id = :batch FOR UPDATE"), {"batch": batch}
        )
        # Both read the unmarked batch, and wait for its lock.
        with ThreadPoolExecutor() as threads:
            marks = [threads.submit(world.timetable._mark_at_risk, [plan]) for plan in plans]
            until(
                lambda: (
                    world.value(
                        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
                    )
                    == 2
                ),
                "both wait",
            )
            connection.rollback()
            for mark in marks:
                mark.result(20)
    assert world.value("SELECT count(*) FROM request_events WHERE kind = 'at_risk'") == 1
    assert world.row(batch).risk_bound["open"] == 10


def test_failed_plan_changes_nothing(world: World) -> None:
    world.batch(3)
    before = world.contents()

    def fail(_: SchedulerState) -> Plan:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        world.timetable.replan(fail)
    assert world.contents() == before
    assert world.timetable.replan(lambda _: Plan()) is not None


def _report_engine(world: World, pool: Pool, state: BreakerState) -> None:
    world.queue.report_engine(world.queue.open_lease(pool, "w"), state, "why")


def test_scheduler_state_counts_workers_without_engine(world: World) -> None:
    _report_engine(world, Pool.DEDICATED, BreakerState.CLOSED)
    _report_engine(world, Pool.DEDICATED, BreakerState.STARTING)
    _report_engine(world, Pool.DEDICATED, BreakerState.OPEN)
    _report_engine(world, Pool.SPOT, BreakerState.PROBING)
    _report_engine(world, Pool.SPOT, BreakerState.OPEN)
    state = _scheduler_state(world)
    assert (state.present, state.away) == (1, 1)
    assert state.stranded == {Pool.SPOT: 2}
    world.run("DELETE FROM workers WHERE engine_state IN ('closed', 'starting')")
    state = _scheduler_state(world)
    assert (state.present, state.away) == (0, 1)
    assert state.idle == {Pool.SPOT, Pool.DEDICATED}
