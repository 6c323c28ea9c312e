"""What an upstream's HTTP reply means; pure, but for the clock that a Retry-After date needs."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec

from lowtide.domain.outcomes import Answered, Unanswered, Usage

_MOST_TOKENS: Final = 2**31 - 1
_LONGEST_TEXT: Final = 2000
_LONGEST_ID: Final = 256
_MAY_LACK_MODEL: Final = frozenset({400, 404})
_MODEL_CODES: Final = ("model_not_found", "DeploymentNotFound")
_MODEL_MESSAGE: Final = re.compile(
    r"^(the )?(requested )?model\b.{0,600}?\b(does not exist|is not found|not found)\b",
    re.IGNORECASE | re.DOTALL,
)
_ONE_LINE: Final = bytes.maketrans(b"\r\n", b"  ")


@dataclass(frozen=True, slots=True)
class Reply:
    """The parts of an HTTP reply that matter; headers are empty when missing."""

    status: int
    reason: str
    body: bytes
    request_id: str = ""
    retry_after: str = ""


class _Envelope(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw()


class _Tokens(msgspec.Struct):
    """Chat and embeddings count prompt and completion, the Responses API input and output."""

    prompt_tokens: object = None
    completion_tokens: object = None
    input_tokens: object = None
    output_tokens: object = None


class _Refusal(msgspec.Struct):
    """An error in OpenAI's envelope, or without it."""

    error: object = None
    code: object = None
    message: object = None


_decode_refusal = msgspec.json.Decoder(_Refusal).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_tokens = msgspec.json.Decoder(_Tokens).decode
_decode_any = msgspec.json.Decoder(msgspec.Raw).decode


def outcome_of(reply: Reply) -> Answered | Unanswered:
    """Return the outcome; an Answered body is always one valid JSON value on one line.

    A JSON body is kept byte for byte, except that line breaks, which JSON only allows between
    tokens, become spaces. Another body is unusable with a 2xx status, and with any other is
    wrapped into OpenAI's error object.
    """
    retry_after = parse_retry_after(reply.retry_after, time.time())
    request_id = reply.request_id[:_LONGEST_ID]
    try:
        # msgspec checks the syntax of strings that it skips, but not their UTF-8.
        text = reply.body.translate(_ONE_LINE).decode()
        usage = _usage(reply.body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        if 200 <= reply.status < 300:
            return Unanswered("invalid_response", f"The upstream's answer is not JSON: {error}")
        text, usage = _wrapped(reply), Usage()
    lacks_model = reply.status in _MAY_LACK_MODEL and _lacks_model(reply.body)
    return Answered(reply.status, text, request_id, usage, retry_after, lacks_model)


def parse_retry_after(value: str, now: float) -> float | None:
    """Return the seconds to wait from a number or an HTTP date; None when it is neither.

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
    """Return whether an error says that the model is not served here.

    OpenAI: code `model_not_found`; Azure: `DeploymentNotFound`; vLLM, once without the envelope
    and now in it: type `NotFoundError`, "The model `x` does not exist."; Ollama: "model 'x' not
    found". A 404 of anything else, a file or an adapter, is the request's.
    """
    try:
        given = _decode_refusal(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    error = given.error if isinstance(given.error, dict) else {}
    code = error.get("code", given.code)
    message = error.get("message", given.message)
    return code in _MODEL_CODES or (
        isinstance(message, str) and _MODEL_MESSAGE.search(message[:_LONGEST_TEXT]) is not None
    )


def _usage(body: bytes) -> Usage:
    try:
        raw = _decode_envelope(body).usage
    except msgspec.ValidationError:
        _decode_any(body)
        return Usage()
    try:
        tokens = _decode_tokens(raw) if raw else _Tokens()
    except (msgspec.DecodeError, UnicodeError):
        return Usage()
    return Usage(
        _count(tokens.prompt_tokens, tokens.input_tokens),
        _count(tokens.completion_tokens, tokens.output_tokens),
    )


def _count(*candidates: object) -> int:
    for value in candidates:
        if type(value) is int and 0 <= value <= _MOST_TOKENS:
            return value
    return 0


def _wrapped(reply: Reply) -> str:
    said = reply.body[:_LONGEST_TEXT].decode(errors="replace").replace("\x00", "").strip()
    message = said or reply.reason or f"The upstream answered {reply.status}."
    error = {"message": message, "type": "upstream_error", "param": None, "code": None}
    return msgspec.json.encode({"error": error}).decode()
