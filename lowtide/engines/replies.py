"""Interpretation of an upstream's HTTP replies; pure but for the clock of Retry-After dates."""

from __future__ import annotations

import codecs
import math
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from lowtide.engines.outcomes import Answered, Unanswered, Usage

if TYPE_CHECKING:
    from lowtide.engines.receiving import Decoder


_MAX_TOKENS: Final = 2**31 - 1
_LONGEST_TEXT: Final = 2000
_LONGEST_ID: Final = 256
_MAY_LACK_MODEL: Final = frozenset({400, 403, 404})
_MODEL_CODES: Final = ("model_not_found", "DeploymentNotFound")
_MODEL_MESSAGE: Final = re.compile(
    r"^(the )?(requested )?model\b.{0,600}?\b(does not exist|is not found|not found)\b",
    re.IGNORECASE | re.DOTALL,
)
_FORBIDDEN: Final = 403
_MAY_LACK_QUOTA: Final = frozenset({400, 403, 429})
_QUOTA_CODES: Final = ("insufficient_quota", "billing_not_active", "billing_hard_limit_reached")
_CONTENT_CODE: Final = re.compile(r"^(content_(filter|policy)|ResponsibleAIPolicyViolation)")
_UNKNOWN_ERROR: Final = 500
_HTTP_ERRORS: Final = frozenset(str(status) for status in range(400, 600))
_NO_ERROR: Final = frozenset({b"", b"null", b"false", b'""', b"{}", b"[]"})
_LONGEST_NO_ERROR: Final = max(map(len, _NO_ERROR))
# JSON as Python objects takes over twenty times its size, so longer bodies are not inspected.
_LONGEST_ERROR: Final = 1 << 20
_LONGEST_USAGE: Final = 1 << 16
_PIECE: Final = 1 << 18
# Codes and types of OpenAI, Anthropic, vLLM and others: `rate_limit_exceeded`, `BadRequestError`, …
_ERROR_WORDS: Final = {
    429: re.compile(r"rate_?limit|insufficient_quota|too_?many"),
    503: re.compile(r"overloaded|unavailable"),
    401: re.compile(r"authentication|unauthorized|api_key"),
    403: re.compile(r"permission|forbidden"),
    404: re.compile(r"not_?found"),
    400: re.compile(r"invalid|bad_?request|context_length|content_(filter|policy)|unsupported"),
}
_ONE_LINE: Final = bytes.maketrans(b"\r\n", b"  ")


@dataclass(frozen=True, slots=True)
class Reply:
    """The relevant parts of an HTTP reply; missing headers are empty.

    `decoder` has yet to be applied to an encoded body.
    """

    status: int
    reason: str
    body: bytes
    request_id: str = ""
    retry_after: str = ""
    location: str = ""
    decoder: Decoder | None = None


