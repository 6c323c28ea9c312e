"""JSON bodies of calls, and the header that makes a call safe to repeat."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar

import msgspec
from msgspec.structs import asdict

from lowtide.domain.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Request

_MAX_IDEMPOTENCY_KEY = 256
_PLACE = re.compile(r"\$\.(\w+)")
_Body = TypeVar("_Body")


def json_body(request: Request, decode: Callable[[bytes], _Body], *, most: int) -> _Body:
    """Return a call's JSON body of at most `most` bytes.

    Raises UnsupportedMediaType, PayloadTooLarge, or InvalidRequest, which names the field.
    """
    refuse_encoded(request)
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send JSON, with Content-Type: application/json.")
    # Refused by its length alone, where it has one: nothing of it is read then.
    body = request.stream.read(most + 1) if (request.content_length or 0) <= most else None
    if body is None or len(body) > most:
        raise PayloadTooLarge(f"The body is larger than {most} bytes.")
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        place = _PLACE.search(str(error))
        raise InvalidRequest(
            f"The body is not what this call takes: {error}.", param=place[1] if place else None
        ) from error


def refuse_encoded(request: Request) -> None:
    """Raise UnsupportedMediaType for a compressed body: its size could not be bounded as it comes."""
    coding = request.headers.get("Content-Encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise UnsupportedMediaType(
            f"A body of Content-Encoding {coding[:100]!r} is not taken: send it as it is, without "
            "compression.",
            code="unsupported_content_encoding",
        )


def digest_of(body: msgspec.Struct) -> bytes:
    """Return what tells a body from others, however it is written; absent fields count as null."""
    given = {name: value for name, value in asdict(body).items() if value is not None}
    return sha256(msgspec.json.encode(given, order="deterministic")).digest()


def idempotency_key(request: Request) -> str | None:
    """Return the key under which a retry finds what the first call did; None without one."""
    key = request.headers.get("Idempotency-Key", "").strip()
    if len(key) > _MAX_IDEMPOTENCY_KEY:
        raise InvalidRequest(
            f"Idempotency-Key has {len(key)} characters; at most {_MAX_IDEMPOTENCY_KEY} are allowed.",
            param="Idempotency-Key",
        )
    return key or None
