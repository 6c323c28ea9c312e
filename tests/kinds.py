"""One world with every kind of batch, and the facts that every view of it must show."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from lowtide.batches.model import BatchStatus, Outcomes, SlaState
from lowtide.core.ids import DEFAULT_TENANT, BatchId, new_id
from lowtide.core.pools import Pool
from lowtide.engines.outcomes import Usage
from lowtide.events.model import EventType, batch_event
from lowtide.files.lines import Problem
from lowtide.planning.escalation import Plan
from lowtide.planning.reasons import Bound
from lowtide.queue.claims import Finished
from tests.worlds import done

if TYPE_CHECKING:
    from lowtide.queue.claims import Claim
    from tests.worlds import World

BOUND = Bound(open=5, seconds=60.0, replicas=2, rate=0.5, capacity=3)


@dataclass(frozen=True)
class Kind:
    """The facts of a batch, written down by hand."""

    status: BatchStatus
    sla: SlaState
    outcomes: Outcomes = field(default_factory=Outcomes)
    at_risk: bool = False

    @property
    def total(self) -> int:
        counts = self.outcomes
        return (
            counts.queued + counts.running + counts.completed + counts.failed + counts.expired
            + counts.cancelled
        )  # fmt: skip


KINDS = {
    "validating": Kind(BatchStatus.VALIDATING, SlaState.ON_TRACK),
    "rejected": Kind(BatchStatus.FAILED, SlaState.NOT_APPLICABLE),
    "finalizing": Kind(
        BatchStatus.FINALIZING, SlaState.ON_TRACK, Outcomes(completed=3, failed=2, dead_lettered=1)
    ),
    "completed": Kind(BatchStatus.COMPLETED, SlaState.MET, Outcomes(completed=4)),
    "completed late": Kind(BatchStatus.COMPLETED, SlaState.MISSED, Outcomes(completed=3)),
    "completed with failures": Kind(
        BatchStatus.COMPLETED, SlaState.MET, Outcomes(completed=2, failed=3, dead_lettered=2)
    ),
    "completed, all failed": Kind(
        BatchStatus.COMPLETED, SlaState.MET, Outcomes(failed=3, dead_lettered=3)
    ),
    "cancelling": Kind(
        BatchStatus.CANCELLING,
        SlaState.NOT_APPLICABLE,
        Outcomes(running=2, completed=1, cancelled=4),
    ),
    "cancelled": Kind(
        BatchStatus.CANCELLED,
        SlaState.NOT_APPLICABLE,
        Outcomes(completed=1, failed=1, cancelled=5),
    ),
    "cancelled before its split": Kind(BatchStatus.CANCELLED, SlaState.NOT_APPLICABLE),
    "expiring": Kind(
        BatchStatus.IN_PROGRESS, SlaState.MISSED, Outcomes(completed=1, failed=1, expired=4)
    ),
    "expired": Kind(
        BatchStatus.EXPIRED,
        SlaState.MISSED,
        Outcomes(completed=2, failed=1, dead_lettered=1, expired=6),
    ),
    "running": Kind(
        BatchStatus.IN_PROGRESS,
        SlaState.ON_TRACK,
        Outcomes(queued=4, running=2, completed=2, failed=2, dead_lettered=1),
    ),
    "at risk": Kind(
        BatchStatus.IN_PROGRESS,
        SlaState.AT_RISK,
        Outcomes(queued=5, completed=1),
        at_risk=True,
    ),
}
"""Each is built while no request is queued that is due before its own."""


class Builder:
    """Builds the batches through the stores, as functions and workers do."""

    def __init__(self, world: World) -> None:
        self._world = world

    def build(self) -> dict[str, BatchId]:
        """Build every batch; return their ids by kind."""
        batches = {name: self._batch(name, kind) for name, kind in KINDS.items()}
        self._world.sweep()
        self._close(batches["expired"], KINDS["expired"])
        at_risk = batches["at risk"]
        plan = Plan(at_risk=frozenset({at_risk}), bounds={at_risk: BOUND})
        self._world.apply(plan)
        return batches

    def _batch(self, name: str, kind: Kind) -> BatchId:
        world = self._world
        # Claims are in the order of deadlines: "at risk" comes after "running", and before it.
        window = timedelta(hours=2 if name == "running" else 1)
        batch = world.new_batch(user=name, deadline=datetime.now(UTC) + window)
        if kind.total:
            world.split(batch, kind.total)
            self._run(kind)
        if name == "rejected":
            world.splits.reject(batch, [Problem("bad", "not JSON", line=1)])
        if kind.outcomes.cancelled or kind.status is BatchStatus.CANCELLED:
            world.cancel(batch)
        if kind.outcomes.expired:
            world.run(
                "UPDATE batches SET deadline = now() - interval '1 minute', "
                "created_at = now() - interval '1 hour' WHERE id = :id",
                id=batch,
            )
            world.sweep()
        if kind.status in {BatchStatus.COMPLETED, BatchStatus.CANCELLED}:
            self._close(batch, kind)
        if name == "completed late":
            world.run(
                "UPDATE batches SET deadline = completed_at - interval '1 s' WHERE id = :id",
                id=batch,
            )
        return batch

    def _run(self, kind: Kind) -> None:
        counts = kind.outcomes
        # A worker knows for a while only the batches that it has seen: each batch has its own.
        lease = self._world.queue.open_lease(Pool.SPOT, "w")
        claims = self._world.queue.claim(
            lease, Pool.SPOT, counts.completed + counts.failed + counts.running
        )
        ended = claims[: counts.completed + counts.failed]
        results = [
            done(claim)
            if number < counts.completed
            else _failure(claim, dead_letter=number < counts.completed + counts.dead_lettered)
            for number, claim in enumerate(ended)
        ]
        self._world.queue.settle(lease, results, [])

    def _close(self, batch: BatchId, kind: Kind) -> None:
        world = self._world
        job = world.finals.job(batch)
        assert job is not None
        event = batch_event(new_id(), EventType.BATCH_COMPLETED, DEFAULT_TENANT, batch)
        counts = kind.outcomes
        assert world.finals.close(
            job,
            completed=counts.completed,
            failed=counts.openai_failed,
            output=None,
            error=None,
            event=event,
        )


def _failure(claim: Claim, *, dead_letter: bool) -> Finished:
    code = "http_500" if dead_letter else "invalid_request"
    return Finished(
        claim.batch, claim.line, succeeded=False, attempts=1, usage=Usage(),
        error_code=code, error_message="The engine failed.", dead_letter=dead_letter,
    )  # fmt: skip
