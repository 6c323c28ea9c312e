"""Every error a caller can meet.

LowtideError
├── InvalidRequest        400  the caller must change the request
├── Unauthenticated       401  no key, or an unknown one
├── Forbidden             403  known, and not allowed to do this
├── NotFound              404  unknown id, or another tenant's
├── RequestTimeout        408  the body came too slowly
├── Conflict              409  not in this state
├── PayloadTooLarge       413  over a configured limit
├── UnsupportedMediaType  415  not the content type this call takes
├── RangeNotSatisfiable   416  no byte of the file lies in the range
├── IdempotencyKeyReused  422  the same Idempotency-Key came with another body before
├── MethodNotAllowed      405  the path exists, the method does not
├── TooManyRequests       429  a tenant limit
└── Unavailable           503  a dependency does not answer; retry
"""

from __future__ import annotations

from typing import ClassVar


class LowtideError(Exception):
    """An error with OpenAI's four fields; `status` and `type` are fixed per class.

    `message` tells what is wrong and how to fix it; `param` names the request field, `code` is
    for machines.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code

    @property
    def for_log(self) -> str:
        """The message and what it came from, which is no caller's business."""
        cause = self.__cause__
        return self.message if cause is None else f"{self.message} {cause!r:.500}"


class InvalidRequest(LowtideError):
    """The caller must change the request."""

    status = 400
    type = "invalid_request_error"


class Unauthenticated(LowtideError):
    """No API key was sent, or an unknown or revoked one."""

    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class Forbidden(LowtideError):
    """The caller is known, and not allowed to do this."""

    status = 403
    type = "permission_error"
    default_code = "forbidden"


class NotFound(LowtideError):
    """The id is unknown to this tenant; another tenant's id looks the same."""

    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class MethodNotAllowed(LowtideError):
    """The path exists, but not with this method."""

    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class RequestTimeout(LowtideError):
    """The body of a request came too slowly."""

    status = 408
    type = "invalid_request_error"
    default_code = "request_timeout"


class Conflict(LowtideError):
    """The object is not in a state that allows this."""

    status = 409
    type = "invalid_request_error"
    default_code = "conflict"


class PayloadTooLarge(LowtideError):
    """The body is over a configured limit."""

    status = 413
    type = "invalid_request_error"
    default_code = "payload_too_large"


class UnsupportedMediaType(LowtideError):
    """The body is not of the content type that this call takes."""

    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_media_type"


class RangeNotSatisfiable(LowtideError):
    """The range begins behind the file's last byte."""

    status = 416
    type = "invalid_request_error"
    default_code = "range_not_satisfiable"


class IdempotencyKeyReused(LowtideError):
    """An Idempotency-Key came with another body before, and stands for that call."""

    status = 422
    type = "invalid_request_error"
    default_code = "idempotency_key_reused"


class TooManyRequests(LowtideError):
    """A limit is reached; retry after `retry_after` seconds. `reason` names the limit in metrics."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        reason: str = "unknown",
        retry_after: float = 1.0,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.reason = reason
        self.retry_after = retry_after


class Unavailable(LowtideError):
    """A dependency does not answer at the moment; retry."""

    status = 503
    type = "server_error"
    default_code = "unavailable"


def check_key_digest(first: bytes | None, now: bytes | None) -> None:
    """Raise IdempotencyKeyReused when the digests of two bodies under one key differ.

    None fits any: where there is none, nothing is known of the body.
    """
    if first is not None and now is not None and first != now:
        raise IdempotencyKeyReused(
            "This Idempotency-Key came with another body before: repeat that body, or use a new key.",
            param="Idempotency-Key",
        )
