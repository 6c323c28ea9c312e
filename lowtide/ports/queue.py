"""The workers' side of the queue, and what workers count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lowtide.domain.breaker import BreakerState
    from lowtide.domain.claims import Claim, Finished, Returned, Settled
    from lowtide.domain.ids import LeaseId
    from lowtide.domain.outcomes import Outcome
    from lowtide.domain.pools import Pool


class Queue(Protocol):
    """The workers' side of the queue. Everything is fenced by the lease."""

    def open_lease(self, pool: Pool, worker: str) -> LeaseId:
        """Register a worker."""
        ...

    def renew(self, lease: LeaseId) -> bool:
        """Extend the lease; False when it was given away, with all its lines."""
        ...

    def claim(
        self, lease: LeaseId, pool: Pool, lines: int, without: frozenset[str] = frozenset()
    ) -> Sequence[Claim]:
        """Take up to `lines` of the most urgent requests, of no model in `without`.

        None when the lease is gone or the pool paused.
        """
        ...

    def settle(
        self, lease: LeaseId, finished: Sequence[Finished], returned: Sequence[Returned]
    ) -> Settled:
        """End or give back lines in one transaction; lines that are not the lease's are skipped."""
        ...

    def report_engine(self, lease: LeaseId, state: BreakerState, reason: str) -> None:
        """Note how the worker's engine is, for everybody; `reason` is empty while it is well."""
        ...

    def close_lease(self, lease: LeaseId) -> None:
        """Leave; lines still held go back to the queue."""
        ...


class WorkerMeter(Protocol):
    """What a worker counts."""

    def dequeued(self, claims: Sequence[Claim]) -> None:
        """Lines were claimed."""
        ...

    def ran(self, outcomes: Iterable[Outcome]) -> None:
        """The engine said this of lines."""
        ...

    def settled(self, completed: int, failed: int, dead_letters: int) -> None:
        """Lines left the worker; going back to the queue counts as failed."""
        ...

    def judged(self, in_time: int, late: int) -> None:
        """Lines ended before or after their deadline."""
        ...

    def interrupted(self, lines: int) -> None:
        """Lines went back because the capacity under them went away."""
        ...

    def spent(self, replica_seconds: float) -> None:
        """Ended lines had this part of the worker's time."""
        ...

    def idle(self, seconds: float) -> None:
        """The worker waited with nothing in hand."""
        ...

    def engine_failed(self, kind: str) -> None:
        """The engine, not a request, was at fault, in a word."""
        ...

    def engine_is(self, state: BreakerState) -> None:
        """The engine breaker is in this state now."""
        ...
