"""Request bodies: JSON, idempotency keys, and multipart forms read as a stream."""

from __future__ import annotations

import re
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import msgspec
from msgspec.structs import asdict
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header
from werkzeug.exceptions import HTTPException

from lowtide.core.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from flask import Request


_MAX_IDEMPOTENCY_KEY = 256
_FIELD = re.compile(r"\$\.((?:x_lowtide\.)?\w+)")
_MISSING = re.compile(r"missing required field `(\w+)`")
_Body = TypeVar("_Body")


def json_body(request: Request, decode: Callable[[bytes], _Body], *, max_bytes: int) -> _Body:
    """Decode a JSON body of at most `max_bytes` bytes.

    Raises UnsupportedMediaType, PayloadTooLarge, or InvalidRequest, which names the field.
    """
    refuse_encoded(request)
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send JSON with Content-Type: application/json.")
    # A body whose Content-Length is too large is rejected unread.
    body = (
        request.stream.read(max_bytes + 1) if (request.content_length or 0) <= max_bytes else None
    )
    if body is None or len(body) > max_bytes:
        raise PayloadTooLarge(f"The body is larger than {max_bytes} bytes.")
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        field = _FIELD.search(str(error)) or _MISSING.search(str(error))
        raise InvalidRequest(
            f"Invalid request body: {error}.", param=field[1] if field else None
        ) from error


def refuse_encoded(request: Request) -> None:
    """Raise UnsupportedMediaType for a compressed body, whose decoded size cannot be limited."""
    coding = request.headers.get("Content-Encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise UnsupportedMediaType(
            f"Content-Encoding {coding[:100]!r} is not supported: send the body uncompressed.",
            code="unsupported_content_encoding",
        )


def digest_of(body: msgspec.Struct) -> bytes:
    """Return a digest of a body, independent of its formatting; missing fields count as null."""
    fields = {name: value for name, value in asdict(body).items() if value is not None}
    return sha256(msgspec.json.encode(fields, order="deterministic")).digest()


def idempotency_key(request: Request) -> str | None:
    """Return the key that identifies retries of a call, or None; raises InvalidRequest."""
    key = request.headers.get("Idempotency-Key", "").strip()
    if len(key) > _MAX_IDEMPOTENCY_KEY:
        raise InvalidRequest(
            f"Idempotency-Key has {len(key)} characters; at most {_MAX_IDEMPOTENCY_KEY} are allowed.",
            param="Idempotency-Key",
        )
    return key or None


_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
_ENCODED_FILENAME = re.compile(r";\s*filename\*\s*=\s*([\w-]+)'[\w-]*'([^;\s]*)", re.IGNORECASE)
_CHUNK_BYTES = 1 << 18
_MAX_FIELD_BYTES = 4096
_MAX_PARTS = 16
_FORM_BYTES = 1 << 16


def read_form(
    request: Request,
    open_file: Callable[[str, Mapping[str, bytearray]], Callable[[bytes], None]],
    *,
    max_file_bytes: int,
    field: str = "file",
) -> dict[str, str]:
    """Read a form, and return its fields, which may come before and after the file in `field`.

    `open_file` gets the file's name and the fields before it, and returns a function that takes its
    bytes. Raises
    UnsupportedMediaType, InvalidRequest, and PayloadTooLarge for a form over the limit of its file.
    """
    fields: dict[str, bytearray] = {}
    write: Callable[[bytes], None] | None = None
    refuse_encoded(request)
    boundary = _boundary(request, field)
    try:
        for part, piece in _pieces(_chunks(request, max_file_bytes, field), boundary):
            if part.name != field:
                value = fields.setdefault(part.name, bytearray())
                value += piece
                if len(value) > _MAX_FIELD_BYTES:
                    raise InvalidRequest("A form field is too long.", param=part.name)
            elif write is None:
                write = open_file(_filename(part), fields)
            elif not piece:
                raise InvalidRequest("The form has two files: send one.", param=field)
            else:
                write(piece)
        texts = {name: value.decode() for name, value in fields.items()}
    except (MultipartError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"The form is malformed ({error}): send complete multipart/form-data.",
            param=field,
        ) from error
    if write is None:
        raise InvalidRequest(f"The form has no file: add the field {field!r}.", param=field)
    return texts


def _boundary(request: Request, field: str) -> str:
    kind, options = parse_options_header(request.headers.get("Content-Type", ""))
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise UnsupportedMediaType(
            f"Send multipart/form-data with the file in the field {field!r}."
        )
    return str(options["boundary"])


def _filename(part: MultipartSegment) -> str:
    """Return the file name of a part; RFC 6266 prefers `filename*` (RFC 8187)."""
    bare = _QUOTED.sub("", part.header("Content-Disposition", ""))
    encoded = _ENCODED_FILENAME.search(bare)
    name = ""
    if encoded is not None:
        # If it cannot be decoded, the plain name beside it is used.
        with suppress(LookupError, UnicodeDecodeError):
            name = unquote(encoded[2], encoded[1], "strict")
    return name or part.filename or "file"


def _chunks(request: Request, max_file_bytes: int, field: str) -> Iterator[bytes]:
    """Yield the body and a final empty chunk; raises PayloadTooLarge above the file's limit."""
    max_bytes = max_file_bytes + _FORM_BYTES
    size = request.content_length or 0
    while size <= max_bytes:
        chunk = _read(request.stream, field)
        yield chunk
        if not chunk:
            return
        if request.content_length is None:
            size += len(chunk)
    raise PayloadTooLarge(
        f"The {field} is larger than {max_file_bytes} bytes: split it into several.", param=field
    )


def _read(stream: Any, field: str) -> bytes:
    try:
        chunk: bytes = stream.read(_CHUNK_BYTES)
    except HTTPException:
        raise
    except Exception as error:  # each server has its own errors for a truncated body
        raise InvalidRequest(
            "The request body is incomplete: send it again.", param=field
        ) from error
    return chunk


def _pieces(chunks: Iterator[bytes], boundary: str) -> Iterator[tuple[MultipartSegment, bytes]]:
    """Yield the parts with their data in pieces; a part starts with an empty piece."""
    with PushMultipartParser(boundary, max_segment_count=_MAX_PARTS) as parser:
        segment: MultipartSegment | None = None
        for chunk in chunks:
            for event in parser.parse(chunk):
                if isinstance(event, MultipartSegment):
                    segment = event
                    yield segment, b""
                elif event and segment is not None:
                    yield segment, event
