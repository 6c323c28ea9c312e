"""The errors of the API.

LowtideError
├── InvalidRequest        400  the caller must change the request
├── Unauthenticated       401  missing, unknown or revoked API key
├── Forbidden             403  not allowed for this principal
├── NotFound              404  unknown id, or another tenant's
├── MethodNotAllowed      405  the path exists, but not with this method
├── RequestTimeout        408  the body arrived too slowly
├── Conflict              409  not possible in the object's state
├── PayloadTooLarge       413  over a configured limit
├── UnsupportedMediaType  415  unsupported content type
├── RangeNotSatisfiable   416  no byte of the file is in the range
├── IdempotencyKeyReused  422  Idempotency-Key already used with another body
├── TooManyRequests       429  a tenant limit
└── Unavailable           503  a dependency does not respond; retry
"""

from __future__ import annotations

from typing import ClassVar


class LowtideError(Exception):
    """An error with OpenAI's four fields; `status` and `type` are fixed per class.

    `message` states the problem and its fix; `param` names the request field; `code` is
    machine-readable.
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
        """The message with its cause, which callers must not see."""
        cause = self.__cause__
        return self.message if cause is None else f"{self.message} {cause!r:.500}"


class InvalidRequest(LowtideError):
    """A request that the caller must change."""

    status = 400
    type = "invalid_request_error"


class Unauthenticated(LowtideError):
    """A missing, unknown or revoked API key."""

    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class Forbidden(LowtideError):
    """A call that the principal is not allowed to make."""

    status = 403
    type = "permission_error"
    default_code = "forbidden"


class MissingScope(Forbidden):
    """A call for which the caller's key or token lacks `scope`."""

    default_code = "insufficient_scope"

    def __init__(self, message: str, scope: str) -> None:
        super().__init__(message)
        self.scope = scope


class NotFound(LowtideError):
    """An id that is unknown or another tenant's; the two are indistinguishable."""

    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class MethodNotAllowed(LowtideError):
    """A path that exists, but not with this method."""

    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class RequestTimeout(LowtideError):
    """A request body that arrived too slowly."""

    status = 408
    type = "invalid_request_error"
    default_code = "request_timeout"


class Conflict(LowtideError):
    """An object whose state does not allow the operation."""

    status = 409
    type = "invalid_request_error"
    default_code = "conflict"


class PayloadTooLarge(LowtideError):
    """A body over a configured limit."""

    status = 413
    type = "invalid_request_error"
    default_code = "payload_too_large"


class UnsupportedMediaType(LowtideError):
    """A body of an unsupported content type."""

    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_media_type"


class RangeNotSatisfiable(LowtideError):
    """A range that contains no byte of the file."""

    status = 416
    type = "invalid_request_error"
    default_code = "range_not_satisfiable"


class IdempotencyKeyReused(LowtideError):
    """An Idempotency-Key already used with another body."""

    status = 422
    type = "invalid_request_error"
    default_code = "idempotency_key_reused"


class TooManyRequests(LowtideError):
    """An exceeded limit; retry after `retry_after` seconds. `reason` names the limit in metrics."""

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
    """A dependency that does not respond; retry."""

    status = 503
    type = "server_error"
    default_code = "unavailable"


def check_key_digest(original: bytes | None, digest: bytes | None) -> None:
    """Raise IdempotencyKeyReused if the digests of two bodies under one key differ.

    None stands for an unknown body and matches any digest.
    """
    if original is not None and digest is not None and original != digest:
        raise IdempotencyKeyReused(
            "This Idempotency-Key was already used with another body: send that body, or use a new key.",
            param="Idempotency-Key",
        )
