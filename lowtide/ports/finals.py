"""What finalizing needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowtide.domain.events import Event
    from lowtide.domain.files import StoredFile
    from lowtide.domain.ids import BatchId
    from lowtide.domain.jobs import FinalJob
    from lowtide.domain.outputs import FinishedLine


class Finals(Protocol):
    """Drained batches."""

    def job(self, batch: BatchId) -> FinalJob | None:
        """Return what to finalize; None when there is nothing (more) to do."""
        ...

    def lines(self, job: FinalJob, never_ran: tuple[str, str]) -> Iterator[FinishedLine]:
        """Yield every line in input order; those without a result carry code and message given."""
        ...

    def body(self, job: FinalJob, line: int) -> Iterator[str]:
        """Yield a body that `lines` left out, in pieces."""
        ...

    def close(
        self,
        job: FinalJob,
        *,
        completed: int,
        failed: int,
        output: StoredFile | None,
        error: StoredFile | None,
        event: Event,
    ) -> bool:
        """Record files, final state and event; False when the batch has moved on meanwhile."""
        ...
