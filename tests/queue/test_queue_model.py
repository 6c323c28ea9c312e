"""The queue's SQL and a plain model agree after every step of random sequences.

The slow test runs MODEL_STEPS steps, 10,000 if that is not set, from the seed MODEL_SEED, or a random one:

    MODEL_STEPS=100000 python -m pytest -s -m slow tests/queue/test_queue_model.py
"""

from __future__ import annotations

import json
import math
import os
import random
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count, cycle
from typing import TYPE_CHECKING, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import structs
from pg8000 import dbapi
from sqlalchemy import text

from lowtide.batches.model import NewBatch
from lowtide.core.errors import Conflict, Unavailable
from lowtide.core.ids import DEFAULT_TENANT, BatchId, FileId, new_id
from lowtide.core.pools import Pool
from lowtide.database.connections import acting_for
from lowtide.database.prepared import PreparingConnection, hot
from lowtide.dead_letters.model import LetterLocation
from lowtide.dead_letters.requeue_store import RequeueStore
from lowtide.events.model import EventType, batch_event
from lowtide.files.model import FileStatus, Purpose, StoredFile, object_key
from lowtide.planning.escalation import Move, Plan
from lowtide.queue import claiming
from lowtide.queue.claims import Claim, Finished, Returned
from lowtide.queue.store import is_storm
from tests.loads import fill, tenant_with
from tests.queue.queue_model import FINAL, SECONDS, Batch, Model, Request, Worker
from tests.scheduler.test_pools_store import pause_store
from tests.worlds import MAX_LOST_LEASES, PRICES, World, done

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from lowtide.core.ids import LeaseId, TenantId

STEPS = 100
LIMIT = 4
SLOW_STEPS = int(os.environ.get("MODEL_STEPS", "10000"))
SECONDS_A_STEP = 0.1
RUN = settings(
    max_examples=25,
    stateful_step_count=STEPS,
    phases=[Phase.generate],  # shrinking a failure takes minutes
    database=None,
    suppress_health_check=list(HealthCheck),
)
EMPTIED_TABLES = (
    "queued_runs", "claimed_runs", "results", "batches", "requests", "workers", "outbox", "tallies",
    "dead_letters", "request_events", "files", "orphan_objects", "wanted_replicas",
)  # fmt: skip
SNAPSHOT = hot("""
SELECT json_build_object(
  'queue', (SELECT json_agg(q) FROM queue q), 'claims', (SELECT json_agg(c) FROM claims c),
  'results', (SELECT json_agg(r) FROM (
    SELECT batch_id, line, pool, succeeded, dead_lettered FROM results) r),
  'batches', (SELECT json_agg(b) FROM batch_states b),
  'queued_runs', (SELECT json_agg(r) FROM (
    SELECT line, lines, size, lower(lines) AS first, upper(lines) AS end FROM queued_runs) r),
  'claimed_runs', (SELECT json_agg(r) FROM (
    SELECT line, lines, size, lower(lines) AS first, upper(lines) AS end FROM claimed_runs) r),
  'drained', (SELECT json_object_agg(id, times) FROM (
    SELECT data->>'batch_id' AS id, count(*) AS times FROM outbox
    WHERE type = cast(:drained AS text) GROUP BY 1) o),
  'letters', (SELECT json_object_agg(batch_id, lines) FROM (
    SELECT batch_id, json_object_agg(line, state) AS lines FROM dead_letters GROUP BY 1) d))::text
""")
OF_TENANT = text("""
SELECT (SELECT count(*) FROM queue) AS queue, (SELECT count(*) FROM claims) AS claims,
  (SELECT count(*) FROM results) AS results, (SELECT count(*) FROM batches) AS batches,
  (SELECT count(*) FROM dead_letters) AS letters
""")
PICK = st.integers(0, 999)
# Most are small, so that rules meet the same requests; some cross the blocks of runs.
BATCH_SIZES = st.one_of(*[st.integers(1, 6)] * 4, st.integers(7, 300))
CLAIM_SIZES = st.one_of(*[st.integers(1, 6)] * 3, st.integers(7, 200))
MOVE_SIZES = st.one_of(*[st.integers(1, 4)] * 3, st.integers(5, 150))
MOST_OF_LIMITED = 40
"""Requests of a batch whose tenant runs LIMIT at a time, which takes a claim for each LIMIT of them."""
KINDS = ["good", "bad", "dead", "retry", "later", "cut", "back"]


