"""The lines of output and error files, in OpenAI's shape."""

from __future__ import annotations

import msgspec

from lowtide.domain.ids import BatchId, format_request_id
from lowtide.domain.statuses import BatchStatus

_encode = msgspec.json.Encoder().encode


class FinishedLine(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One line of a batch that is over; `body` is the engine's JSON, exactly as it came.

    `status_code` is None when no answer ever came; `error_code` then says why.
    """

    number: int
    custom_id: str
    status_code: int | None = None
    request_id: str = ""
    body: str | None = None
    error_code: str | None = None
    error_message: str | None = None

    @property
    def succeeded(self) -> bool:
        """Whether it belongs in the output file rather than in the error file."""
        return self.status_code is not None and 200 <= self.status_code < 300


NEVER_RAN: dict[BatchStatus, tuple[str, str]] = {
    BatchStatus.CANCELLED: (
        "batch_cancelled",
        "This request was not executed because the batch was cancelled.",
    ),
    BatchStatus.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
}
"""Code and message of lines that a batch ended without."""


def render(batch: BatchId, line: FinishedLine) -> bytes:
    """Return the line with its newline; the body's bytes are embedded as they are.

    Where the engine named no request, the line's own id stands for it.
    """
    head = b'{"id":"%b","custom_id":%b,"response":' % (
        format_request_id(batch, line.number).encode(),
        _encode(line.custom_id),
    )
    if line.status_code is None or line.body is None:
        error = {"code": line.error_code, "message": line.error_message}
        return b'%bnull,"error":%b}\n' % (head, _encode(error))
    return b'%b{"status_code":%d,"request_id":%b,"body":%b},"error":null}\n' % (
        head,
        line.status_code,
        _encode(line.request_id or format_request_id(batch, line.number)),
        line.body.encode(),
    )
