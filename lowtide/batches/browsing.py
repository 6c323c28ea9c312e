"""Batches in the portal: lists, details, and bulk cancellation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lowtide.batches.answers import AnswerReader, AnswersGone
from lowtide.batches.model import RequestStatus
from lowtide.batches.sealed_answers import NO_ANSWERS, beginning, is_sealed_text
from lowtide.batches.views import (
    COUNTED,
    MAX_SHOWN,
    BatchDetails,
    BatchFilter,
    CancelPlan,
    LineDetails,
)
from lowtide.core.errors import Conflict, NotFound
from lowtide.events.model import EventType, batch_event
from lowtide.objects.names import MARK, KeyDestroyed, data_key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from uuid import UUID

    from lowtide.batches.detail_store import BatchDetailStore
    from lowtide.batches.forecast import Forecaster
    from lowtide.batches.list_store import BatchListStore
    from lowtide.batches.model import Batch
    from lowtide.batches.results import RequestState
    from lowtide.batches.sealed_answers import Answers
    from lowtide.batches.store import BatchStore
    from lowtide.batches.views import BatchMark, BatchOrder, LineRecord, Note
    from lowtide.core.ids import BatchId, TenantId
    from lowtide.events.publisher import Publisher
    from lowtide.files.model import StoredFile
    from lowtide.objects.store import ObjectStore
    from lowtide.tenants.sign_in import Principal


MAX_CANCELLED: Final = 1000
"""Max number of batches that one call cancels."""


class BatchLists:
    """Lists of the batches that a principal may see."""

    def __init__(self, listing: BatchListStore, forecaster: Forecaster) -> None:
        self._listing = listing
        self._forecaster = forecaster

    def page(
        self,
        principal: Principal,
        batch_filter: BatchFilter,
        order: BatchOrder,
        *,
        after: BatchMark | None,
        limit: int,
    ) -> tuple[Sequence[Batch], bool]:
        """Return up to `limit` batches that follow `after`, with ETAs, and whether more follow."""
        batches = self._listing.page(
            principal.tenant, batch_filter, order, after=after, limit=limit + 1
        )
        return list(map(self._forecaster.with_eta, batches[:limit])), len(batches) > limit

    def count(self, principal: Principal, batch_filter: BatchFilter) -> int:
        """Count matching batches, up to COUNTED + 1."""
        return self._listing.count(principal.tenant, batch_filter, limit=COUNTED + 1)

    def tenants(self, principal: Principal) -> Mapping[TenantId, str]:
        """Return the names of the tenants that the principal may filter by."""
        return self._listing.tenants(principal.tenant)


class BatchCancellation:
    """The bulk cancellation of batches, each in its own transaction."""

    def __init__(
        self,
        listing: BatchListStore,
        batches: BatchStore,
        publisher: Publisher,
        *,
        new_id: Callable[[], UUID],
    ) -> None:
        self._listing = listing
        self._batches = batches
        self._publisher = publisher
        self._new_id = new_id

    def plan(self, principal: Principal, selector: BatchFilter | Sequence[BatchId]) -> CancelPlan:
        """Return the batches that a cancellation would cancel, oldest first.

        Raises Forbidden for a viewer.
        """
        principal.require_operator()
        cancellable = self._listing.cancellable(principal.tenant, selector, limit=MAX_CANCELLED + 1)
        has_more = len(cancellable) > MAX_CANCELLED
        batches = tuple(batch for _, batch in cancellable[:MAX_CANCELLED])
        unchanged = 0 if isinstance(selector, BatchFilter) else len(selector) - len(cancellable)
        return CancelPlan(batches, unchanged, more=has_more)

    def cancel(self, principal: Principal, batches: Sequence[BatchId]) -> int:
        """Cancel up to MAX_CANCELLED batches; return how many changed.

        Final, cancelling and other tenants' batches are skipped. Raises Forbidden for a viewer.
        """
        principal.require_operator()
        cancellable = self._listing.cancellable(principal.tenant, batches, limit=MAX_CANCELLED)
        return sum(self._cancel(principal, tenant, batch) for tenant, batch in cancellable)

    def _cancel(self, principal: Principal, tenant: TenantId, batch: BatchId) -> bool:
        event = batch_event(self._new_id(), EventType.BATCH_DRAINED, tenant, batch)
        try:
            cancelled, drained = self._batches.cancel(tenant, batch, event, actor=principal.name)
        except (Conflict, NotFound):
            return False
        if drained:
            self._publisher.publish([replace(event, trace=cancelled.trace)])
        return True


class BatchBrowser:
    """The details of a batch. Every method raises NotFound for what the principal may not see."""

    def __init__(
        self,
        details: BatchDetailStore,
        objects: ObjectStore,
        forecaster: Forecaster,
        *,
        answers: Answers = NO_ANSWERS,
    ) -> None:
        self._answers = answers
        self._details = details
        self._objects = objects
        self._reader = AnswerReader(objects)
        self._forecaster = forecaster

    def details(self, principal: Principal, batch: BatchId) -> BatchDetails:
        """Return a batch without its requests, with its ETA."""
        details = self._details.details(principal.tenant, batch)
        notes = details.notes
        if details.batch.zero_retention:
            notes = self._opened(details.batch.tenant, batch, notes)
        return replace(details, batch=self._forecaster.with_eta(details.batch), notes=notes)

    def lines(
        self,
        principal: Principal,
        batch: BatchId,
        status: RequestStatus | None,
        custom_id: str = "",
        *,
        dead_lettered: bool = False,
        after: int,
        limit: int,
    ) -> tuple[Sequence[RequestState], bool]:
        """Return up to `limit` requests after line `after`, and whether more follow.

        Only requests whose custom_id starts with `custom_id` are included; with `dead_lettered`,
        only dead letters, whatever the status.
        """
        requests = self._details.lines(
            principal.tenant,
            batch,
            status,
            custom_id,
            dead_lettered=dead_lettered,
            after=after,
            limit=limit + 1,
        )
        if any(is_sealed_text(request.error_message) for request in requests):
            tenant = self._details.tenant(principal.tenant, batch)
            requests = [self._answers.state(tenant, batch, request) for request in requests]
        return requests[:limit], len(requests) > limit

    def line(self, principal: Principal, batch: BatchId, line: int) -> LineDetails:
        """Return a request with the beginnings of its input and its response."""
        record = self._details.line(principal.tenant, batch, line)
        is_erased = False
        if record.was_answered:
            try:
                record = self._with_answer(principal, batch, record)
            except (AnswersGone, KeyDestroyed):
                record, is_erased = replace(record, body=None, body_bytes=0), True
        data_key = data_key_of(record.input_key)
        if data_key is not None:
            record = self._opened_record(principal, data_key.tenant, batch, record)
        content: bytes | None
        try:
            (content,) = self._objects.read_ranges(
                record.input_key, [(record.start, min(record.length, MAX_SHOWN))]
            )
        except NotFound:
            content = None
        return LineDetails(record, content, is_erased)

    def _with_answer(self, principal: Principal, batch: BatchId, record: LineRecord) -> LineRecord:
        """Return the record with the response that the files of a closed batch have."""
        files = self._details.answer_files(principal.tenant, batch)
        if files is None:
            return record
        files.require_role("output" if record.state.status is RequestStatus.COMPLETED else "error")
        if not files.segments:
            return record
        (place,) = self._reader.places(files, [record.state.line])
        answer = self._reader.body(files, place, MAX_SHOWN)
        if answer is None:
            return record
        pieces, size = answer
        return replace(record, body=b"".join(pieces), body_bytes=size)

    def _opened_record(
        self, principal: Principal, tenant: TenantId, batch: BatchId, record: LineRecord
    ) -> LineRecord:
        """Return a request of a batch with zero retention with readable texts."""
        body, body_bytes = record.body, record.body_bytes
        if body is not None and is_sealed_text(body[: len(MARK)].decode(errors="replace")):
            from lowtide.objects.sealing import text_size

            body_bytes = text_size(body_bytes)
            line = record.state.line
            pieces = self._details.body(principal.tenant, batch, line)
            try:
                shown = beginning(self._answers.pieces(tenant, batch, line, pieces), MAX_SHOWN)
                body = shown.encode("utf-8", "surrogatepass")
            except KeyDestroyed:
                body = None
        return replace(
            record,
            state=self._answers.state(tenant, batch, record.state),
            body=body,
            body_bytes=body_bytes,
            notes=self._opened(tenant, batch, record.notes),
        )

    def _opened(self, tenant: TenantId, batch: BatchId, notes: Sequence[Note]) -> tuple[Note, ...]:
        return tuple(
            replace(note, detail=self._answers.message(tenant, batch, note.line, note.detail) or "")
            for note in notes
        )

    def download(
        self, principal: Principal, batch: BatchId, role: str
    ) -> tuple[StoredFile, Iterator[bytes]]:
        """Return a batch's file and its bytes, and record the download in the audit log.

        `role` is input, output or error.
        """
        file = self._details.file(principal.tenant, batch, role, principal.name)
        return file, self._objects.stream(file.object_key)
