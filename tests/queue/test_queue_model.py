"""The queue's SQL beside a plain model: any sequence of steps, the same lines in the same places."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
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
from pg8000 import dbapi
from sqlalchemy import text

from lowtide.batches.model import NewBatch
from lowtide.core.errors import Conflict, Unavailable
from lowtide.core.ids import DEFAULT_TENANT, BatchId, FileId, new_id
from lowtide.core.pools import Pool
from lowtide.database.connections import acting_for
from lowtide.database.prepared import PreparingConnection, hot
from lowtide.dead_letters.model import LetterPlace
from lowtide.dead_letters.requeue_store import RequeueStore
from lowtide.events.model import EventType, batch_event
from lowtide.files.model import FileStatus, Purpose, StoredFile, object_key
from lowtide.planning.escalation import Move, Plan
from lowtide.queue import claiming
from lowtide.queue.claims import Claim, Finished, Returned
from lowtide.queue.store import is_storm
from tests.loads import fill, tenant_with
from tests.queue.queue_model import FINAL, SECONDS, Batch, Line, Model, Worker
from tests.scheduler.test_pools_store import register
from tests.worlds import MAX_LOST_LEASES, World, done

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from lowtide.core.ids import LeaseId, TenantId

STEPS = 100
LIMIT = 4
RUN = settings(
    max_examples=25,
    stateful_step_count=STEPS,
    phases=[Phase.generate],  # to make a failure shorter takes minutes
    database=None,
    suppress_health_check=list(HealthCheck),
)
EMPTIED = (
    "queue", "claims", "results", "batches", "requests", "workers", "outbox", "tallies",
    "dead_letters", "request_events", "files", "stray_objects", "wanted_replicas",
)  # fmt: skip
SNAPSHOT = hot("""
SELECT json_build_object(
  'queue', (SELECT json_agg(q) FROM queue q), 'claims', (SELECT json_agg(c) FROM claims c),
  'results', (SELECT json_agg(r) FROM results r), 'batches', (SELECT json_agg(b) FROM batch_states b),
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
KINDS = ["good", "bad", "dead", "retry", "later", "cut", "back"]


class QueueMachine(RuleBasedStateMachine):
    """Workers that work, give back, die and wake again, on batches that end and are ended."""

    world: ClassVar[World]
    tenants: ClassVar[dict[TenantId, int | None]]
    executed: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        with self.world.worker.begin() as connection:
            for table in EMPTIED:
                connection.execute(text(f"DELETE FROM {table}"))  # noqa: S608
        self.pools = register(self.world)
        for pool in Pool:
            self.pools.resume(pool, "ana")
        self.model = Model(self.tenants)
        self.created = self.steps = 0
        for tenant in self.tenants:
            self._add(fill(self.world, 5, tenant=tenant, due_in=50_000), tenant, 5, 50_000)
        for pool in (Pool.SPOT, Pool.SPOT, Pool.DEDICATED):
            self._hire(pool)

    def _batch(self, pick: int, *statuses: str) -> Batch:
        """Return one of the batches, of those in such a status if there are any."""
        batches = list(self.model.batches.values())
        wanted = [batch for batch in batches if batch.status in statuses]
        found = wanted or batches
        return found[pick % len(found)]

    def _worker(self, pick: int) -> LeaseId:
        """Return one of the workers: mostly of those that live."""
        leases = list(self.model.workers)
        living = [lease for lease in leases if self.model.workers[lease].alive]
        found = living if living and pick % 5 else leases
        return found[pick % len(found)]

    def _is_to_look(self, lease: LeaseId, *, fresh: bool) -> bool:
        """Set a worker's clock; whether it looks for batches with its next claim."""
        remembered = self.world.queue._claiming.get(lease)
        if remembered is None:
            return True
        remembered._next_listing = 0.0 if fresh else 1.0
        return fresh

    def _all(self, place: str, pool: Pool | None = None) -> list[tuple[Batch, int, Line]]:
        return [found for found in self.model.all_at(place) if pool in {None, found[2].pool}]

    def _open(self) -> int:
        return sum(not batch.is_drained for batch in self.model.batches.values())

    def _add(self, id_: BatchId, tenant: TenantId, lines: int, due: float) -> None:
        self.created += 1
        waiting = {number: Line() for number in range(1, lines + 1)}
        self.model.batches[id_] = Batch(id_, self.created, tenant, due, waiting)

    def _apply(self, plan: Plan) -> tuple[int, int, int]:
        risky = frozenset(id_ for id_, batch in self.model.batches.items() if batch.at_risk)
        done_ = self.world.apply(replace(plan, at_risk=risky))
        return done_.escalated, done_.revoked, done_.returned

    # -- batches ---------------------------------------------------------------------------------

    @rule(
        lines=st.integers(1, 6),
        due=st.sampled_from([600, 3000, 50_000]),
        who=st.integers(0, 2),
    )
    @precondition(lambda self: self._open() < 4)
    def create(self, lines: int, due: float, who: int) -> None:
        tenant = list(self.tenants)[who]
        batch = fill(self.world, lines, due_in=due, tenant=tenant)
        self._add(batch, tenant, lines, due)

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
        # Cancelling while its files are written announces the end once more.
        model.announced += drained
        model.is_noted = drained

    @rule()
    @precondition(lambda self: any(b.status == "cancelling" for b, *_ in self._all("claims")))
    def grace_is_over(self) -> None:
        self.world.sweep(cancel_grace=0)
        for batch in self.model.batches.values():
            if batch.status == "cancelling":
                batch.drop("claims")
        self.model.note_drained()

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
        self.model.note_drained()

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
        results = [model.lines[number].succeeded for number in model.at("results")]
        event = batch_event(new_id(), EventType.BATCH_COMPLETED, model.tenant, model.id)
        counts = {"completed": sum(results), "failed": len(results) - sum(results)}
        assert self.world.finals.close(job, **counts, output=None, error=None, event=event)
        model.status = job.final_status
        assert (
            model.status
            == {"finalizing": "completed", "cancelling": "cancelled", "in_progress": "expired"}[
                model.seen["status"]
            ]
        )
        model.at_risk = False

    @rule(pick=PICK)
    @precondition(lambda self: self.steps % 4 == 0)
    def put_at_risk(self, pick: int) -> None:
        model = self._batch(pick, "in_progress")
        model.at_risk = model.status == "in_progress"
        self._apply(Plan())

    # -- workers ---------------------------------------------------------------------------------

    @rule(pool=st.sampled_from(list(Pool)))
    @precondition(lambda self: sum(w.alive for w in self.model.workers.values()) < 5)
    def hire(self, pool: Pool) -> None:
        self._hire(pool)

    def _hire(self, pool: Pool) -> LeaseId:
        lease = self.world.queue.open_lease(pool, "w")
        self.model.workers[lease] = Worker(pool)
        return lease

    @rule(pick=PICK)
    @precondition(lambda self: self.steps % 4 == 0)
    def heartbeat(self, pick: int) -> None:
        lease = self._worker(pick)
        assert self.world.queue.renew(lease) is self.model.workers[lease].alive

    @rule(pick=PICK, lines=st.integers(1, 6), fresh=st.booleans())
    @precondition(lambda self: self._all("queue"))
    def claim(self, pick: int, lines: int, *, fresh: bool) -> None:
        self._claim(self._worker(pick), lines, fresh=fresh)

    def _claim(self, lease: LeaseId, lines: int, *, fresh: bool) -> None:
        worker = self.model.workers[lease]
        fresh |= self._is_to_look(lease, fresh=fresh)
        claims = self.world.queue.claim(lease, worker.pool, lines)
        unseen = {
            (batch.id, number)
            for batch, number, _ in self.model.held_by([lease])
            if (batch.id, number) in worker.unseen
        }
        if unseen:
            assert {(claim.batch, claim.line) for claim in claims} == unseen
        elif worker.pool in self.model.paused:
            assert claims == []
        else:
            self.model.check_claim(worker, lines, claims, fresh=fresh)
        worker.unseen = set()
        for claim in claims:
            line = self.model.line(claim)
            assert (claim.attempts, claim.interruptions) == (line.attempts, line.interruptions)
            line.place, line.lease = "claims", lease
            worker.held.append(claim)

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

    @rule(pick=PICK, lines=st.integers(1, 6), committed=st.booleans())
    @precondition(lambda self: self.steps % 5 == 0)
    def claim_without_an_answer(self, pick: int, lines: int, *, committed: bool) -> None:
        """Cut the connection at a claim's commit."""
        lease = self._worker(pick)
        worker = self.model.workers[lease]
        if worker.unseen:
            return
        with pytest.MonkeyPatch.context() as patch:
            commit = PreparingConnection.commit

            def broken(connection: PreparingConnection) -> None:
                if committed:
                    commit(connection)
                connection._usock.close()
                raise dbapi.InterfaceError("network error")

            self._is_to_look(lease, fresh=True)
            patch.setattr(PreparingConnection, "commit", broken)
            with pytest.raises(Unavailable):
                self.world.queue.claim(lease, worker.pool, lines)
        for row in self.world.rows("SELECT batch_id, line, lease_id FROM claims"):
            line = self.model.batches[row.batch_id].lines[row.line]
            if line.place == "queue":
                assert committed
                assert worker.pool not in self.model.paused
                assert (row.lease_id, worker.alive, line.is_delayed) == (lease, True, False)
                line.place, line.lease = "claims", lease
                worker.unseen.add((row.batch_id, row.line))

    @rule(pick=PICK, data=st.data())
    @precondition(lambda self: any(worker.held for worker in self.model.workers.values()))
    def settle(self, pick: int, data: st.DataObject) -> None:
        """Settle any lines that a worker ever held, whoever has them now."""
        having = [lease for lease, worker in self.model.workers.items() if worker.held]
        self._settle(having[pick % len(having)], data)

    @rule(pick=PICK, lines=st.integers(1, 6), data=st.data())
    @precondition(lambda self: self._all("queue"))
    def work(self, pick: int, lines: int, data: st.DataObject) -> None:
        """Claim, and settle some of it."""
        lease = self._worker(pick)
        self._claim(lease, lines, fresh=bool(pick % 2))
        if self.model.workers[lease].held:
            self._settle(lease, data)

    def _settle(self, lease: LeaseId, data: st.DataObject) -> None:
        held = self.model.workers[lease].held
        recent = st.sampled_from(held[-8:])
        chosen = data.draw(
            st.lists(recent, min_size=1, max_size=5, unique_by=lambda c: (c.batch, c.line))
        )
        kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=5, max_size=5))
        finished, returned, expected = [], [], [0, 0]
        for claim, kind in zip(chosen, kinds, strict=False):
            ends = kind in {"good", "bad", "dead"}
            if ends:
                finished.append(_finished(claim, kind))
            else:
                returned.append(_returned(claim, kind))
            line = self.model.line(claim)
            if line.place == "claims" and line.lease == lease:
                expected[not ends] += 1
                self._follow(self.model.batches[claim.batch], line, kind)
        settled = self.world.queue.settle(lease, finished, returned)
        assert [settled.finished, settled.returned] == expected
        before = sum(batch.announced for batch in self.model.batches.values())
        self.model.note_drained()
        after = sum(batch.announced for batch in self.model.batches.values())
        assert len(settled.drained) == after - before

    @staticmethod
    def _follow(batch: Batch, line: Line, kind: str) -> None:
        if kind in {"good", "bad", "dead"}:
            line.end(succeeded=kind == "good", dead=kind == "dead")
            batch.accepted += 1
            batch.seconds[line.pool] += SECONDS
            return
        failed = kind in {"retry", "later"}
        line.attempts += failed
        line.interruptions += kind == "cut"
        line.lost = 0
        batch.retried += failed
        batch.interrupted += kind == "cut"
        batch.requeue(line, is_delayed=kind == "later")

    @rule(pick=PICK)
    @precondition(lambda self: self.steps % 3 == 0)
    def leave(self, pick: int) -> None:
        lease = self._worker(pick)
        self.world.queue.close_lease(lease)
        self.model.workers[lease].alive = False
        for batch, _, line in self.model.held_by([lease]):
            line.lost = 0
            batch.requeue(line)
        self.model.note_drained()

    @rule(picks=st.lists(PICK, min_size=1, max_size=3))
    @precondition(lambda self: self.steps % 2 == 0)
    def die(self, picks: Sequence[int]) -> None:
        """Let leases run out, and tick."""
        self._die({self._worker(pick) for pick in picks})

    def _die(self, dead: Collection[LeaseId]) -> None:
        reaped = self.model.held_by(dead)
        lost = sum(self.model.workers[lease].alive for lease in dead)
        for lease in dead:
            self.world.expire_lease(lease)
            self.model.workers[lease].alive = False
        living = sum(worker.alive for worker in self.model.workers.values())
        most = MAX_LOST_LEASES - is_storm(lost, living)
        assert self.world.sweep() == len(reaped)
        for batch, number, line in reaped:
            line.lost = min(line.lost + 1, most)
            if line.lost >= MAX_LOST_LEASES:
                line.end(succeeded=False, dead=True)
                continue
            line.interruptions += 1
            batch.interrupted += 1
            # Lost again, it waits for a random while: let that be long.
            batch.requeue(line, is_delayed=line.lost > 1)
            self._delay(batch.id, number, line)
        self.model.note_drained()

    def _delay(self, batch: BatchId, number: int, line: Line) -> None:
        if line.place == "queue" and line.is_delayed:
            self.world.run(
                "UPDATE queue SET available_at = now() + interval '1 h' "
                "WHERE batch_id = :batch AND line = :line",
                batch=batch,
                line=number,
            )

    @rule()
    @precondition(lambda self: any(line.is_delayed for *_, line in self.model.all_at("queue")))
    def time_passes(self) -> None:
        self.world.run("UPDATE queue SET available_at = now() WHERE available_at > now()")
        for _, _, line in self.model.all_at("queue"):
            line.is_delayed = False

    # -- between pools ---------------------------------------------------------------------------

    def _moved(self, batch: Batch, place: str, pool: Pool) -> list[int]:
        """Return the lines that are now in the queue of a pool and were elsewhere."""
        rows = self.world.rows(
            "SELECT line FROM queue WHERE batch_id = :b AND pool = :p", b=batch.id, p=pool.value
        )
        other = Pool.SPOT if pool is Pool.DEDICATED else Pool.DEDICATED
        return sorted({row.line for row in rows} & set(batch.at(place, other)))

    @rule(pick=PICK, lines=st.integers(1, 4))
    @precondition(lambda self: self._all("queue", Pool.SPOT))
    def escalate(self, pick: int, lines: int) -> None:
        model = self._batch(pick, "in_progress")
        ready = sum(not model.lines[n].is_delayed for n in model.at("queue", Pool.SPOT))
        expected = min(lines, len(model.at("queue", Pool.SPOT)))
        escalated, _, _ = self._apply(Plan(escalations=(Move(model.id, lines),)))
        chosen = self._moved(model, "queue", Pool.DEDICATED)
        assert len(chosen) == escalated == expected
        # What waits out a delay only when no others are left.
        assert sum(not model.lines[n].is_delayed for n in chosen) == min(lines, ready)
        for number in chosen:
            model.lines[number].pool = Pool.DEDICATED

    @rule(pick=PICK, lines=st.integers(1, 4))
    @precondition(lambda self: self._all("queue", Pool.DEDICATED))
    def give_back(self, pick: int, lines: int) -> None:
        model = self._batch(pick, "in_progress")
        expected = min(lines, len(model.at("queue", Pool.DEDICATED)))
        _, _, returned = self._apply(Plan(returns=(Move(model.id, lines),)))
        chosen = self._moved(model, "queue", Pool.SPOT)
        assert len(chosen) == returned == expected
        for number in chosen:
            model.lines[number].pool = Pool.SPOT

    @rule(pick=PICK, lines=st.integers(1, 4))
    @precondition(lambda self: self._all("claims", Pool.SPOT))
    def revoke(self, pick: int, lines: int) -> None:
        """Take lines out of spot workers' hands; of an ending batch they are gone for good."""
        model = self._batch(pick, "in_progress", "cancelling")
        before = model.at("claims", Pool.SPOT)
        _, revoked, _ = self._apply(Plan(revocations=(Move(model.id, lines),)))
        chosen = set(before) - set(self.world.lines("claims", model.id))
        assert len(chosen) == revoked == min(lines, len(before))
        for number in chosen:
            line = model.lines[number]
            line.interruptions += 1
            model.interrupted += 1
            model.requeue(line)
            line.pool = line.pool if model.ending else Pool.DEDICATED
        self.model.note_drained()

    # -- dead letters, tenants -------------------------------------------------------------------

    def _with_letters(self, state: str) -> list[Batch]:
        batches = self.model.batches.values()
        return [batch for batch in batches if state in batch.letters.values()]

    @rule(pick=PICK, due=st.sampled_from([600, 50_000]))
    @precondition(lambda self: self._open() < 5 and self._with_letters("open"))
    def requeue_letters(self, pick: int, due: float) -> None:
        sources = self._with_letters("open")
        source = sources[pick % len(sources)]
        opened = [number for number, state in source.letters.items() if state == "open"]
        new, file = _requeued(source.tenant, len(opened), due)
        self.world.files.expect(source.tenant, file.object_key)
        places = [LetterPlace(source.id, number, number * 100, 90) for number in opened]
        event = batch_event(new_id(), EventType.BATCH_CREATED, source.tenant, new.id)
        desk = RequeueStore(self.world.api)
        assert desk.requeue([(new, file, places)], [event], actor="me", key=None)
        assert not desk.requeue([(new, file, places)], [event], actor="me", key=None)
        for number in opened:
            source.lines[number].letter = "requeued"
        assert self.world.split(new.id, len(opened))
        self._add(new.id, source.tenant, len(opened), due)

    @rule(pick=PICK)
    @precondition(lambda self: self._with_letters("open"))
    def discard_letters(self, pick: int) -> None:
        sources = self._with_letters("open")
        source = sources[pick % len(sources)]
        places = [LetterPlace(source.id, number, 0, 0) for number in source.letters]
        opened = [number for number, state in source.letters.items() if state == "open"]
        desk = RequeueStore(self.world.api)
        assert desk.discard(source.tenant, places, actor="me") == len(opened)
        for number in opened:
            source.lines[number].letter = "discarded"

    @rule(who=st.integers(0, 2))
    @precondition(lambda self: self.steps % 10 == 0)
    def a_tenant_looks(self, who: int) -> None:
        tenant = list(self.tenants)[who]
        with acting_for(self.world.api, tenant) as connection:
            seen = connection.execute(OF_TENANT).one()._asdict()
        mine = [batch for batch in self.model.batches.values() if batch.tenant == tenant]
        places = ("queue", "claims", "results")
        expected = {place: sum(len(batch.at(place)) for batch in mine) for place in places}
        letters = sum(len(batch.letters) for batch in mine)
        assert seen == expected | {"batches": len(mine), "letters": letters}

    # -- always, and at the end ------------------------------------------------------------------

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        self.steps += 1
        type(self).executed += 1
        with self.world.worker.begin() as connection:
            drained = {"drained": EventType.BATCH_DRAINED.value}
            self.model.check(json.loads(connection.execute(SNAPSHOT, drained).scalar_one()))

    def teardown(self) -> None:
        """Once nothing breaks any more, every batch reaches its end by itself."""
        self._die(list(self.model.workers))
        self.resume()
        while any(self.model.all_at("queue")):
            self.time_passes()
            for pool in Pool:
                lease = self._hire(pool)
                claims = self.world.queue.claim(lease, pool, 100)
                self.world.queue.settle(lease, [_finished(claim, "good") for claim in claims], [])
                for claim in claims:
                    self._follow(self.model.batches[claim.batch], self.model.line(claim), "good")
        self.model.note_drained()
        for batch in self.model.batches.values():
            assert batch.is_drained
            self.everything_is_as_the_model_says()
            self._finalize(batch)
            assert batch.status in FINAL
            if batch.status == "completed":
                assert len(batch.at("results")) == len(batch.lines)
        self.everything_is_as_the_model_says()


