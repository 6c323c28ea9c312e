"""A reference model of the queue: the place of each request, the counts, and the rules of claims.

The exact choice of a claim follows from shares that each worker keeps for itself, which have tests
of their own. The model checks only the rules that every fair choice obeys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lowtide.core.pools import Pool
from lowtide.core.runs import block_of, lines_of
from lowtide.queue.fairness import Lane, ranked
from tests import oracle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lowtide.core.ids import BatchId, LeaseId, TenantId
    from lowtide.queue.claims import Claim

SECONDS = 0.25
"""Each result's share of its worker's time; sums of it are exact."""
TIMES = (
    "created_at", "in_progress_at", "finalizing_at", "cancelling_at", "completed_at", "expired_at",
    "cancelled_at",
)  # fmt: skip
FINAL = {"completed", "expired", "cancelled"}


@dataclass
class Request:
    """`place` is `queue`, `claims`, `results` or `dropped`."""

    place: str = "queue"
    pool: Pool = Pool.SPOT
    lease: LeaseId | None = None
    attempts: int = 0
    interruptions: int = 0
    lost_leases: int = 0
    is_delayed: bool = False
    succeeded: bool = False
    letter: str | None = None

    def finish(self, *, succeeded: bool, dead_letter: bool = False) -> None:
        self.place, self.succeeded = "results", succeeded
        self.letter = "open" if dead_letter else None


@dataclass
class Batch:
    """`due_in` is seconds from its creation; `number` counts batches in order of creation.

    `barrier` is that of the database, as a Unix time.
    """

    id: BatchId
    number: int
    tenant: TenantId
    due_in: float
    requests: dict[int, Request]
    status: str = "in_progress"
    ending: bool = False
    at_risk: bool = False
    priority: int = 0
    is_tight: bool = False
    barrier: float = math.inf
    accepted: int = 0
    seconds: dict[Pool, float] = field(default_factory=lambda: dict.fromkeys(Pool, 0.0))
    retried: int = 0
    interrupted: int = 0
    announced: int = 0
    drain_is_announced: bool = False
    previous: dict[str, Any] = field(default_factory=dict)

    def at(self, place: str, pool: Pool | None = None) -> list[int]:
        return [
            number
            for number, request in self.requests.items()
            if request.place == place and pool in {None, request.pool}
        ]

    @property
    def is_drained(self) -> bool:
        return not self.at("queue") and not self.at("claims")

    @property
    def letters(self) -> dict[int, str]:
        return {
            number: request.letter for number, request in self.requests.items() if request.letter
        }

    def requeue(self, request: Request, *, is_delayed: bool = False) -> None:
        request.place = "dropped" if self.ending else "queue"
        request.lease, request.is_delayed = None, is_delayed

    def drop(self, *places: str) -> None:
        for request in self.requests.values():
            if request.place in places:
                request.place = "dropped"

    @property
    def lane(self) -> Lane:
        return Lane(
            self.id, self.tenant, self.due_in, at_risk=self.at_risk, priority=self.priority,
            barrier=self.barrier,
        )  # fmt: skip


@dataclass
class Worker:
    """`claims` holds all it ever claimed, `unanswered` the requests of claims without a response."""

    pool: Pool
    alive: bool = True
    claims: list[Claim] = field(default_factory=list)
    unanswered: set[tuple[BatchId, int]] = field(default_factory=set)


class Model:
    """All batches and workers, the paused pools, and the running requests allowed per tenant."""

    def __init__(self, limits: Mapping[TenantId, int | None]) -> None:
        self.limits = limits
        self.batches: dict[BatchId, Batch] = {}
        self.workers: dict[LeaseId, Worker] = {}
        self.paused: set[Pool] = set()

    def request(self, claim: Claim) -> Request:
        return self.batches[claim.batch].requests[claim.line]

    def all_at(self, place: str) -> Iterator[tuple[Batch, int, Request]]:
        for batch in self.batches.values():
            for number in batch.at(place):
                yield batch, number, batch.requests[number]

    def claimed_by(self, leases: Iterable[LeaseId]) -> list[tuple[Batch, int, Request]]:
        wanted = set(leases)
        return [entry for entry in self.all_at("claims") if entry[2].lease in wanted]

    def announce_drained(self) -> None:
        """Announce the batches whose last request has just ended."""
        for batch in self.batches.values():
            if batch.is_drained and not batch.drain_is_announced:
                batch.drain_is_announced = True
                batch.announced += 1
                if batch.status == "in_progress" and not batch.ending:
                    batch.status = "finalizing"

    def room(self, tenant: TenantId) -> float:
        limit = self.limits[tenant]
        if limit is None:
            return float("inf")
        return limit - sum(batch.tenant == tenant for batch, _, _ in self.all_at("claims"))

    def check_claim(
        self, worker: Worker, requests: int, claims: Sequence[Claim], *, fresh: bool
    ) -> None:
        """Check the rules of a claim; those of urgency apply if the worker's lanes are fresh."""
        claimed = [(claim.batch, claim.line) for claim in claims]
        assert len(set(claimed)) == len(claimed)
        waiting = {
            (batch.id, number): batch
            for batch, number, request in self.all_at("queue")
            if request.pool is worker.pool and not request.is_delayed
        }
        assert set(claimed) <= set(waiting), "in another pool, not available, or claimed"
        tenants = {batch.tenant for batch in waiting.values()}
        rooms = {tenant: self.room(tenant) for tenant in tenants}
        by_tenant = {
            tenant: min(sum(b.tenant == tenant for b in waiting.values()), rooms[tenant])
            for tenant in tenants
        }
        expected = min(requests, sum(by_tenant.values())) if worker.alive else 0
        assert len(claimed) == expected, "work-conserving within limits"
        for tenant in tenants:
            rooms[tenant] -= sum(self.batches[id_].tenant == tenant for id_, _ in claimed)
            assert rooms[tenant] >= 0
        if fresh:
            remaining = [batch for key, batch in waiting.items() if key not in set(claimed)]
            self._check_order(worker.pool, [waiting[key] for key in claimed], remaining, rooms)

    @staticmethod
    def _check_order(
        pool: Pool, claimed: list[Batch], remaining: list[Batch], rooms: Mapping[TenantId, float]
    ) -> None:
        all_claimed = {batch.id: batch for batch in claimed}
        all_remaining = {batch.id: batch for batch in remaining}
        order = _order(pool, (all_claimed | all_remaining).values())
        for first in all_claimed.values():
            for second in all_remaining.values():
                (level, place), (other_level, other_place) = order[first.id], order[second.id]
                if first.tenant == second.tenant:
                    assert place <= other_place, "in the tenant's own order"
                elif rooms[second.tenant] > 0:
                    assert level <= other_level, "most urgent first"

    def check(self, snapshot: Mapping[str, Any]) -> None:
        """Compare a snapshot of the database with the model."""
        for place in ("queue", "claims", "results"):
            rows = {(row["batch_id"], row["line"]): row for row in snapshot[place] or ()}
            assert len(rows) == len(snapshot[place] or ()), "in one run only"
            requests = {
                (str(batch.id), number): request for batch, number, request in self.all_at(place)
            }
            assert rows.keys() == requests.keys(), place
            for key, row in rows.items():
                _check_request(place, requests[key], row)
        for run in snapshot["queued_runs"] or ():
            _check_run(run)
            assert run["line"] == run["first"]
        for run in snapshot["claimed_runs"] or ():
            _check_run(run)
            assert block_of(run["line"]) <= run["line"] <= run["first"]
        states = {row["id"]: row for row in snapshot["batches"] or ()}
        assert states.keys() == {str(id_) for id_ in self.batches}
        drained = snapshot["drained"] or {}
        letters = snapshot["letters"] or {}
        for id_, batch in self.batches.items():
            _check_batch(batch, states[str(id_)])
            assert drained.get(f"batch_{id_.hex}", 0) == batch.announced, "drained once"
            of_batch = {int(line): state for line, state in letters.get(str(id_), {}).items()}
            assert of_batch == batch.letters


