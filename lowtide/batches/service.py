"""Creating, reading and cancelling batches; reading their requests and results."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import accumulate
from typing import TYPE_CHECKING

from lowtide.batches.model import NewBatch
from lowtide.batches.results import ResultPage, render_all
from lowtide.batches.sealed_answers import NO_ANSWERS
from lowtide.batches.store import plain_input
from lowtide.buckets.model import Access, parse_folder_url, parse_object_url, require_access
from lowtide.core.durations import parse_window
from lowtide.core.errors import InvalidRequest, NotFound
from lowtide.core.ids import BatchId, derived_file_id, format_batch_id, parse_file_id
from lowtide.events.model import EventType, batch_event
from lowtide.fleets.placement import place, prices_of, unplaced
from lowtide.objects.names import no_new_key
from lowtide.planning.urgency import MAX_PRIORITY, MIN_PRIORITY
from lowtide.telemetry.tracing import BATCH, TENANT, UNTRACED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from lowtide.batches.admission import AdmissionPolicy
    from lowtide.batches.answers import AnswerFiles, AnswerReader
    from lowtide.batches.forecast import Forecaster
    from lowtide.batches.model import Batch, BatchStatus, RequestStatus
    from lowtide.batches.request_store import RequestStore
    from lowtide.batches.results import RequestState, ResultCursor
    from lowtide.batches.sealed_answers import Answers
    from lowtide.batches.store import BatchStore
    from lowtide.buckets.store import BucketStore
    from lowtide.core.ids import FileId, TenantId
    from lowtide.core.pools import Pool
    from lowtide.events.publisher import Publisher
    from lowtide.files.model import StoredFile
    from lowtide.files.store import FileStore
    from lowtide.fleets.model import Fleets
    from lowtide.fleets.placement import Placement
    from lowtide.objects.data_keys import WrappedKey
    from lowtide.telemetry.tracing import Span, Tracer


_log = logging.getLogger(__name__)
_PAGE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """The parameters of a new batch; None takes the default.

    One of `input_file_id` and `input_url` is set. `priority` is from MIN_PRIORITY to MAX_PRIORITY. With `joins_trace` the batch's work continues the caller's trace, else that of its file. `actor`
    is recorded in the audit log. `idempotency_digest` is that of the body sent with the key.
    """

    input_file_id: str | None
    user: str
    input_url: str | None = None
    output_url: str | None = None
    endpoint: str | None = None
    completion_window: str | None = None
    metadata: Mapping[str, str] | None = None
    output_expires_after: int | None = None
    idempotency_key: str | None = None
    idempotency_digest: bytes | None = None
    joins_trace: bool = False
    actor: str | None = None
    zero_retention: bool = False
    priority: int = 0


@dataclass(frozen=True, slots=True)
class BatchRules:
    """The server's limits, fleets and the currency of their prices; windows in seconds.

    Without `admission` deadlines are not checked.
    """

    endpoints: tuple[str, ...]
    shortest_window: int
    longest_window: int
    fleets: Fleets
    currency: str
    admission: AdmissionPolicy | None = None


class Batches:
    """The batches of tenants."""

    def __init__(
        self,
        batches: BatchStore,
        files: FileStore,
        buckets: BucketStore,
        publisher: Publisher,
        forecaster: Forecaster,
        rules: BatchRules,
        *,
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
        new_key: Callable[[TenantId, UUID], WrappedKey] = no_new_key,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._batches = batches
        self._files = files
        self._buckets = buckets
        self._publisher = publisher
        self._forecaster = forecaster
        self._rules = rules
        self._new_id = new_id
        self._new_key = new_key
        self._clock = clock
        self._tracer = tracer

    def create(self, tenant: TenantId, request: BatchRequest) -> Batch:
        """Create a batch, or return the one with the same idempotency key.

        A batch of an encrypted file has zero retention. Raises InvalidRequest,
        IdempotencyKeyReused, NotFound for an unknown file, TooManyRequests over a limit of the
        tenant, or Conflict if strict admission rejects the deadline, or if there is no master key.
        """
        try:
            return self._create(tenant, request)
        except NotFound:
            # A retry gets the existing batch, whose input file may have been deleted.
            existing = self._batches.created_under(
                tenant, request.idempotency_key, request.idempotency_digest
            )
            if existing is None:
                raise
            return self._forecaster.with_eta(existing)

    def _create(self, tenant: TenantId, request: BatchRequest) -> Batch:
        id_ = BatchId(self._new_id())
        file = self._input_file(request, id_)
        window_text = "24h" if request.completion_window is None else request.completion_window
        window = parse_window(
            window_text,
            shortest=timedelta(seconds=self._rules.shortest_window),
            longest=timedelta(seconds=self._rules.longest_window),
        )
        endpoint = self._endpoint(request)
        _check_priority(request.priority)
        input_url, output_url = self._urls(tenant, request)
        source = None if input_url else self._source(tenant, file)
        endpoint = endpoint or (source and source.endpoint) or self._rules.endpoints[0]
        placement = self._placement(source, endpoint)
        is_sealed = self._is_sealed(tenant, request, source)
        current_trace = self._tracer.current()
        parent = source.trace if source and not request.joins_trace else None
        with self._tracer.span(
            "create batch",
            parent=parent,
            links=[current_trace] if parent and current_trace else [],
            attributes={TENANT: str(tenant)},
        ) as span:
            now = self._clock()
            batch = NewBatch(
                id=id_,
                tenant=tenant,
                user=request.user,
                input_file=file,
                endpoint=endpoint,
                completion_window=window_text,
                created_at=now,
                deadline=now + window,
                metadata=request.metadata,
                idempotency_key=request.idempotency_key,
                prices=prices_of(self._rules.fleets, placement, self._rules.currency),
                placement=placement,
                idempotency_digest=request.idempotency_digest,
                output_expires_after=request.output_expires_after,
                trace=span.context,
                actor=request.actor,
                input_url=input_url,
                output_url=output_url,
                data_key=self._new_key(tenant, id_) if is_sealed else None,
                priority=request.priority,
            )
            return self._forecaster.with_eta(self._record(batch, span))

    def _record(self, batch: NewBatch, span: Span) -> Batch:
        id_ = self._new_id()
        event = batch_event(id_, EventType.BATCH_CREATED, batch.tenant, batch.id, batch.trace)
        created, is_new = self._batches.create(batch, event, self._rules.admission)
        span.note({BATCH: format_batch_id(created.id)})
        if is_new:
            _log.info("batch.created", extra={"window": batch.completion_window})
            self._publisher.publish([event])
        return created

    def get(self, tenant: TenantId, batch: BatchId) -> Batch:
        """Return a batch; raises NotFound."""
        return self._forecaster.with_eta(self._batches.get(tenant, batch))

    def page(
        self,
        tenant: TenantId,
        *,
        after: BatchId | None,
        limit: int,
        status: BatchStatus | None = None,
        user: str | None = None,
    ) -> tuple[Sequence[Batch], bool]:
        """Return up to `limit` batches after `after`, newest first, and whether more follow."""
        batches = self._batches.page(tenant, after=after, limit=limit + 1, status=status, user=user)
        page = [self._forecaster.with_eta(batch) for batch in batches[:limit]]
        return page, len(batches) > limit

    def cancel(self, tenant: TenantId, batch: BatchId, actor: str | None = None) -> Batch:
        """Start cancelling a batch; cancelling it again changes nothing.

        `actor` is recorded in the audit log. Raises NotFound, or Conflict if the batch ended otherwise.
        """
        event = batch_event(self._new_id(), EventType.BATCH_DRAINED, tenant, batch)
        cancelled, drained = self._batches.cancel(tenant, batch, event, actor)
        if drained:
            self._publisher.publish([replace(event, trace=cancelled.trace)])
        return self._forecaster.with_eta(cancelled)

    @staticmethod
    def _input_file(request: BatchRequest, batch: BatchId) -> FileId:
        """Return the id of the input file; that of an imported one depends on the batch alone."""
        if request.input_file_id is None:
            return derived_file_id(batch, "input")
        file = parse_file_id(request.input_file_id)
        if file is None:
            raise InvalidRequest(
                f"input_file_id {request.input_file_id!r} is not a file id: use the id "
                "returned by the upload, such as 'file-…'.",
                param="input_file_id",
            )
        return file

    def _urls(self, tenant: TenantId, request: BatchRequest) -> tuple[str | None, str | None]:
        """Return the URLs of input and output in full; raises InvalidRequest.

        Only registered buckets are allowed.
        """
        source = target = None
        if request.input_url is not None:
            source = parse_object_url(request.input_url, "input_url")
        if request.output_url is not None:
            target = parse_folder_url(request.output_url, "output_url")
        buckets = self._buckets.of(tenant) if source or target else []
        if source is not None:
            require_access(buckets, source, Access.READ, "input_url")
        if target is not None:
            require_access(buckets, target, Access.WRITE, "output_url")
        return str(source) if source else None, str(target) if target else None

    def _source(self, tenant: TenantId, file: FileId) -> StoredFile:
        try:
            return self._files.get(tenant, file)
        except NotFound as error:
            raise NotFound(error.message, param="input_file_id") from error

    def _placement(self, source: StoredFile | None, endpoint: str) -> Placement:
        """Return the fleets of a batch; raises InvalidRequest for models that none serves.

        The models of a file that is not read yet are found when it is split.
        """
        models = None if source is None else source.model_counts
        if models is None:
            return unplaced(self._rules.fleets)
        return place(self._rules.fleets, models, endpoint)

    def _is_sealed(
        self, tenant: TenantId, request: BatchRequest, source: StoredFile | None
    ) -> bool:
        """Return whether the batch has zero retention; raises InvalidRequest for a plain file.

        It has that of its file. An import is encrypted by the request's or the tenant's option.
        """
        if source is None:
            return request.zero_retention or self._files.is_sealed(tenant)
        if request.zero_retention and not source.zero_retention:
            raise plain_input(source.id)
        return source.zero_retention

    def _endpoint(self, request: BatchRequest) -> str | None:
        endpoint = request.endpoint
        if endpoint is None and request.input_url is not None:
            raise InvalidRequest(
                "endpoint is missing: with input_url, name that of the requests.", param="endpoint"
            )
        if endpoint is not None and endpoint not in self._rules.endpoints:
            raise InvalidRequest(
                f"endpoint {endpoint!r} is not supported: use one of "
                f"{', '.join(self._rules.endpoints)}.",
                param="endpoint",
                code="invalid_endpoint",
            )
        return endpoint


def _check_priority(priority: int) -> None:
    if not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        raise InvalidRequest(
            f"Priority {priority:g} is out of range: use a whole number from {MIN_PRIORITY} to "
            f"{MAX_PRIORITY}; the highest runs first.",
            param="x_lowtide.priority",
        )


class Requests:
    """The requests of tenants' batches."""

    def __init__(
        self,
        batches: BatchStore,
        requests: RequestStore,
        reader: AnswerReader,
        *,
        answers: Answers = NO_ANSWERS,
    ) -> None:
        self._batches = batches
        self._requests = requests
        self._reader = reader
        self._answers = answers

    def page(
        self,
        tenant: TenantId,
        batch: BatchId,
        *,
        after: int,
        limit: int,
        status: RequestStatus | None = None,
        dead_lettered: bool | None = None,
        pool: Pool | None = None,
    ) -> tuple[Sequence[RequestState], bool]:
        """Return up to `limit` requests after line `after`, and whether more follow.

        Raises NotFound for an unknown batch, and for one whose data has ended.
        """
        record = self._batches.get(tenant, batch)
        record.require_data()
        requests = self._requests.page(
            tenant,
            batch,
            after=after,
            limit=limit + 1,
            status=status,
            dead_lettered=dead_lettered,
            pool=pool,
        )
        if record.zero_retention:
            requests = [self._answers.state(tenant, batch, request) for request in requests]
        return requests[:limit], len(requests) > limit

    def results(
        self, tenant: TenantId, batch: BatchId, cursor: ResultCursor, limit: int, *, actor: str
    ) -> ResultPage:
        """Return up to `limit` results after `cursor`, and record the download in the audit log.

        A page with long bodies has fewer results. Those of a closed batch are read from its files.
        Raises NotFound for an unknown batch, and for one whose data has ended, and AnswersGone if a
        file of it was deleted, or KeyDestroyed if that destroyed the key of zero retention.
        """
        self._batches.get(tenant, batch).require_data()
        files = self._requests.answer_files(tenant, batch)
        if files is not None:
            files.require()
        if files is not None and files.segments:
            page, count = self._results_in_files(tenant, files, cursor, limit)
        else:
            page, count = self._results_in_database(tenant, batch, cursor, limit)
        if count:
            self._requests.note_download(tenant, batch, count, actor)
        return page

    def _results_in_database(
        self, tenant: TenantId, batch: BatchId, cursor: ResultCursor, limit: int
    ) -> tuple[ResultPage, int]:
        rows, has_more = self._requests.results(tenant, batch, cursor, limit)
        blocks = render_all(
            batch,
            [self._answers.line(tenant, batch, row.line) for row in rows],
            lambda line: self._answers.pieces(
                tenant, batch, line, self._requests.body(tenant, batch, line)
            ),
        )
        has_long = any(row.line.is_long for row in rows)
        cursor = rows[-1].cursor if rows else cursor
        return ResultPage(blocks, has_long, cursor, complete=not has_more), len(rows)

    def _results_in_files(
        self, tenant: TenantId, files: AnswerFiles, cursor: ResultCursor, limit: int
    ) -> tuple[ResultPage, int]:
        found = self._requests.finished(tenant, files.batch, cursor, limit)
        places = self._reader.places(files, [position.line for position in found])
        before = accumulate((place.length for place in places), initial=0)
        count = sum(size < _PAGE_BYTES for size in list(before)[: len(places)])
        places = places[:count]
        return (
            ResultPage(
                self._reader.blocks(files, places),
                any(place.is_long for place in places),
                found[count - 1] if count else cursor,
                complete=count == len(found) < limit,
            ),
            count,
        )