class QueueMachine(RuleBasedStateMachine):
    """Workers that run, release and lose requests of batches that finish, expire or are cancelled."""

    world: ClassVar[World]
    tenants: ClassVar[dict[TenantId, int | None]]
    executed: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        with self.world.worker.begin() as connection:
            for table in EMPTIED_TABLES:
                connection.execute(text(f"DELETE FROM {table}"))  # noqa: S608
        self.pools = pause_store(self.world)
        for pool in Pool:
            self.pools.resume(pool, "ana")
        self.model = Model(self.tenants)
        self.created = self.steps = 0
        for tenant in self.tenants:
            self._add(fill(self.world, 5, tenant=tenant, due_in=50_000), tenant, 5, 50_000)
        for pool in (Pool.SPOT, Pool.SPOT, Pool.DEDICATED):
            self._start_worker(pool)

    def _batch(self, pick: int, *statuses: str) -> Batch:
        """Return a batch, with one of `statuses` if there is any."""
        batches = list(self.model.batches.values())
        matching = [batch for batch in batches if batch.status in statuses]
        candidates = matching or batches
        return candidates[pick % len(candidates)]

    def _worker(self, pick: int) -> LeaseId:
        """Return the lease of a worker, mostly of a live one."""
        leases = list(self.model.workers)
        alive = [lease for lease in leases if self.model.workers[lease].alive]
        candidates = alive if alive and pick % 5 else leases
        return candidates[pick % len(candidates)]

    def _loads_lanes(self, lease: LeaseId, *, fresh: bool) -> bool:
        """Set a worker's clock; return whether its next claim loads the lanes."""
        claiming_state = self.world.queue._claiming.get(lease)
        if claiming_state is None:
            return True
        claiming_state._next_listing = 0.0 if fresh else 1.0
        return fresh

    def _all(self, place: str, pool: Pool | None = None) -> list[tuple[Batch, int, Request]]:
        return [entry for entry in self.model.all_at(place) if pool in {None, entry[2].pool}]

    def _open(self) -> int:
        return sum(not batch.is_drained for batch in self.model.batches.values())

    def _add(self, id_: BatchId, tenant: TenantId, requests: int, due_in: float) -> None:
        self.created += 1
        waiting = {number: Request() for number in range(1, requests + 1)}
        self.model.batches[id_] = Batch(id_, self.created, tenant, due_in, waiting)

    def _apply(self, plan: Plan) -> tuple[int, int, int]:
        risky = frozenset(id_ for id_, batch in self.model.batches.items() if batch.at_risk)
        tight = self.world.rows(
            "SELECT deadline FROM batches WHERE id = ANY(:ids) ORDER BY deadline",
            ids=[id_ for id_, batch in self.model.batches.items() if batch.is_tight],
        )
        deadlines = [row.deadline for row in tight]
        result = self.world.apply(replace(plan, at_risk=risky, tight=deadlines))
        for row in self.world.rows("SELECT id, barrier FROM batches"):
            barrier = math.inf if row.barrier is None else row.barrier.timestamp()
            self.model.batches[BatchId(row.id)].barrier = barrier
        return result.escalated, result.revoked, result.returned

    @rule(
        requests=BATCH_SIZES,
        due_in=st.sampled_from([600, 3000, 50_000]),
        tenant_number=st.integers(0, 2),
    )
    @precondition(lambda self: self._open() < 4)
    def create(self, requests: int, due_in: float, tenant_number: int) -> None:
        tenant = list(self.tenants)[tenant_number]
        if self.tenants[tenant]:
            requests = min(requests, MOST_OF_LIMITED)
        batch = fill(self.world, requests, due_in=due_in, tenant=tenant)
        self._add(batch, tenant, requests, due_in)

    @rule(pick=PICK)
    @precondition(lambda self: self.steps % 4 == 0)
    def cancel(self, pick: int) -> None:
        model = self._batch(pick)
        if model.status in FINAL - {"cancelled"}:
            with pytest.raises(Conflict):
                self.world.cancel(model.id, model.tenant)
            return
        drained = self.world.cancel(model.id, model.tenant)
        if model.ending or model.status == "cancelled":
            assert drained is False
            return
        model.ending, model.status = True, "cancelling"
        model.drop("queue")
        assert drained is model.is_drained
        # Cancelling a batch while its files are written announces its end once more.
        model.announced += drained
        model.drain_is_announced = drained

    @rule()
    @precondition(lambda self: any(b.status == "cancelling" for b, *_ in self._all("claims")))
    def end_grace_period(self) -> None:
        self.world.sweep(cancel_grace=0)
        for batch in self.model.batches.values():
            if batch.status == "cancelling":
                batch.drop("claims")
        self.model.announce_drained()

    @rule(pick=PICK)
    @precondition(lambda self: self.steps % 4 == 0)
    def expire(self, pick: int) -> None:
        model = self._batch(pick, "in_progress")
        if model.status != "in_progress" or model.ending:
            return
        self.world.run("UPDATE batches SET deadline = now() WHERE id = :id", id=model.id)
        self.world.sweep()
        model.ending = True
        model.drop("queue", "claims")
        self.model.announce_drained()

    @rule(pick=PICK)
    @precondition(lambda self: any(b.is_drained for b in self.model.batches.values()))
    def finalize(self, pick: int) -> None:
        model = self._batch(pick, "finalizing", "cancelling")
        self._finalize(model)

    def _finalize(self, model: Batch) -> None:
        job = self.world.finals.job(model.id)
        assert (job is not None) == (model.is_drained and model.status not in FINAL)
        if job is None:
            return
        results = [model.requests[number].succeeded for number in model.at("results")]
        event = batch_event(new_id(), EventType.BATCH_COMPLETED, model.tenant, model.id)
        completed = sum(results)
        assert self.world.finals.close(
            job,
            completed=completed,
            failed=len(results) - completed,
            output=None,
            error=None,
            event=event,
        )
        model.status = job.final_status
        assert (
            model.status
            == {"finalizing": "completed", "cancelling": "cancelled", "in_progress": "expired"}[
                model.previous["status"]
            ]
        )
        model.at_risk = False

    @rule(pick=PICK)
    @precondition(lambda self: self.steps % 4 == 0)
    def put_at_risk(self, pick: int) -> None:
        model = self._batch(pick, "in_progress")
        model.at_risk = model.status == "in_progress"
        self._apply(Plan())

    @rule(pick=PICK, priority=st.integers(-10, 10))
    @precondition(lambda self: self.steps % 4 == 1)
    def prioritize(self, pick: int, priority: int) -> None:
        model = self._batch(pick, "in_progress")
        model.priority = priority
        self.world.run(
            "UPDATE batches SET priority = :priority WHERE id = :id",
            priority=priority, id=model.id,
        )  # fmt: skip
        self._apply(Plan())

    @rule(pick=PICK)
    @precondition(lambda self: self.steps % 4 == 2)
    def tighten(self, pick: int) -> None:
        model = self._batch(pick, "in_progress")
        model.is_tight = not model.is_tight
        self._apply(Plan())

    @rule(pool=st.sampled_from(list(Pool)))
    @precondition(lambda self: sum(w.alive for w in self.model.workers.values()) < 5)
    def start_worker(self, pool: Pool) -> None:
        self._start_worker(pool)

    def _start_worker(self, pool: Pool) -> LeaseId:
        lease = self.world.queue.open_lease(pool, "w")
        self.model.workers[lease] = Worker(pool)
        return lease

    @rule(pick=PICK)
    @precondition(lambda self: self.steps % 4 == 0)
    def heartbeat(self, pick: int) -> None:
        lease = self._worker(pick)
        assert self.world.queue.renew(lease) is self.model.workers[lease].alive

    @rule(pick=PICK, requests=CLAIM_SIZES, fresh=st.booleans())
    @precondition(lambda self: self._all("queue"))
    def claim(self, pick: int, requests: int, *, fresh: bool) -> None:
        self._claim(self._worker(pick), requests, fresh=fresh)

    def _claim(self, lease: LeaseId, requests: int, *, fresh: bool) -> None:
        worker = self.model.workers[lease]
        fresh |= self._loads_lanes(lease, fresh=fresh)
        claims = self.world.queue.claim(lease, worker.pool, requests)
        unanswered = {
            (batch.id, number)
            for batch, number, _ in self.model.claimed_by([lease])
            if (batch.id, number) in worker.unanswered
        }
        if unanswered:
            assert {(claim.batch, claim.line) for claim in claims} == unanswered
        elif worker.pool in self.model.paused:
            assert claims == []
        else:
            self.model.check_claim(worker, requests, claims, fresh=fresh)
        worker.unanswered = set()
        for claim in claims:
            request = self.model.request(claim)
            assert (claim.attempts, claim.interruptions) == (
                request.attempts,
                request.interruptions,
            )
            request.place, request.lease = "claims", lease
            worker.claims.append(claim)

    @rule(pool=st.sampled_from(list(Pool)))
    @precondition(lambda self: self.steps % 6 == 0)
    def pause(self, pool: Pool) -> None:
        self.pools.pause(pool, "ana")
        self.model.paused.add(pool)

    @rule()
    @precondition(lambda self: self.model.paused)
    def resume(self) -> None:
        for pool in self.model.paused:
            self.pools.resume(pool, "ana")
        self.model.paused.clear()

    @rule(pick=PICK, requests=CLAIM_SIZES, committed=st.booleans())
    @precondition(lambda self: self.steps % 5 == 0)
    def claim_without_response(self, pick: int, requests: int, *, committed: bool) -> None:
        """Break the connection at a claim's commit."""
        lease = self._worker(pick)
        worker = self.model.workers[lease]
        if worker.unanswered:
            return
        with pytest.MonkeyPatch.context() as patch:
            commit = PreparingConnection.commit

            def broken(connection: PreparingConnection) -> None:
                if committed:
                    commit(connection)
                connection._usock.close()
                raise dbapi.InterfaceError("network error")

            self._loads_lanes(lease, fresh=True)
            patch.setattr(PreparingConnection, "commit", broken)
            with pytest.raises(Unavailable):
                self.world.queue.claim(lease, worker.pool, requests)
        for row in self.world.rows("SELECT batch_id, line, lease_id FROM claims"):
            request = self.model.batches[row.batch_id].requests[row.line]
            if request.place == "queue":
                assert committed
                assert worker.pool not in self.model.paused
                assert (row.lease_id, worker.alive, request.is_delayed) == (lease, True, False)
                request.place, request.lease = "claims", lease
                worker.unanswered.add((row.batch_id, row.line))

    @rule(pick=PICK, data=st.data())
    @precondition(lambda self: any(worker.claims for worker in self.model.workers.values()))
    def settle(self, pick: int, data: st.DataObject) -> None:
        """Settle any requests that a worker ever claimed, also those of other workers by now."""
        candidates = [lease for lease, worker in self.model.workers.items() if worker.claims]
        self._settle(candidates[pick % len(candidates)], data)

    @rule(pick=PICK, requests=CLAIM_SIZES, data=st.data())
    @precondition(lambda self: self._all("queue"))
    def work(self, pick: int, requests: int, data: st.DataObject) -> None:
        """Claim requests, and settle some of them."""
        lease = self._worker(pick)
        self._claim(lease, requests, fresh=bool(pick % 2))
        if self.model.workers[lease].claims:
            self._settle(lease, data)

    def _settle(self, lease: LeaseId, data: st.DataObject) -> None:
        chosen = data.draw(_some_of(self.model.workers[lease].claims))
        kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5))
        finished, returned, expected = [], [], [0, 0]
        for claim, kind in zip(chosen, cycle(kinds), strict=False):
            ends = kind in {"good", "bad", "dead"}
            if ends:
                finished.append(_finished(claim, kind))
            else:
                returned.append(_returned(claim, kind))
            request = self.model.request(claim)
            if request.place == "claims" and request.lease == lease:
                expected[not ends] += 1
                self._follow(self.model.batches[claim.batch], request, kind)
        settled = self.world.queue.settle(lease, finished, returned)
        assert [settled.finished, settled.returned] == expected
        before = sum(batch.announced for batch in self.model.batches.values())
        self.model.announce_drained()
        after = sum(batch.announced for batch in self.model.batches.values())
        assert len(settled.drained) == after - before

    @staticmethod
    def _follow(batch: Batch, request: Request, kind: str) -> None:
        if kind in {"good", "bad", "dead"}:
            request.finish(succeeded=kind == "good", dead_letter=kind == "dead")
            batch.accepted += 1
            batch.seconds[request.pool] += SECONDS
            return
        failed = kind in {"retry", "later"}
        request.attempts += failed
        request.interruptions += kind == "cut"
        request.lost_leases = 0
        batch.retried += failed
        batch.interrupted += kind == "cut"
        batch.requeue(request, is_delayed=kind == "later")

    @rule(pick=PICK)
    @precondition(lambda self: self.steps % 3 == 0)
    def close_lease(self, pick: int) -> None:
        lease = self._worker(pick)
        self.world.queue.close_lease(lease)
        self.model.workers[lease].alive = False
        for batch, _, request in self.model.claimed_by([lease]):
            request.lost_leases = 0
            batch.requeue(request)
        self.model.announce_drained()

    @rule(picks=st.lists(PICK, min_size=1, max_size=3))
    @precondition(lambda self: self.steps % 2 == 0)
    def expire_leases(self, picks: Sequence[int]) -> None:
        """Let leases expire, and sweep."""
        self._expire_leases({self._worker(pick) for pick in picks})

    def _expire_leases(self, expired: Collection[LeaseId]) -> None:
        reaped = self.model.claimed_by(expired)
        lost_leases = sum(self.model.workers[lease].alive for lease in expired)
        for lease in expired:
            self.world.expire_lease(lease)
            self.model.workers[lease].alive = False
        living = sum(worker.alive for worker in self.model.workers.values())
        max_lost_leases = MAX_LOST_LEASES - is_storm(lost_leases, living)
        assert self.world.sweep() == len(reaped)
        delayed: dict[BatchId, list[int]] = defaultdict(list)
        for batch, number, request in reaped:
            request.lost_leases = min(request.lost_leases + 1, max_lost_leases)
            if request.lost_leases >= MAX_LOST_LEASES:
                request.finish(succeeded=False, dead_letter=True)
                continue
            request.interruptions += 1
            batch.interrupted += 1
            # A request lost twice waits for a random time, which the test prolongs.
            batch.requeue(request, is_delayed=request.lost_leases > 1)
            if request.place == "queue" and request.is_delayed:
                delayed[batch.id].append(number)
        for id_, lines in delayed.items():
            self._delay(id_, lines)
        self.model.announce_drained()

    def _delay(self, batch: BatchId, lines: Sequence[int]) -> None:
        """Prolong the delay of requests, each of which is a run of its own."""
        rows = self.world.rows(
            "UPDATE queued_runs SET available_at = now() + interval '1 h' "
            "WHERE batch_id = :batch AND line = ANY(:lines) RETURNING size",
            batch=batch,
            lines=lines,
        )
        assert [row.size for row in rows] == [1] * len(lines)

    @rule()
    @precondition(
        lambda self: any(request.is_delayed for *_, request in self.model.all_at("queue"))
    )
    def time_passes(self) -> None:
        self.world.run("UPDATE queued_runs SET available_at = now() WHERE available_at > now()")
        for _, _, request in self.model.all_at("queue"):
            request.is_delayed = False

    def _moved(self, batch: Batch, place: str, pool: Pool) -> list[int]:
        """Return the requests that moved to a pool's queue from the other pool."""
        rows = self.world.rows(
            "SELECT line FROM queue WHERE batch_id = :b AND pool = :p", b=batch.id, p=pool.value
        )
        other = Pool.SPOT if pool is Pool.DEDICATED else Pool.DEDICATED
        return sorted({row.line for row in rows} & set(batch.at(place, other)))

    @rule(pick=PICK, requests=MOVE_SIZES)
    @precondition(lambda self: self._all("queue", Pool.SPOT))
    def escalate(self, pick: int, requests: int) -> None:
        model = self._batch(pick, "in_progress")
        ready = sum(not model.requests[n].is_delayed for n in model.at("queue", Pool.SPOT))
        expected = min(requests, len(model.at("queue", Pool.SPOT)))
        escalated, _, _ = self._apply(Plan(escalations=(Move(model.id, requests),)))
        moved = self._moved(model, "queue", Pool.DEDICATED)
        assert len(moved) == escalated == expected
        # Delayed requests move only after all others.
        assert sum(not model.requests[n].is_delayed for n in moved) == min(requests, ready)
        for number in moved:
            model.requests[number].pool = Pool.DEDICATED

    @rule(pick=PICK, requests=MOVE_SIZES)
    @precondition(lambda self: self._all("queue", Pool.DEDICATED))
    def return_to_spot(self, pick: int, requests: int) -> None:
        model = self._batch(pick, "in_progress")
        expected = min(requests, len(model.at("queue", Pool.DEDICATED)))
        _, _, returned = self._apply(Plan(returns=(Move(model.id, requests),)))
        moved = self._moved(model, "queue", Pool.SPOT)
        assert len(moved) == returned == expected
        for number in moved:
            model.requests[number].pool = Pool.SPOT

    @rule(pick=PICK, requests=MOVE_SIZES)
    @precondition(lambda self: self._all("claims", Pool.SPOT))
    def revoke(self, pick: int, requests: int) -> None:
        """Revoke claims of spot workers; those of an ending batch are dropped."""
        model = self._batch(pick, "in_progress", "cancelling")
        before = model.at("claims", Pool.SPOT)
        _, revoked, _ = self._apply(Plan(revocations=(Move(model.id, requests),)))
        revoked_lines = set(before) - set(self.world.lines("claims", model.id))
        assert len(revoked_lines) == revoked == min(requests, len(before))
        for number in revoked_lines:
            request = model.requests[number]
            request.interruptions += 1
            model.interrupted += 1
            model.requeue(request)
            request.pool = request.pool if model.ending else Pool.DEDICATED
        self.model.announce_drained()

    def _with_letters(self, state: str) -> list[Batch]:
        batches = self.model.batches.values()
        return [batch for batch in batches if state in batch.letters.values()]

    @rule(pick=PICK, due_in=st.sampled_from([600, 50_000]))
    @precondition(lambda self: self._open() < 5 and self._with_letters("open"))
    def requeue_letters(self, pick: int, due_in: float) -> None:
        sources = self._with_letters("open")
        source = sources[pick % len(sources)]
        opened = [number for number, state in source.letters.items() if state == "open"]
        new, file = _requeued(source.tenant, len(opened), due_in)
        self.world.files.expect(source.tenant, file.object_key)
        places = [LetterLocation(source.id, number, number * 100, 90) for number in opened]
        event = batch_event(new_id(), EventType.BATCH_CREATED, source.tenant, new.id)
        requeues = RequeueStore(self.world.api)
        assert requeues.requeue([(new, file, places)], [event], actor="me", key=None)
        assert not requeues.requeue([(new, file, places)], [event], actor="me", key=None)
        for number in opened:
            source.requests[number].letter = "requeued"
        assert self.world.split(new.id, len(opened))
        self._add(new.id, source.tenant, len(opened), due_in)

    @rule(pick=PICK)
    @precondition(lambda self: self._with_letters("open"))
    def discard_letters(self, pick: int) -> None:
        sources = self._with_letters("open")
        source = sources[pick % len(sources)]
        places = [LetterLocation(source.id, number, 0, 0) for number in source.letters]
        opened = [number for number, state in source.letters.items() if state == "open"]
        requeues = RequeueStore(self.world.api)
        assert requeues.discard(source.tenant, places, actor="me") == len(opened)
        for number in opened:
            source.requests[number].letter = "discarded"

    @rule(tenant_number=st.integers(0, 2))
    @precondition(lambda self: self.steps % 10 == 0)
    def tenant_reads_own_rows(self, tenant_number: int) -> None:
        tenant = list(self.tenants)[tenant_number]
        with acting_for(self.world.api, tenant) as connection:
            visible = connection.execute(OF_TENANT).one()._asdict()
        mine = [batch for batch in self.model.batches.values() if batch.tenant == tenant]
        places = ("queue", "claims", "results")
        expected = {place: sum(len(batch.at(place)) for batch in mine) for place in places}
        letters = sum(len(batch.letters) for batch in mine)
        assert visible == expected | {"batches": len(mine), "letters": letters}

    @invariant()
    def database_matches_model(self) -> None:
        self.steps += 1
        type(self).executed += 1
        with self.world.worker.begin() as connection:
            drained = {"drained": EventType.BATCH_DRAINED.value}
            self.model.check(json.loads(connection.execute(SNAPSHOT, drained).scalar_one()))

    def teardown(self) -> None:
        """Check that every batch ends once nothing fails any more."""
        self._expire_leases(list(self.model.workers))
        self.resume()
        while any(self.model.all_at("queue")):
            self.time_passes()
            for pool in Pool:
                lease = self._start_worker(pool)
                claims = self.world.queue.claim(lease, pool, 1000)
                self.world.queue.settle(lease, [_finished(claim, "good") for claim in claims], [])
                for claim in claims:
                    self._follow(self.model.batches[claim.batch], self.model.request(claim), "good")
        self.model.announce_drained()
        for batch in self.model.batches.values():
            assert batch.is_drained
            self.database_matches_model()
            self._finalize(batch)
            assert batch.status in FINAL
            if batch.status == "completed":
                assert len(batch.at("results")) == len(batch.requests)
        self.database_matches_model()


