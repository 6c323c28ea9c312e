"""Files and batches as OpenAI's JSON objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowtide.domain.errors import NotFound
from lowtide.domain.ids import format_batch_id, format_file_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from lowtide.domain.batches import Batch
    from lowtide.domain.files import StoredFile
    from lowtide.domain.ids import FileId


def file_object(file: StoredFile) -> dict[str, Any]:
    """Return the File object."""
    return {
        "id": format_file_id(file.id),
        "object": "file",
        "bytes": file.size,
        "created_at": _seconds(file.created_at),
        "expires_at": _seconds(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose.value,
        "status": file.status.value,
        "status_details": file.status_details,
    }


def deleted_file(file_id: str) -> dict[str, Any]:
    """Return what answers a deletion."""
    return {"id": file_id, "object": "file", "deleted": True}


def batch_object(batch: Batch) -> dict[str, Any]:
    """Return the Batch object; `x_lowtide` is ours."""
    errors = [
        {
            "code": problem.code,
            "message": problem.message,
            "param": problem.param,
            "line": problem.line,
        }
        for problem in batch.errors
    ]
    return {
        "id": format_batch_id(batch.id),
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": format_file_id(batch.input_file),
        "completion_window": batch.completion_window,
        "status": batch.status.value,
        "output_file_id": _file_id(batch.output_file),
        "error_file_id": _file_id(batch.error_file),
        "created_at": _seconds(batch.created_at),
        "in_progress_at": _seconds(batch.in_progress_at),
        "expires_at": _seconds(batch.deadline),
        "finalizing_at": _seconds(batch.finalizing_at),
        "completed_at": _seconds(batch.completed_at),
        "failed_at": _seconds(batch.failed_at),
        "expired_at": _seconds(batch.expired_at),
        "cancelling_at": _seconds(batch.cancelling_at),
        "cancelled_at": _seconds(batch.cancelled_at),
        "request_counts": {
            "total": batch.total,
            "completed": batch.completed,
            "failed": batch.failed,
        },
        "usage": {
            "input_tokens": batch.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": batch.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": batch.input_tokens + batch.output_tokens,
        },
        "metadata": batch.metadata,
        "x_lowtide": _extension(batch),
    }


def page_object(items: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Return one page of a list."""
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }


def file_not_named(text: str, param: str) -> NotFound:
    """Return the error for something that is not the id of any file."""
    return NotFound(f"No file {text!r}: check the id.", param=param)


def _extension(batch: Batch) -> dict[str, Any]:
    finished = batch.completed + batch.failed
    on_dedicated = min(batch.finished_on_dedicated, finished)
    return {
        "user": batch.user,
        "sla_state": batch.sla_state.value,
        "deadline": _seconds(batch.deadline),
        "pools": {"spot": finished - on_dedicated, "dedicated": on_dedicated},
        "interruptions": batch.interruptions,
        "retries": batch.retries,
        "escalations": batch.escalations,
    }


def _file_id(file: FileId | None) -> str | None:
    return None if file is None else format_file_id(file)


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
