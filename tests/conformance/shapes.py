"""The shape of each object: its exact keys, validated strictly by OpenAI's own types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from openai.types import Batch, FileObject, Model, Upload

if TYPE_CHECKING:
    from collections.abc import Mapping

ERROR = {"message", "type", "param", "code"}
FILE = {
    "id",
    "object",
    "bytes",
    "created_at",
    "expires_at",
    "filename",
    "purpose",
    "status",
    "status_details",
    "x_lowtide",
}
UPLOAD = {
    "id",
    "object",
    "bytes",
    "created_at",
    "expires_at",
    "filename",
    "purpose",
    "status",
    "file",
}
TIMES = (
    "created_at",
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)
BATCH = {
    "id",
    "object",
    "endpoint",
    "model",
    "errors",
    "input_file_id",
    "completion_window",
    "status",
    "output_file_id",
    "error_file_id",
    *TIMES,
    "request_counts",
    "usage",
    "metadata",
    "x_lowtide",
}
USAGE = {
    "input_tokens",
    "input_tokens_details",
    "output_tokens",
    "output_tokens_details",
    "total_tokens",
}
X_LOWTIDE = {
    "priority",
    "outcomes",
    "sla_state",
    "risk",
    "deadline",
    "eta",
    "data_ends_at",
    "pools",
    "cost",
    "export",
    "zero_retention",
}
OUTCOMES = {"queued", "running", "completed", "failed", "dead_lettered", "expired", "cancelled"}
COST = {"currency", "spot", "dedicated", "total", "all_dedicated"}
BATCH_ERROR = {"code", "message", "param", "line"}
MODEL = {"id", "object", "created", "owned_by", "x_lowtide"}
PAGE = {"object", "data", "first_id", "last_id", "has_more"}
REQUEST = {
    "id",
    "object",
    "line",
    "custom_id",
    "status",
    "dead_lettered",
    "pool",
    "attempts",
    "interruptions",
    "escalated",
    "queued_at",
    "started_at",
    "finished_at",
    "status_code",
    "error_code",
    "error_message",
}


def check_file(raw: Mapping[str, Any]) -> FileObject:
    """Assert that this is a File object, and return it as OpenAI's type."""
    assert set(raw) == FILE
    assert raw["object"] == "file"
    return FileObject.model_validate(raw, strict=True)


def check_upload(raw: Mapping[str, Any]) -> Upload:
    """Assert that this is an Upload object, and return it as OpenAI's type."""
    assert set(raw) == UPLOAD
    assert raw["object"] == "upload"
    if raw["file"] is not None:
        check_file(raw["file"])
    return Upload.model_validate(raw, strict=True)


def check_batch(raw: Mapping[str, Any]) -> Batch:
    """Assert that this is a Batch object, and return it as OpenAI's type."""
    assert set(raw) == BATCH
    assert raw["object"] == "batch"
    assert set(raw["request_counts"]) == {"total", "completed", "failed"}
    assert set(raw["usage"]) == USAGE
    assert set(raw["usage"]["input_tokens_details"]) == {"cached_tokens"}
    assert set(raw["usage"]["output_tokens_details"]) == {"reasoning_tokens"}
    assert set(raw["x_lowtide"]) >= X_LOWTIDE
    assert set(raw["x_lowtide"]["cost"]) == COST
    _check_outcomes(raw["x_lowtide"]["outcomes"], raw["request_counts"])
    if raw["errors"] is not None:
        assert set(raw["errors"]) == {"object", "data"}
        assert raw["errors"]["object"] == "list"
        assert all(set(problem) == BATCH_ERROR for problem in raw["errors"]["data"])
    return Batch.model_validate(raw, strict=True)


def _check_outcomes(outcomes: Mapping[str, int], counts: Mapping[str, int]) -> None:
    """Assert that the outcomes are those that OpenAI's counts sum up."""
    assert set(outcomes) == OUTCOMES
    assert outcomes["dead_lettered"] <= outcomes["failed"]
    assert sum(outcomes.values()) - outcomes["dead_lettered"] == counts["total"]
    assert outcomes["completed"] == counts["completed"]
    failed = outcomes["failed"] + outcomes["expired"] + outcomes["cancelled"]
    assert failed == counts["failed"]


def check_model(raw: Mapping[str, Any]) -> Model:
    """Assert that this is a Model object, and return it as OpenAI's type."""
    assert set(raw) == MODEL
    return Model.model_validate(raw, strict=True)


def check_page(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Assert that this is one page of a list, and return its objects."""
    assert set(raw) == PAGE
    assert raw["object"] == "list"
    data: list[dict[str, Any]] = raw["data"]
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    assert (raw["first_id"], raw["last_id"]) == ends
    return data


def check_error(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Assert that this is an error in OpenAI's shape, and return its four fields."""
    assert set(raw) == {"error"}
    error: dict[str, Any] = raw["error"]
    assert set(error) == ERROR
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert all(error[name] is None or isinstance(error[name], str) for name in ("param", "code"))
    return error