def _finished(claim: Claim, kind: str) -> Finished:
    made = replace(done(claim, succeeded=kind == "good"), replica_seconds=SECONDS)
    return replace(made, dead_letter=kind == "dead")


def _returned(claim: Claim, kind: str) -> Returned:
    failed, delay = kind in {"retry", "later"}, 3600.0 if kind == "later" else 0.0
    return Returned(claim.batch, claim.line, kind, delay, failed=failed, interrupted=kind == "cut")


def _requeued(tenant: TenantId, lines: int, due: float) -> tuple[NewBatch, StoredFile]:
    now, file = datetime.now(UTC), FileId(new_id())
    stored = StoredFile(
        id=file, tenant=tenant, purpose=Purpose.BATCH, filename="f", size=1, lines=lines,
        sha256=b"", object_key=object_key(file), status=FileStatus.PROCESSED, status_details=None,
        created_at=now, endpoint="/v1/embeddings",
    )  # fmt: skip
    batch = NewBatch(
        id=BatchId(new_id()), tenant=tenant, user="u", input_file=file, endpoint="/v1/embeddings",
        completion_window="24h", created_at=now, deadline=now + timedelta(seconds=due),
        metadata=None, idempotency_key=None,
    )  # fmt: skip
    return batch, stored


@pytest.mark.timeout(280)
@pytest.mark.parametrize("steps", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_queue_matches_model(
    world: World, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    # What is done again for a shorter example must go the same way: no real time is looked at.
    monkeypatch.setattr(claiming, "monotonic", lambda: 0.0)
    chosen = random.SystemRandom().randrange(2**32)
    tenants = {
        DEFAULT_TENANT: None,
        tenant_with(world, "heavy", weight=3): None,
        tenant_with(world, "limited", max_running=LIMIT): LIMIT,
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
