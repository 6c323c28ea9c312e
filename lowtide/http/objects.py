"""Domain objects as the API's JSON objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowtide import wiring
from lowtide.domain.errors import NotFound
from lowtide.domain.ids import format_batch_id, format_file_id, format_request_id
from lowtide.domain.pricing import cost_of
from lowtide.http import types

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from lowtide.domain.batches import Batch
    from lowtide.domain.files import StoredFile
    from lowtide.domain.ids import BatchId, FileId
    from lowtide.domain.requests import RequestState

# A billionth of a replica hour is four microseconds.
_DIGITS = 9


def file_object(file: StoredFile) -> types.File:
    """Return the File object."""
    return types.File(
        id=format_file_id(file.id),
        size=file.size,
        created_at=_unix(file.created_at),
        expires_at=_seconds(file.expires_at),
        filename=file.filename,
        purpose=file.purpose.value,
        status=file.status.value,
        status_details=file.status_details,
    )


def file_page(files: Sequence[StoredFile], *, has_more: bool) -> types.FilePage:
    """Return one page of files."""
    data = [file_object(file) for file in files]
    return types.FilePage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=has_more,
    )


def batch_object(batch: Batch) -> types.Batch:
    """Return the Batch object."""
    errors = [
        types.BatchError(problem.code, problem.message, problem.param, problem.line)
        for problem in batch.errors
    ]
    return types.Batch(
        id=format_batch_id(batch.id),
        endpoint=batch.endpoint,
        model=batch.model,
        errors=types.BatchErrors(errors) if errors else None,
        input_file_id=format_file_id(batch.input_file),
        completion_window=batch.completion_window,
        status=batch.status.value,
        output_file_id=_file_id(batch.output_file),
        error_file_id=_file_id(batch.error_file),
        created_at=_unix(batch.created_at),
        in_progress_at=_seconds(batch.in_progress_at),
        expires_at=_unix(batch.deadline),
        finalizing_at=_seconds(batch.finalizing_at),
        completed_at=_seconds(batch.completed_at),
        failed_at=_seconds(batch.failed_at),
        expired_at=_seconds(batch.expired_at),
        cancelling_at=_seconds(batch.cancelling_at),
        cancelled_at=_seconds(batch.cancelled_at),
        request_counts=types.RequestCounts(batch.total, batch.completed, batch.failed),
        usage=types.Usage(
            input_tokens=batch.input_tokens,
            output_tokens=batch.output_tokens,
            total_tokens=batch.input_tokens + batch.output_tokens,
            input_tokens_details=types.InputTokensDetails(batch.cached_tokens),
            output_tokens_details=types.OutputTokensDetails(batch.reasoning_tokens),
        ),
        metadata=None if batch.metadata is None else dict(batch.metadata),
        x_lowtide=_extension(batch),
    )


def batch_page(batches: Sequence[Batch], *, has_more: bool) -> types.BatchPage:
    """Return one page of batches."""
    data = [batch_object(batch) for batch in batches]
    return types.BatchPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=has_more,
    )


def request_object(batch: BatchId, request: RequestState) -> types.Request:
    """Return one line of a batch."""
    return types.Request(
        id=format_request_id(batch, request.line),
        line=request.line,
        custom_id=request.custom_id,
        status=request.status.value,
        pool=None if request.pool is None else request.pool.value,
        attempts=request.attempts,
        interruptions=request.interruptions,
        escalated=request.escalated,
        queued_at=_seconds(request.queued_at),
        started_at=_seconds(request.started_at),
        finished_at=_seconds(request.finished_at),
        status_code=request.status_code,
        error_code=request.error_code,
        error_message=request.error_message,
    )


def request_page(
    batch: BatchId, requests: Sequence[RequestState], *, has_more: bool
) -> types.RequestPage:
    """Return one page of a batch's lines."""
    data = [request_object(batch, request) for request in requests]
    return types.RequestPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=has_more,
    )


def file_not_named(text: str, param: str) -> NotFound:
    """Return the error for something that is not the id of any file."""
    return NotFound(f"No file {text[:100]!r}: check the id.", param=param)


def _extension(batch: Batch) -> types.Extension:
    finished = batch.completed + batch.failed
    on_dedicated = min(batch.finished_on_dedicated, finished)
    return types.Extension(
        user=batch.user,
        sla_state=batch.sla_state.value,
        deadline=_unix(batch.deadline),
        eta=_seconds(batch.eta),
        pools={"spot": finished - on_dedicated, "dedicated": on_dedicated},
        interruptions=batch.interruptions,
        retries=batch.retries,
        escalations=batch.escalations,
        cost=_cost(batch),
        trace_id=None if batch.trace is None else batch.trace.trace_id,
    )


def _cost(batch: Batch) -> types.Cost:
    cost = cost_of(batch.spot_seconds, batch.dedicated_seconds, wiring.prices())
    return types.Cost(
        currency=cost.currency,
        spot=round(cost.spot, _DIGITS),
        dedicated=round(cost.dedicated, _DIGITS),
        total=round(cost.total, _DIGITS),
        all_dedicated=round(cost.all_dedicated, _DIGITS),
    )


def _file_id(file: FileId | None) -> str | None:
    return None if file is None else format_file_id(file)


def _unix(moment: datetime) -> int:
    return int(moment.timestamp())


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else _unix(moment)