class _Envelope(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    object: msgspec.Raw = msgspec.Raw()


class _Tokens(msgspec.Struct):
    """Token counts: prompt and completion in chat and embeddings, input and output in Responses."""

    prompt_tokens: object = None
    completion_tokens: object = None
    input_tokens: object = None
    output_tokens: object = None
    prompt_tokens_details: object = None
    completion_tokens_details: object = None
    input_tokens_details: object = None
    output_tokens_details: object = None


class _Refusal(msgspec.Struct):
    """An error, with or without OpenAI's envelope."""

    error: object = None
    code: object = None
    type: object = None
    message: object = None


_decode_refusal = msgspec.json.Decoder(_Refusal).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_tokens = msgspec.json.Decoder(_Tokens).decode
_decode_any = msgspec.json.Decoder(msgspec.Raw).decode


def outcome_of(reply: Reply) -> Answered | Unanswered:
    """Return the outcome; an Answered body is always one valid JSON value on one line.

    A JSON body is kept byte for byte, except that line breaks, which JSON allows only between
    tokens, become spaces. Any other body is unusable with a 2xx status; with another status it is
    wrapped into OpenAI's error object.

    A 2xx answer that is not an object, or contains an error, gets the error's status, or else 500.
    """
    retry_after = parse_retry_after(reply.retry_after, time.time())
    request_id = reply.request_id[:_LONGEST_ID]
    try:
        _check_text(reply.body)
        envelope = _envelope(reply.body)
        body = _join_lines(reply.body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        if 200 <= reply.status < 300:
            return Unanswered("invalid_response", f"The engine's response is not JSON: {error}")
        body, envelope = _error_body(reply), None
    status = reply.status
    if 200 <= status < 300 and (envelope is None or _is_error(envelope)):
        status = _status_of(reply.body)
    usage = Usage() if envelope is None else _usage(envelope.usage)
    return Answered(
        status,
        body,
        request_id,
        usage,
        retry_after,
        lacks_model=status in _MAY_LACK_MODEL and _lacks_model(reply.body),
        out_of_quota=status in _MAY_LACK_QUOTA and _lacks_quota(reply.body),
        refuses_content=status == _FORBIDDEN and _refuses_content(reply.body),
    )


def _join_lines(body: bytes) -> bytes:
    """Return JSON with its line breaks replaced by spaces."""
    return body.translate(_ONE_LINE) if b"\n" in body or b"\r" in body else body


def _check_text(body: bytes) -> None:
    """Raise UnicodeError unless the body is UTF-8: msgspec does not check strings that it skips."""
    if not body.isascii():
        decoder = codecs.getincrementaldecoder("utf-8")()
        # Decoded whole, it would take up to four times its size.
        for start in range(0, len(body), _PIECE):
            decoder.decode(body[start : start + _PIECE])
        decoder.decode(b"", final=True)


def parse_retry_after(value: str, now: float) -> float | None:
    """Return the seconds to wait, from a number or an HTTP date; None if it is neither.

    `now` is in Unix seconds. A date in the past means 0.
    """
    value = value.strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
        return max(seconds, 0.0)
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _lacks_model(body: bytes) -> bool:
    """Return whether an error means that the model is not served here.

    OpenAI: code `model_not_found`; Azure: `DeploymentNotFound`; vLLM, formerly without the envelope
    and now in it: type `NotFoundError`, "The model `x` does not exist."; Ollama: "model 'x' not
    found". A 404 for anything else, such as a file or an adapter, is the request's fault.
    """
    error = _error_of(body)
    message = error.get("message")
    return error.get("code") in _MODEL_CODES or (
        isinstance(message, str) and _MODEL_MESSAGE.search(message[:_LONGEST_TEXT]) is not None
    )


def _lacks_quota(body: bytes) -> bool:
    """Return whether the account is out of quota, which waiting does not fix (OpenAI's 429)."""
    error = _error_of(body)
    return error.get("code") in _QUOTA_CODES or error.get("type") in _QUOTA_CODES


def _refuses_content(body: bytes) -> bool:
    """Return whether a 403 is about the request's content rather than the key.

    Azure: `content_filter` with an inner code; OpenRouter: metadata with `flagged_input`.
    """
    error = _error_of(body)
    inner, metadata = error.get("innererror"), error.get("metadata")
    codes = [error.get("code"), error.get("type")]
    if isinstance(inner, dict):
        codes.append(inner.get("code"))
    if isinstance(metadata, dict) and "flagged_input" in metadata:
        return True
    return any(isinstance(code, str) and _CONTENT_CODE.search(code) for code in codes)


def _error_of(body: bytes) -> dict[str, Any]:
    """Return the fields of an error, with or without its envelope; empty if it is not an object."""
    if len(body) > _LONGEST_ERROR:
        return {}
    try:
        refusal = _decode_refusal(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}
    fields = {"code": refusal.code, "type": refusal.type, "message": refusal.message}
    return fields | (refusal.error if isinstance(refusal.error, dict) else {})


def _envelope(body: bytes) -> _Envelope | None:
    """Return the relevant parts of an answer; None for JSON that is not an object."""
    try:
        return _decode_envelope(body)
    except msgspec.ValidationError:
        _decode_any(body)
        return None


def _is_error(envelope: _Envelope) -> bool:
    """Return whether an answer is an error in OpenAI's envelope, or in vLLM's before 0.10."""
    error, kind = envelope.error, envelope.object
    has_error = len(error) > _LONGEST_NO_ERROR or bytes(error) not in _NO_ERROR
    return has_error or (len(kind) < _LONGEST_ID and bytes(kind) == b'"error"')


def _status_of(body: bytes) -> int:
    """Return the HTTP status that an error stands for; 500 if it names none."""
    if len(body) > _LONGEST_ERROR:
        return _UNKNOWN_ERROR
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return _UNKNOWN_ERROR
    error = value.get("error") or value if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return _UNKNOWN_ERROR
    labels = [str(error.get(name) or "").lower() for name in ("code", "status", "type")]
    for text in labels:
        if text in _HTTP_ERRORS:
            return int(text)
    for status, pattern in _ERROR_WORDS.items():
        if any(pattern.search(text) for text in labels):
            return status
    return _UNKNOWN_ERROR


def _usage(raw: msgspec.Raw) -> Usage:
    if not 0 < len(raw) <= _LONGEST_USAGE:
        return Usage()
    try:
        tokens = _decode_tokens(raw)
    except (msgspec.DecodeError, UnicodeError):
        return Usage()
    return Usage(
        _count(tokens.prompt_tokens, tokens.input_tokens),
        _count(tokens.completion_tokens, tokens.output_tokens),
        _part("cached_tokens", tokens.prompt_tokens_details, tokens.input_tokens_details),
        _part("reasoning_tokens", tokens.completion_tokens_details, tokens.output_tokens_details),
    )


def _part(name: str, *details: object) -> int:
    return _count(*(detail.get(name) for detail in details if isinstance(detail, dict)))


def _count(*candidates: object) -> int:
    for value in candidates:
        if type(value) is int and 0 <= value <= _MAX_TOKENS:
            return value
    return 0


def _error_body(reply: Reply) -> bytes:
    text = reply.body[:_LONGEST_TEXT].decode(errors="replace").replace("\x00", "").strip()
    message = text or reply.reason or f"The engine returned HTTP {reply.status}."
    error = {"message": message, "type": "upstream_error", "param": None, "code": None}
    return msgspec.json.encode({"error": error})
