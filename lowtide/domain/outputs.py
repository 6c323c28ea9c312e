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


# In JSON these stand only in strings: it has every control character of ASCII escaped already.
_SEPARATORS = {0x85: r"\u0085", 0x2028: r"\u2028", 0x2029: r"\u2029"}


def escape_separators(text: str) -> str:
    """Return JSON whose strings escape what `str.splitlines` and many readers of lines end one at.

    Those characters are U+0085, U+2028 and U+2029; parsed, the text is the same as before.
    """
    if "\u2028" in text or "\u2029" in text or "\x85" in text:
        return text.translate(_SEPARATORS)
    return text


def render(batch: BatchId, line: FinishedLine) -> bytes:
    """Return the line with its newline; the body is embedded as it is, but for its separators.

    Where the engine named no request, the line's own id stands for it.
    """
    request_id = format_request_id(batch, line.number)
    head = f'{{"id":"{request_id}","custom_id":{_text(line.custom_id)},"response":'
    if line.status_code is None or line.body is None:
        error = f'{{"code":{_text(line.error_code)},"message":{_text(line.error_message)}}}'
        return escape_separators(f'{head}null,"error":{error}}}\n').encode()
    return escape_separators(
        f'{head}{{"status_code":{line.status_code},"request_id":'
        f'{_text(line.request_id or request_id)},"body":{line.body}}},"error":null}}\n'
    ).encode()


def _text(value: str | None) -> str:
    return _encode(value).decode()
