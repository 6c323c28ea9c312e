"""Each constructed situation is named as the limiting factor, from a real database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from lowtide.batches.workload import FleetCapacity
from lowtide.core.ids import DEFAULT_TENANT, BatchId
from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.explain import store
from lowtide.explain.model import Factor
from lowtide.explain.service import Explainer
from lowtide.explain.store import FactStore
from lowtide.explain.words import words
from lowtide.planning.demand import Capacity, PoolScale
from lowtide.planning.state import decide
from tests.loads import tenant_with
from tests.plans import plan_nodes
from tests.worlds import World, done

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lowtide.explain.model import Explanation

CAPACITY = Capacity(rate=2.0, replicas=2, cold_start=60.0, margin=10.0, tick=10.0, in_flight=4)
FLEET = FleetCapacity(CAPACITY, PoolScale(5, 4), 10.0)
HOUR = 3600


@dataclass(frozen=True)
class Situation:
    """A batch, and the factor that limits it."""

    factor: Factor
    build: Callable[[World], BatchId]
    contains: str


def _started(world: World, batch: BatchId, seconds: float = HOUR) -> BatchId:
    """Let the batch have been split `seconds` ago."""
    world.run(
        "UPDATE batches SET in_progress_at = now() - make_interval(secs => :seconds) WHERE id = :batch",
        seconds=seconds,
        batch=batch,
    )
    return batch


def _old(
    world: World, lines: int = 200, *, due_in: float = 86_400.0, pool: str = "spot"
) -> BatchId:
    return _started(world, world.batch(lines, due_in=due_in, pool=pool))


def _worker(world: World, running: int, pool: Pool = Pool.SPOT, settled: int = 0) -> None:
    """Let a worker settle some requests, and run others."""
    lease = world.queue.open_lease(pool, "w")
    while settled > 0:
        claims = world.queue.claim(lease, pool, settled)
        world.queue.settle(lease, [done(claim) for claim in claims], [])
        settled -= len(claims)
    world.run("UPDATE tallies SET running_seconds = 2 * (completed + failed)")
    if running:
        world.queue.claim(lease, pool, running)


def _engine_state(world: World, state: str) -> None:
    world.run("UPDATE workers SET engine_state = :state", state=state)


def _paused(world: World) -> BatchId:
    batch = _old(world)
    _worker(world, 0)
    with world.database.engine("operator").begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO paused_pools (pool, paused_by) VALUES ('spot', 'me')"
        )
    return batch


def _tenant_limit(world: World) -> BatchId:
    with world.database.engine("operator").begin() as connection:
        connection.exec_driver_sql(
            "UPDATE tenants SET max_running_lines = 3 WHERE name = 'default'"
        )
    batch = _old(world)
    _worker(world, 20, settled=0)
    return batch


def _engine_away(world: World) -> BatchId:
    batch = _old(world)
    _worker(world, 0)
    _engine_state(world, "open")
    return batch


def _engine_starts(world: World) -> BatchId:
    batch = _old(world)
    _worker(world, 0)
    _engine_state(world, "starting")
    return batch


def _new(world: World) -> BatchId:
    return _started(world, world.batch(200), 5)


def _spot_gone(world: World) -> BatchId:
    batch = _old(world)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, 10)
    world.queue.settle(lease, [done(claim) for claim in claims], [])
    world.queue.close_lease(lease)
    return batch


def _deadline_bound(world: World) -> BatchId:
    batch = _old(world, 2000, due_in=200.0)
    _worker(world, 4, settled=4)
    assert world.timetable.replan(lambda state: decide(state, CAPACITY)) is not None
    return batch


def _queue_ahead(world: World) -> BatchId:
    other = world.tenant("other")
    world.batch(2000, tenant=other, due_in=600.0)
    batch = _old(world, 50)
    _worker(world, 4)
    return batch


def _own_queue_ahead(world: World) -> BatchId:
    world.batch(2000, due_in=50_000.0)
    batch = _old(world, 50)
    _worker(world, 4)
    return batch


def _retries(world: World) -> BatchId:
    batch = _old(world)
    _worker(world, 4, settled=40)
    world.run("UPDATE tallies SET retried = 60")
    return batch


def _delayed(world: World) -> BatchId:
    batch = _old(world)
    _worker(world, 0, settled=20)
    world.run("UPDATE queued_runs SET available_at = now() + interval '1 min'")
    return batch


def _interruptions(world: World) -> BatchId:
    batch = _old(world)
    _worker(world, 4, settled=40)
    world.run("UPDATE tallies SET interrupted = 50")
    return batch


def _pool_bound(world: World) -> BatchId:
    batch = _old(world)
    for _ in range(4):
        _worker(world, 4, settled=4)
    return batch


def _engine_speed(world: World) -> BatchId:
    batch = _old(world, 20)
    _worker(world, 4, settled=16)
    return batch


def _validating(world: World) -> BatchId:
    return world.new_batch()


def _event_lost(world: World) -> BatchId:
    batch = world.new_batch()
    world.run("UPDATE batches SET created_at = now() - interval '5 min'")
    return batch


def _scheduler_late(world: World) -> BatchId:
    batch = _old(world, pool="dedicated")
    world.run("UPDATE batches SET start_pool = 'dedicated'")
    world.run(
        "INSERT INTO wanted_replicas (pool, replicas, since, at) "
        "VALUES ('dedicated', 0, '{}', now() - interval '10 min')"
    )
    return batch


def _finalizing(world: World) -> BatchId:
    batch = _old(world, 5)
    _worker(world, 0, settled=5)
    return batch


SITUATIONS = {
    "tenant limit": Situation(Factor.TENANT_LIMIT, _tenant_limit, "limit of 3 running requests"),
    "pool paused": Situation(Factor.POOL_PAUSED, _paused, "The spot pool is paused; 200"),
    "engine away": Situation(Factor.ENGINE_AWAY, _engine_away, "1 spot worker does not respond"),
    "engine starting": Situation(Factor.COLD_START, _engine_starts, "spot workers are starting"),
    "cold start": Situation(Factor.COLD_START, _new, "spot workers are starting"),
    "spot gone": Situation(Factor.NO_WORKERS, _spot_gone, "No spot worker is running"),
    "deadline bound": Situation(Factor.DEADLINE_BOUND, _deadline_bound, "2 dedicated workers"),
    "queue ahead": Situation(Factor.QUEUE_AHEAD, _queue_ahead, "of other tenants"),
    "own queue ahead": Situation(Factor.QUEUE_AHEAD, _own_queue_ahead, "of its own tenant"),
    "retries": Situation(Factor.RETRIES, _retries, "60 of 100 attempts failed"),
    "delayed": Situation(Factor.RETRIES, _delayed, "180 requests wait for the next attempt"),
    "interruptions": Situation(
        Factor.INTERRUPTIONS, _interruptions, "50 interruptions: these requests ran again"
    ),
    "pool bound": Situation(Factor.POOL_BOUND, _pool_bound, "4 spot workers are busy, the maximum"),
    "engine speed": Situation(Factor.ENGINE_SPEED, _engine_speed, "4 requests run, at 2 s each"),
    "validating": Situation(Factor.VALIDATING, _validating, "being validated"),
    "event lost": Situation(Factor.AWAITING_EVENTS, _event_lost, "has been waiting for 5 min"),
    "scheduler late": Situation(Factor.SCHEDULER_LATE, _scheduler_late, "not planned for 10 min"),
    "finalizing": Situation(Factor.FINALIZING, _finalizing, "output files"),
}


@pytest.fixture(autouse=True)
def _no_limit(world: World) -> Iterator[None]:
    """Take the limit from the tenant after each test: the tenant stays."""
    yield
    with world.database.engine("operator").begin() as connection:
        connection.exec_driver_sql("UPDATE tenants SET max_running_lines = NULL")


@pytest.mark.parametrize("name", SITUATIONS)
def test_constructed_factor_is_named(world: World, name: str) -> None:
    situation = SITUATIONS[name]
    batch = situation.build(world)
    limiting = _explained(world, batch).limiting
    assert limiting.factor is situation.factor
    assert situation.contains in words(limiting.factor, limiting.numbers)
    operator = Explainer(FactStore(world.database.engine("operator"), {DEFAULT_FLEET: FLEET}))
    assert operator.explain(None, batch).limiting.factor is situation.factor


def _claims_of_others(world: World) -> None:
    """Let another tenant have enough requests and batches that no plan reads all of them."""
    other = tenant_with(world, "other")
    batch = world.batch(1000, tenant=other)
    world.split_runs()
    world.run(
        """INSERT INTO batches (id, tenant_id, user_id, input_file_id, input_key, endpoint,
             completion_window, status, created_at, deadline)
           SELECT gen_random_uuid(), :tenant, 'u', gen_random_uuid(), 'k', '/v1/embeddings', '24h',
             'completed', now(), now() FROM generate_series(1, 2000)""",
        tenant=other,
    )
    world.run(
        """INSERT INTO claimed_runs (batch_id, tenant_id, lease_id, deadline, queued_at, claimed_at,
             line, attempts, interruptions, lost_leases, escalated, pool, lines)
           SELECT batch_id, tenant_id, batch_id, now(), now(), now(), line, 1, 0, 0, false, 'spot',
             int4multirange(int4range(line, line + 1)) FROM requests WHERE batch_id = :batch""",
        batch=batch,
    )
    with world.database.engine("owner").begin() as connection:
        connection.exec_driver_sql("ANALYZE claimed_runs, queued_runs, batches")


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (store.EARLIER, "batches_completed"),
        (store.STARTS, "results_pkey"),
        (store.MARKS, "request_events_notes"),
        (store.COUNTS, "claimed_runs_of_lane"),
    ],
    ids=["earlier", "starts", "marks", "counts"],
)
def test_facts_are_read_by_index(world: World, statement: str, index: str) -> None:
    parameters = {
        "tenant": DEFAULT_TENANT, "batch": _old(world), "user": "u", "endpoint": "/v1/embeddings",
        "model": "m", "lines": store.sample_of(200),
    }  # fmt: skip
    bound = {name: value for name, value in parameters.items() if f":{name}" in statement}
    _claims_of_others(world)
    nodes = plan_nodes(world.database.engine("operator"), statement, **bound)
    assert index in {node.get("Index Name") for node in nodes}
    large = {"requests", "results", "queued_runs", "claimed_runs", "batches", "request_events"}
    assert (
        not {node.get("Relation Name") for node in nodes if node["Node Type"] == "Seq Scan"} & large
    )


@pytest.mark.parametrize("total", [0, 1, 99, 200, 50_000])
def test_sample_is_bounded(total: int) -> None:
    lines = store.sample_of(total)
    assert len(lines) <= 202
    assert set(lines) <= set(range(1, total + 1))
    assert not total or {1, total} <= set(lines)


def _explained(world: World, batch: BatchId) -> Explanation:
    explanation = Explainer(FactStore(world.api, {DEFAULT_FLEET: FLEET})).explain(
        DEFAULT_TENANT, batch
    )
    changes = [(frozenset(each.numbers.items()), each.end) for each in explanation.advice]
    assert len(set(changes)) == len(changes), "the same change is advised twice"
    return explanation


def test_other_tenants_are_amounts_only(world: World) -> None:
    """An explanation says how much work is ahead, but not whose."""
    batch = _queue_ahead(world)
    assert _explained(world, batch).limiting.numbers == {"own": 0, "others": 2000, "waiting": 50}


def test_advice_has_its_effect(world: World) -> None:
    tenant = tenant_with(world, "limited", max_running_lines=1)
    batch = _started(world, world.batch(200, tenant=tenant))
    _worker(world, 1, settled=1)
    explanation = Explainer(FactStore(world.api, {DEFAULT_FLEET: FLEET})).explain(tenant, batch)
    (advice, *_) = explanation.advice
    assert advice.factor is Factor.TENANT_LIMIT
    assert explanation.forecast is not None
    assert explanation.forecast.likely is not None
    assert advice.end is not None
    # One request at a time, of 2 s each; without the limit one worker runs two a second.
    seconds = (explanation.forecast.likely - advice.end).total_seconds()
    assert seconds == pytest.approx(400 - 100, abs=15)


def test_earlier_runs_are_compared(world: World) -> None:
    earlier = [world.batch(10) for _ in range(3)]
    for number, each in enumerate(earlier, 1):
        world.run("DELETE FROM queued_runs WHERE batch_id = :batch", batch=each)
        world.run(
            "UPDATE batches SET status = 'completed', completed = 10, drained_at = now(), "
            "in_progress_at = now() - make_interval(secs => :seconds), finalizing_at = now(), "
            "completed_at = now() WHERE id = :batch",
            batch=each,
            seconds=10.0 / number,
        )
    batch = _started(world, world.batch(20), 10)
    _worker(world, 2, settled=5)
    comparison = _explained(world, batch).comparison
    assert comparison is not None
    assert comparison.runs == 3
    assert comparison.usual == pytest.approx(2.0)
    assert comparison.rate == pytest.approx(0.5, rel=0.1)
