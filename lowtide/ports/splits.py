"""What splitting needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

    from lowtide.domain.ids import BatchId
    from lowtide.domain.jobs import SplitJob
    from lowtide.domain.lines import InputLine, Problem


class Split(Protocol):
    """The transaction of one split."""

    job: SplitJob

    def write(self, lines: Iterable[InputLine]) -> int:
        """Store requests as they come; return how many."""
        ...

    def start(self, total: int, model: str | None) -> bool:
        """Queue what was written; False when the batch was cancelled."""
        ...

    def discard(self) -> None:
        """Undo what was written."""
        ...


class Splits(Protocol):
    """Batches whose files wait to be split."""

    def open(self, batch: BatchId) -> AbstractContextManager[Split | None]:
        """Open the transaction of a split; None when there is nothing to split."""
        ...

    def reject(self, batch: BatchId, problems: Sequence[Problem]) -> None:
        """Fail a batch whose file cannot be run."""
        ...
