"""Status, type and code of each error class."""

from __future__ import annotations

import pytest

from lowtide.core import errors


@pytest.mark.parametrize(
    ("kind", "status", "type_", "code"),
    [
        (errors.LowtideError, 500, "server_error", None),
        (errors.InvalidRequest, 400, "invalid_request_error", None),
        (errors.Unauthenticated, 401, "authentication_error", "invalid_api_key"),
        (errors.NotFound, 404, "invalid_request_error", "not_found"),
        (errors.MethodNotAllowed, 405, "invalid_request_error", "method_not_allowed"),
        (errors.Conflict, 409, "invalid_request_error", "conflict"),
        (errors.PayloadTooLarge, 413, "invalid_request_error", "payload_too_large"),
        (errors.UnsupportedMediaType, 415, "invalid_request_error", "unsupported_media_type"),
        (errors.RangeNotSatisfiable, 416, "invalid_request_error", "range_not_satisfiable"),
        (errors.TooManyRequests, 429, "rate_limit_error", "rate_limit_exceeded"),
        (errors.Unavailable, 503, "server_error", "unavailable"),
    ],
)
def test_error_class_has_status_type_and_code(
    kind: type[errors.LowtideError], status: int, type_: str, code: str | None
) -> None:
    error = kind("What to do.", param="file")
    assert (error.status, error.type, error.code) == (status, type_, code)
    assert (error.message, error.param, str(error)) == ("What to do.", "file", "What to do.")
    assert kind("x", code="own").code == "own"
