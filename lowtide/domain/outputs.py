"""The lines of output and error files, in OpenAI's shape."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from lowtide.domain.ids import BatchId, format_request_id
from lowtide.domain.statuses import BatchStatus

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class FinishedLine:
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
    """Return the line with its newline; the body's bytes are embedded as they are."""
    head = f'{{"id":"{format_request_id(batch, line.number)}","custom_id":'.encode() + _encode(
        line.custom_id
    )
    if line.status_code is None or line.body is None:
        error = {"code": line.error_code, "message": line.error_message}
        return head + b',"response":null,"error":' + _encode(error) + b"}\n"
    return (
        head
        + f',"response":{{"status_code":{line.status_code},"request_id":'.encode()
        + _encode(line.request_id)
        + b',"body":'
        + line.body.encode()
        + b'},"error":null}\n'
    )
