"""Reading a form with one file as it arrives, without keeping the file."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from multipart import (
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)
from werkzeug.exceptions import HTTPException

from lowtide.domain.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from lowtide.http.bodies import refuse_encoded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask import Request

_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
_ENCODED_FILENAME = re.compile(r";\s*filename\*\s*=\s*([\w-]+)'[\w-]*'([^;\s]*)", re.IGNORECASE)
_CHUNK_BYTES = 1 << 18
_MAX_FIELD_BYTES = 4096
_MAX_PARTS = 16
_FORM_BYTES = 1 << 16


def read_form(
    request: Request, open_file: Callable[[str], Callable[[bytes], None]], *, max_file_bytes: int
) -> dict[str, str]:
    """Return a form's fields; they may stand before and after its part `file`.

    `open_file` gets the file's name and returns what takes its bytes. Raises UnsupportedMediaType,
    PayloadTooLarge for a form that is larger than its file may be, and InvalidRequest.
    """
    fields: dict[str, bytearray] = {}
    take: Callable[[bytes], None] | None = None
    refuse_encoded(request)
    boundary = _boundary(request)
    try:
        for part, piece in _pieces(_chunks(request, max_file_bytes), boundary):
            if part.name != "file":
                value = fields.setdefault(part.name, bytearray())
                value += piece
                if len(value) > _MAX_FIELD_BYTES:
                    raise InvalidRequest("A form field is too long.", param=part.name)
            elif take is None:
                take = open_file(_filename(part))
            elif not piece:
                raise InvalidRequest("The form has two files: send one.", param="file")
            else:
                take(piece)
        texts = {name: value.decode() for name, value in fields.items()}
    except (MultipartError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"The form could not be read ({error}): send complete multipart/form-data.",
            param="file",
        ) from error
    if take is None:
        raise InvalidRequest("The form has no file: add the field 'file'.", param="file")
    return texts


def _boundary(request: Request) -> str:
    kind, options = parse_options_header(request.headers.get("Content-Type", ""))
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise UnsupportedMediaType(
            "Send the file as multipart/form-data with the fields 'file' and 'purpose'."
        )
    return str(options["boundary"])


def _filename(part: MultipartSegment) -> str:
    """Return the name that a part gives its file: RFC 6266 prefers `filename*` (RFC 8187)."""
    bare = _QUOTED.sub("", part.header("Content-Disposition", ""))
    encoded = _ENCODED_FILENAME.search(bare)
    name = ""
    if encoded is not None:
        # An unreadable one is ignored: the plain name beside it is for those who cannot read it.
        with suppress(LookupError, UnicodeDecodeError):
            name = unquote(encoded[2], encoded[1], "strict")
    return name or part.filename or "file"


def _chunks(request: Request, max_file_bytes: int) -> Iterator[bytes]:
    """Yield the body and at its end nothing; refuse one that is larger than its file may be."""
    most = max_file_bytes + _FORM_BYTES
    taken = request.content_length or 0
    while taken <= most:
        chunk = _read(request.stream)
        yield chunk
        if not chunk:
            return
        if request.content_length is None:
            taken += len(chunk)
    raise PayloadTooLarge(
        f"The file is larger than {max_file_bytes} bytes: split it into several.", param="file"
    )


def _read(stream: Any) -> bytes:
    try:
        chunk: bytes = stream.read(_CHUNK_BYTES)
    except HTTPException:
        raise
    except Exception as error:  # each server has its own names for a body that breaks off
        raise InvalidRequest(
            "The request's body broke off: send it again.", param="file"
        ) from error
    return chunk


def _pieces(chunks: Iterator[bytes], boundary: str) -> Iterator[tuple[MultipartSegment, bytes]]:
    """Yield each part with its data, piece by piece; a part starts with an empty piece."""
    with PushMultipartParser(boundary, max_segment_count=_MAX_PARTS) as parser:
        segment: MultipartSegment | None = None
        for chunk in chunks:
            for event in parser.parse(chunk):
                if isinstance(event, MultipartSegment):
                    segment = event
                    yield segment, b""
                elif event and segment is not None:
                    yield segment, event
