"""The records of dead letters: looking at them, and dealing with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lowtide.domain.batches import NewBatch
    from lowtide.domain.dead_letters import (
        DeadLetter,
        LetterFilter,
        LetterId,
        LetterPlace,
        Requeued,
        Selection,
        Source,
    )
    from lowtide.domain.events import Event
    from lowtide.domain.files import StoredFile
    from lowtide.domain.ids import BatchId, TenantId
    from lowtide.domain.outputs import FinishedLine
    from lowtide.domain.promises import AdmissionPolicy


class DeadLetterCatalog(Protocol):
    """Dead letters as users see them, for one tenant at a time."""

    def page(
        self, tenant: TenantId, wanted: LetterFilter, *, after: LetterId | None, limit: int
    ) -> Sequence[DeadLetter]:
        """Return up to `limit` letters behind `after`, newest first; raises NotFound for `after`."""
        ...

    def get(self, tenant: TenantId, letter: LetterId) -> tuple[DeadLetter, LetterPlace]:
        """Return a letter and where it lies; raises NotFound."""
        ...

    def sources(self, tenant: TenantId, batches: Sequence[BatchId]) -> Mapping[BatchId, Source]:
        """Return the batches that letters come from."""
        ...

    def without_input(self, tenant: TenantId, wanted: LetterFilter) -> Sequence[BatchId]:
        """Return some of the batches with such letters whose input file is gone."""
        ...

    def places(self, tenant: TenantId, wanted: LetterFilter) -> Iterator[Sequence[LetterPlace]]:
        """Yield all such letters in order of batch and line, in pages."""
        ...

    def answers(
        self, tenant: TenantId, batch: BatchId, lines: Sequence[int]
    ) -> Sequence[FinishedLine]:
        """Return the last answers of lines, in order of line; long bodies are left out."""
        ...

    def body(self, tenant: TenantId, batch: BatchId, line: int) -> Iterator[str]:
        """Yield a body that was left out, in pieces; raises NotFound."""
        ...

    def note_download(self, tenant: TenantId, actor: str, subject: str) -> None:
        """Tell the audit log who took what."""
        ...


class DeadLetterDesk(Protocol):
    """Where dead letters are dealt with, for one tenant at a time."""

    def named(self, tenant: TenantId, letters: Sequence[LetterId]) -> Selection:
        """Return what there is of these letters; raises NotFound for an unknown one."""
        ...

    def matching(self, tenant: TenantId, wanted: LetterFilter, *, most: int) -> Selection:
        """Return the open letters of a filter, and how many there are behind the oldest `most`."""
        ...

    def requeued_under(self, tenant: TenantId, key: str) -> tuple[Sequence[Requeued], bytes | None]:
        """Return what an earlier call with this idempotency key requeued, and its body's digest."""
        ...

    def requeue(
        self,
        moves: Sequence[tuple[NewBatch, StoredFile, Sequence[LetterPlace]]],
        events: Sequence[Event],
        *,
        actor: str,
        key: str | None,
        digest: bytes | None = None,
        policy: AdmissionPolicy | None = None,
    ) -> bool:
        """Record files, batches and events, and mark the letters, all together.

        False, and nothing is recorded, when one of the letters is not open any more, or the key has
        been used. Raises what the policy raises; None promises anything.
        """
        ...

    def discard(self, tenant: TenantId, letters: Sequence[LetterPlace], *, actor: str) -> int:
        """Mark letters as discarded; return how many were open still."""
        ...
