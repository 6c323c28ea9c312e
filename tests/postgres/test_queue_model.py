"""The queue's SQL beside a plain model: any sequence of steps, the same lines in the same places."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lowtide.domain.claims import Claim, Returned
from lowtide.domain.escalation import Move, Plan
from lowtide.domain.pools import Pool
from tests.postgres.worlds import MAX_LOST_LEASES, World, done

if TYPE_CHECKING:
    from lowtide.domain.ids import BatchId, LeaseId

pools = st.sampled_from(list(Pool))


@dataclass
class _Line:
    """Where the model thinks a line is: `queue`, `claims` or `results`; else it was dropped."""

    place: str = "queue"
    pool: Pool = Pool.SPOT
    lease: LeaseId | None = None
    attempts: int = 0
    interruptions: int = 0
    lost: int = 0


@dataclass
class _Batch:
    due: int
    lines: dict[int, _Line]
    ending: bool = False
    status: str = "in_progress"
    completed: int = 0
    failed: int = 0

    def at(self, place: str) -> list[int]:
        return sorted(number for number, line in self.lines.items() if line.place == place)

    @property
    def is_drained(self) -> bool:
        return not self.at("queue") and not self.at("claims")


@dataclass
class _Worker:
    pool: Pool
    alive: bool = True
    held: list[Claim] = field(default_factory=list)


class QueueMachine(RuleBasedStateMachine):
    """Workers that work, give back, die and wake again, on batches that end and are ended."""

    world: World
    leases: Bundle[LeaseId] = Bundle("leases")
    batches: Bundle[BatchId] = Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        for table in (
            "queue",
            "claims",
            "results",
            "batches",
            "requests",
            "workers",
            "outbox",
            "tallies",
            "dead_letters",
            "request_events",
        ):
            self.world.run(f"DELETE FROM {table}")  # noqa: S608
        self.model: dict[BatchId, _Batch] = {}
        self.workers: dict[LeaseId, _Worker] = {}

    def _line(self, claim: Claim) -> _Line:
        return self.model[claim.batch].lines[claim.line]

    def _mine(self, lease: LeaseId, claim: Claim) -> bool:
        line = self._line(claim)
        return line.place == "claims" and line.lease == lease

    def _requeue(self, batch: _Batch, line: _Line) -> None:
        line.place = "dropped" if batch.ending else "queue"
        line.lease = None

    def _settle(self) -> None:
        for batch in self.model.values():
            if batch.is_drained and batch.status == "in_progress" and not batch.ending:
                batch.status = "finalizing"

    @rule(target=batches, lines=st.integers(1, 6), due=st.integers(1, 4))
    @precondition(lambda self: len(self.model) < 4)
    def create(self, lines: int, due: int) -> BatchId:
        batch = self.world.batch(lines, due_in=due * 1000.0)
        self.model[batch] = _Batch(due, {number: _Line() for number in range(1, lines + 1)})
        return batch

    @rule(target=leases, pool=pools)
    @precondition(lambda self: len(self.workers) < 5)
    def hire(self, pool: Pool) -> LeaseId:
        lease = self.world.queue.open_lease(pool, "w")
        self.workers[lease] = _Worker(pool)
        return lease

    @rule(lease=leases, lines=st.integers(1, 5))
    def claim(self, lease: LeaseId, lines: int) -> None:
        worker = self.workers[lease]
        claims = self.world.queue.claim(lease, worker.pool, lines)
        waiting = sorted(
            (batch.due, id_, number)
            for id_, batch in self.model.items()
            for number in batch.at("queue")
            if batch.lines[number].pool is worker.pool
        )
        expected = [(id_, number) for _, id_, number in waiting[:lines]] if worker.alive else []
        assert [self.model[claim.batch].due for claim in claims] == [
            due for due, _, _ in waiting[: len(expected)]
        ]
        # Deadlines of one `due` differ by the moment of creation: ids are as old as they are.
        assert [(claim.batch, claim.line) for claim in claims] == expected
        for claim in claims:
            line = self._line(claim)
            assert (claim.attempts, claim.interruptions) == (line.attempts, line.interruptions)
            line.place, line.lease = "claims", lease
            worker.held.append(claim)

    @rule(lease=leases, data=st.data())
    def settle(self, lease: LeaseId, data: st.DataObject) -> None:
        """Settle any lines that the worker ever held, whoever has them now."""
        held = self.workers[lease].held
        if not held:
            return
        chosen = data.draw(
            st.lists(st.sampled_from(held), max_size=4, unique_by=lambda c: (c.batch, c.line))
        )
        kinds = data.draw(
            st.lists(
                st.sampled_from(["good", "bad", "retry", "cut", "back"]), min_size=4, max_size=4
            )
        )
        finished, returned, expected = [], [], [0, 0]
        for claim, kind in zip(chosen, kinds, strict=False):
            if kind in {"good", "bad"}:
                finished.append(done(claim, succeeded=kind == "good"))
            else:
                returned.append(
                    Returned(
                        claim.batch,
                        claim.line,
                        kind,
                        failed=kind == "retry",
                        interrupted=kind == "cut",
                    )
                )
            if not self._mine(lease, claim):
                continue
            batch, line = self.model[claim.batch], self._line(claim)
            expected[kind not in {"good", "bad"}] += 1
            if kind in {"good", "bad"}:
                line.place = "results"
                batch.completed += kind == "good"
                batch.failed += kind == "bad"
            else:
                line.attempts += kind == "retry"
                line.interruptions += kind == "cut"
                line.lost = 0
                self._requeue(batch, line)
        settled = self.world.queue.settle(lease, finished, returned)
        assert [settled.finished, settled.returned] == expected
        self._settle()

    @rule(lease=leases)
    def leave(self, lease: LeaseId) -> None:
        self.world.queue.close_lease(lease)
        self.workers[lease].alive = False
        for batch in self.model.values():
            for line in batch.lines.values():
                if line.place == "claims" and line.lease == lease:
                    line.lost = 0
                    self._requeue(batch, line)
        self._settle()

    @rule(lease=leases)
    def die(self, lease: LeaseId) -> None:
        """Let a lease run out, and tick."""
        self.world.expire_lease(lease)
        reaped = 0
        self.workers[lease].alive = False
        for batch in self.model.values():
            for line in batch.lines.values():
                if line.place != "claims" or line.lease != lease:
                    continue
                reaped += 1
                line.lost += 1
                if line.lost >= MAX_LOST_LEASES:
                    line.place = "results"
                    batch.failed += 1
                else:
                    line.interruptions += 1
                    self._requeue(batch, line)
        self._settle()
        assert self.world.sweep() == reaped
        assert self.world.queue.renew(lease) is False

    @rule(batch=batches, lines=st.integers(1, 4))
    def escalate(self, batch: BatchId, lines: int) -> None:
        model = self.model[batch]
        waiting = {n for n in model.at("queue") if model.lines[n].pool is Pool.SPOT}
        moved = self.world.escalate(batch, lines)
        there = self.world.rows(
            "SELECT line FROM queue WHERE batch_id = :b AND pool = 'dedicated'", b=batch
        )
        # Which ones is its own business.
        chosen = {row.line for row in there} & waiting
        assert len(chosen) == moved == min(lines, len(waiting))
        for number in chosen:
            model.lines[number].pool = Pool.DEDICATED

    @rule(batch=batches, lines=st.integers(1, 4))
    def give_back(self, batch: BatchId, lines: int) -> None:
        model = self.model[batch]
        waiting = {n for n in model.at("queue") if model.lines[n].pool is Pool.DEDICATED}
        moved = self.world.apply(Plan(returns=(Move(batch, lines),))).returned
        there = self.world.rows(
            "SELECT line FROM queue WHERE batch_id = :b AND pool = 'spot'", b=batch
        )
        chosen = {row.line for row in there} & waiting
        assert len(chosen) == moved == min(lines, len(waiting))
        for number in chosen:
            model.lines[number].pool = Pool.SPOT

    @rule(batch=batches)
    def cancel(self, batch: BatchId) -> None:
        model = self.model[batch]
        if model.ending and model.status == "in_progress":
            assert self.world.cancel(batch) is False
            return
        drained = self.world.cancel(batch)
        already = model.status == "cancelling"
        model.ending, model.status = True, "cancelling"
        for number in model.at("queue"):
            model.lines[number].place = "dropped"
        assert drained is (model.is_drained and not already)

    @rule(batch=batches)
    def expire(self, batch: BatchId) -> None:
        model = self.model[batch]
        if model.status != "in_progress" or model.ending:
            return
        self.world.run("UPDATE batches SET deadline = now() WHERE id = :id", id=batch)
        self.world.sweep()
        model.ending = True
        for line in model.lines.values():
            if line.place in {"queue", "claims"}:
                line.place = "dropped"

    @rule()
    def grace_is_over(self) -> None:
        self.world.sweep(cancel_grace=0)
        for batch in self.model.values():
            if batch.status == "cancelling":
                for number in batch.at("claims"):
                    batch.lines[number].place = "dropped"

    @invariant()
    def every_line_is_where_the_model_says(self) -> None:
        for table in ("queue", "claims", "results"):
            found = {
                (row.batch_id, row.line): row
                for row in self.world.rows(f"SELECT * FROM {table}")  # noqa: S608
            }
            assert set(found) == {
                (id_, number) for id_, batch in self.model.items() for number in batch.at(table)
            }
            for (id_, number), row in found.items():
                line = self.model[id_].lines[number]
                assert row.pool == line.pool
                if table == "queue":
                    assert (row.attempts, row.interruptions, row.lost_leases) == (
                        line.attempts,
                        line.interruptions,
                        line.lost,
                    )
                elif table == "claims":
                    assert row.lease_id == line.lease

    @invariant()
    def batches_count_and_drain_right(self) -> None:
        for id_, batch in self.model.items():
            row = self.world.row(id_)
            assert (row.tallied_completed, row.tallied_failed) == (batch.completed, batch.failed)
            assert batch.completed + batch.failed == len(batch.at("results"))
            assert (row.drained_at is not None) == batch.is_drained
            assert row.status == batch.status
            drained = self.world.drained(id_)
            # Cancelling while its files are written announces the end once more.
            assert (
                drained in ({1, 2} if batch.status == "cancelling" else {1})
                if batch.is_drained
                else drained == 0
            )


@pytest.mark.timeout(120)
def test_the_queue_does_what_the_model_does(world: World) -> None:
    machine = type("Machine", (QueueMachine,), {"world": world})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
