"""What the queue must do, in plain Python: where each line is, what is counted, who may claim what.

Which lines a claim is given follows from shares that each worker keeps for itself (they have tests
of their own). The model does not repeat them: it holds claims to the laws that any fair choice obeys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lowtide.core.pools import Pool
from lowtide.queue.fairness import Lane, urgency
from tests import oracle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lowtide.core.ids import BatchId, LeaseId, TenantId
    from lowtide.queue.claims import Claim

SECONDS = 0.25
"""Each result's part of its worker's time; sums of it are exact."""
TIMES = (
    "created_at", "in_progress_at", "finalizing_at", "cancelling_at", "completed_at", "expired_at",
    "cancelled_at",
)  # fmt: skip
FINAL = {"completed", "expired", "cancelled"}


@dataclass
class Line:
    """`place` is `queue`, `claims`, `results` or `dropped`."""

    place: str = "queue"
    pool: Pool = Pool.SPOT
    lease: LeaseId | None = None
    attempts: int = 0
    interruptions: int = 0
    lost: int = 0
    is_delayed: bool = False
    succeeded: bool = False
    letter: str | None = None

    def end(self, *, succeeded: bool, dead: bool = False) -> None:
        self.place, self.succeeded = "results", succeeded
        self.letter = "open" if dead else None


@dataclass
class Batch:
    """`due` is seconds from its creation, and batches are numbered in the order of theirs."""

    id: BatchId
    number: int
    tenant: TenantId
    due: float
    lines: dict[int, Line]
    status: str = "in_progress"
    ending: bool = False
    at_risk: bool = False
    accepted: int = 0
    seconds: dict[Pool, float] = field(default_factory=lambda: dict.fromkeys(Pool, 0.0))
    retried: int = 0
    interrupted: int = 0
    announced: int = 0
    is_noted: bool = False
    seen: dict[str, Any] = field(default_factory=dict)

    def at(self, place: str, pool: Pool | None = None) -> list[int]:
        return [
            number
            for number, line in self.lines.items()
            if line.place == place and pool in {None, line.pool}
        ]

    @property
    def is_drained(self) -> bool:
        return not self.at("queue") and not self.at("claims")

    @property
    def letters(self) -> dict[int, str]:
        return {number: line.letter for number, line in self.lines.items() if line.letter}

    def requeue(self, line: Line, *, is_delayed: bool = False) -> None:
        line.place = "dropped" if self.ending else "queue"
        line.lease, line.is_delayed = None, is_delayed

    def drop(self, *places: str) -> None:
        for line in self.lines.values():
            if line.place in places:
                line.place = "dropped"

    def urgency(self, pool: Pool) -> tuple[float, float, int]:
        lane = Lane(self.id, self.tenant, self.due, at_risk=self.at_risk)
        return urgency(lane, pool), self.due, self.number


@dataclass
class Worker:
    """`held` is whatever it ever claimed; `unseen` what it took without ever hearing of it."""

    pool: Pool
    alive: bool = True
    held: list[Claim] = field(default_factory=list)
    unseen: set[tuple[BatchId, int]] = field(default_factory=set)


class Model:
    """Every batch, how many lines of each tenant may run, and the pools that are paused."""

    def __init__(self, limits: Mapping[TenantId, int | None]) -> None:
        self.limits = limits
        self.batches: dict[BatchId, Batch] = {}
        self.workers: dict[LeaseId, Worker] = {}
        self.paused: set[Pool] = set()

    def line(self, claim: Claim) -> Line:
        return self.batches[claim.batch].lines[claim.line]

    def all_at(self, place: str) -> Iterator[tuple[Batch, int, Line]]:
        for batch in self.batches.values():
            for number in batch.at(place):
                yield batch, number, batch.lines[number]

    def held_by(self, leases: Iterable[LeaseId]) -> list[tuple[Batch, int, Line]]:
        wanted = set(leases)
        return [found for found in self.all_at("claims") if found[2].lease in wanted]

    def note_drained(self) -> None:
        """Follow the batches that have just lost their last line."""
        for batch in self.batches.values():
            if batch.is_drained and not batch.is_noted:
                batch.is_noted = True
                batch.announced += 1
                if batch.status == "in_progress" and not batch.ending:
                    batch.status = "finalizing"

    def room(self, tenant: TenantId) -> float:
        limit = self.limits[tenant]
        if limit is None:
            return float("inf")
        return limit - sum(batch.tenant == tenant for batch, _, _ in self.all_at("claims"))

    def check_claim(
        self, worker: Worker, lines: int, claims: Sequence[Claim], *, fresh: bool
    ) -> None:
        """Hold a claim to its laws; those of urgency are for who has just looked."""
        taken = [(claim.batch, claim.line) for claim in claims]
        assert len(set(taken)) == len(taken)
        waiting = {
            (batch.id, number): batch
            for batch, number, line in self.all_at("queue")
            if line.pool is worker.pool and not line.is_delayed
        }
        assert set(taken) <= set(waiting), "not in this pool, not available, or another's"
        tenants = {batch.tenant for batch in waiting.values()}
        rooms = {tenant: self.room(tenant) for tenant in tenants}
        by_tenant = {
            tenant: min(sum(b.tenant == tenant for b in waiting.values()), rooms[tenant])
            for tenant in tenants
        }
        expected = min(lines, sum(by_tenant.values())) if worker.alive else 0
        assert len(taken) == expected, "work conserving, within limits"
        for tenant in tenants:
            rooms[tenant] -= sum(self.batches[id_].tenant == tenant for id_, _ in taken)
            assert rooms[tenant] >= 0
        if fresh:
            left = [batch for key, batch in waiting.items() if key not in set(taken)]
            self._check_order(worker.pool, [waiting[key] for key in taken], left, rooms)

    @staticmethod
    def _check_order(
        pool: Pool, taken: list[Batch], left: list[Batch], rooms: Mapping[TenantId, float]
    ) -> None:
        for one in taken:
            for other in left:
                if one.tenant == other.tenant:
                    assert one.urgency(pool) <= other.urgency(pool), "earliest deadline first"
                elif rooms[other.tenant] > 0:
                    of_one, of_other = one.urgency(pool), other.urgency(pool)
                    places = 2 if pool is Pool.DEDICATED else 1
                    assert of_one[:places] <= of_other[:places], "most urgent first"

    # -- what is in the database -----------------------------------------------------------------

    def check(self, found: Mapping[str, Any]) -> None:
        """Compare a snapshot with what should be there."""
        for place in ("queue", "claims", "results"):
            rows = {(row["batch_id"], row["line"]): row for row in found[place] or ()}
            lines = {(str(batch.id), number): line for batch, number, line in self.all_at(place)}
            assert rows.keys() == lines.keys(), place
            for key, row in rows.items():
                _check_line(place, lines[key], row)
        states = {row["id"]: row for row in found["batches"] or ()}
        assert states.keys() == {str(id_) for id_ in self.batches}
        drained = found["drained"] or {}
        letters = found["letters"] or {}
        for id_, batch in self.batches.items():
            _check_batch(batch, states[str(id_)])
            assert drained.get(f"batch_{id_.hex}", 0) == batch.announced, "drained once"
            of_batch = {int(line): state for line, state in letters.get(str(id_), {}).items()}
            assert of_batch == batch.letters


def _check_line(place: str, line: Line, row: Mapping[str, Any]) -> None:
    assert row["pool"] == line.pool
    if place == "results":
        assert row["succeeded"] == line.succeeded
        assert row["dead_lettered"] == (line.letter is not None)
        return
    assert (row["attempts"], row["interruptions"], row["lost_leases"]) == (
        line.attempts,
        line.interruptions,
        line.lost,
    )
    assert row.get("lease_id") == (None if line.lease is None else str(line.lease))


def _check_batch(batch: Batch, row: Mapping[str, Any]) -> None:
    results = [batch.lines[number] for number in batch.at("results")]
    good = sum(line.succeeded for line in results)
    assert row["status"] == batch.status
    assert (row["drained_at"] is not None) == batch.is_drained
    assert (row["tallied_completed"], row["tallied_failed"]) == (good, len(results) - good)
    assert row["total"] == len(batch.lines)
    assert (row["retried"], row["interrupted"]) == (batch.retried, batch.interrupted)
    assert (row["input_tokens"], row["output_tokens"]) == (3 * batch.accepted, 5 * batch.accepted)
    assert (row["spot_seconds"], row["dedicated_seconds"]) == (
        batch.seconds[Pool.SPOT],
        batch.seconds[Pool.DEDICATED],
    )
    times = {name: row[name] for name in TIMES if row[name] is not None}
    assert times.items() >= batch.seen.get("times", {}).items(), "timestamps moved"
    ordered = [datetime.fromisoformat(times[name]) for name in TIMES if name in times]
    assert ordered == sorted(ordered)
    assert batch.status in oracle._reachable(batch.seen.get("status", batch.status))
    batch.seen = {"times": times, "status": batch.status}