def _order(pool: Pool, batches: Iterable[Batch]) -> dict[BatchId, tuple[float, int]]:
    """Return the urgency of each batch, and its place among those of its tenant."""
    tenants: dict[TenantId, list[Batch]] = {}
    for batch in sorted(batches, key=lambda batch: (batch.due_in, batch.number)):
        tenants.setdefault(batch.tenant, []).append(batch)
    return {
        lane.batch: (level, place)
        for own in tenants.values()
        for place, (level, lane) in enumerate(ranked([batch.lane for batch in own], pool))
    }


def _check_run(row: Mapping[str, Any]) -> None:
    assert row["size"] == len(list(lines_of(row["lines"]))) > 0
    assert block_of(row["line"]) == block_of(row["first"]) == block_of(row["end"] - 1)


def _check_request(place: str, request: Request, row: Mapping[str, Any]) -> None:
    assert row["pool"] == request.pool
    if place == "results":
        assert row["succeeded"] == request.succeeded
        assert row["dead_lettered"] == (request.letter is not None)
        return
    assert (row["attempts"], row["interruptions"], row["lost_leases"]) == (
        request.attempts,
        request.interruptions,
        request.lost_leases,
    )
    assert row.get("lease_id") == (None if request.lease is None else str(request.lease))


def _check_batch(batch: Batch, row: Mapping[str, Any]) -> None:
    results = [batch.requests[number] for number in batch.at("results")]
    succeeded = sum(request.succeeded for request in results)
    assert row["status"] == batch.status
    assert (row["drained_at"] is not None) == batch.is_drained
    assert (row["tallied_completed"], row["tallied_failed"]) == (
        succeeded,
        len(results) - succeeded,
    )
    assert row["total"] == len(batch.requests)
    assert (row["retried"], row["interrupted"]) == (batch.retried, batch.interrupted)
    assert (row["input_tokens"], row["output_tokens"]) == (3 * batch.accepted, 5 * batch.accepted)
    assert (row["spot_seconds"], row["dedicated_seconds"]) == (
        batch.seconds[Pool.SPOT],
        batch.seconds[Pool.DEDICATED],
    )
    times = {name: row[name] for name in TIMES if row[name] is not None}
    assert times.items() >= batch.previous.get("times", {}).items(), "timestamps moved"
    ordered = [datetime.fromisoformat(times[name]) for name in TIMES if name in times]
    assert ordered == sorted(ordered)
    assert batch.status in oracle._reachable(batch.previous.get("status", batch.status))
    batch.previous = {"times": times, "status": batch.status}