def _some_of(claims: Sequence[Claim]) -> st.SearchStrategy[list[Claim]]:
    """Return a strategy for a few of the last claims in any order, or for many with gaps between."""

    def many(first: int, step: int) -> list[Claim]:
        chosen = claims[-first::step]
        return list({(claim.batch, claim.line): claim for claim in chosen}.values())

    few = st.lists(
        st.sampled_from(claims[-8:]), min_size=1, max_size=5, unique_by=lambda c: (c.batch, c.line)
    )
    return st.one_of(few, few, few, st.builds(many, st.integers(1, 200), st.integers(1, 3)))


def _finished(claim: Claim, kind: str) -> Finished:
    result = structs.replace(done(claim, succeeded=kind == "good"), replica_seconds=SECONDS)
    return structs.replace(result, dead_letter=kind == "dead")


def _returned(claim: Claim, kind: str) -> Returned:
    failed, delay = kind in {"retry", "later"}, 3600.0 if kind == "later" else 0.0
    return Returned(claim.batch, claim.line, kind, delay, failed=failed, interrupted=kind == "cut")


def _requeued(tenant: TenantId, requests: int, due_in: float) -> tuple[NewBatch, StoredFile]:
    now, file = datetime.now(UTC), FileId(new_id())
    stored = StoredFile(
        id=file, tenant=tenant, purpose=Purpose.BATCH, filename="f", size=1, lines=requests,
        sha256=b"", object_key=object_key(file), status=FileStatus.PROCESSED, status_details=None,
        created_at=now, endpoint="/v1/embeddings",
    )  # fmt: skip
    batch = NewBatch(
        id=BatchId(new_id()), tenant=tenant, user="u", input_file=file, endpoint="/v1/embeddings",
        completion_window="24h", created_at=now, deadline=now + timedelta(seconds=due_in),
        metadata=None, prices=PRICES,
        idempotency_key=None,
    )  # fmt: skip
    return batch, stored


@pytest.mark.timeout(120 + SLOW_STEPS * SECONDS_A_STEP)
@pytest.mark.parametrize("steps", [500, pytest.param(SLOW_STEPS, marks=pytest.mark.slow)])
def test_queue_matches_model(world: World, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    # Repeated runs of an example must behave alike, so that no real time is read.
    monkeypatch.setattr(claiming, "monotonic", lambda: 0.0)
    chosen = int(os.environ.get("MODEL_SEED", random.SystemRandom().randrange(2**32)))
    tenants = {
        DEFAULT_TENANT: None,
        tenant_with(world, "heavy", weight=3): None,
        tenant_with(world, "limited", max_running_lines=LIMIT): LIMIT,
    }
    body = {"world": world, "tenants": tenants, "executed": 0}
    machine: type[QueueMachine] = type("Machine", (QueueMachine,), body)
    rounds = count(chosen)
    while machine.executed < steps:
        number = next(rounds)
        print(f"seed {number}")
        run_state_machine_as_test(
            seed(number)(machine), settings=settings(RUN, max_examples=min(25, steps // STEPS))
        )
    print(f"{machine.executed} steps")
