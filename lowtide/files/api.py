"""`/v1/files`."""

from __future__ import annotations

import re
from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING

import msgspec
from flask import Response

from lowtide.core.errors import InvalidRequest, NotFound, RangeNotSatisfiable
from lowtide.core.ids import FileId, format_file_id, parse_file_id
from lowtide.http import types
from lowtide.http.application import error_response, json_response
from lowtide.http.bodies import read_form
from lowtide.http.operations import argument, number_argument, page_arguments
from lowtide.http.types import unix, unix_or_none
from lowtide.objects.presigned import MAX_SIGNED_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flask import Request

    from lowtide.files.model import StoredFile
    from lowtide.files.service import Files, Upload
    from lowtide.http.application import Call


def file_object(file: StoredFile) -> types.File:
    """Return the File object."""
    return types.File(
        id=format_file_id(file.id),
        size=file.size,
        created_at=unix(file.created_at),
        expires_at=unix_or_none(file.expires_at),
        filename=file.filename,
        purpose=file.purpose.value,
        status=file.status.value,
        status_details=file.status_details,
        x_lowtide=types.FileExtension(zero_retention=file.zero_retention),
    )


def file_page(files: Sequence[StoredFile], *, has_more: bool) -> types.FilePage:
    """Return one page of files."""
    data = [file_object(file) for file in files]
    return types.FilePage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=has_more,
    )


def file_not_named(text: str, param: str) -> NotFound:
    """Return the error for text that is not a file id."""
    return NotFound(f"File {text[:100]!r} not found: check the id.", param=param)


_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def upload_file(call: Call) -> Response:
    """`POST /v1/files`: a multipart form, read as a stream."""
    return json_response(file_object(_receive(call, call.services.files)))


def get_file(call: Call, file_id: str) -> Response:
    """`GET /v1/files/{file_id}`."""
    return json_response(file_object(call.services.files.get(call.tenant, _id(file_id))))


def file_content(call: Call, file_id: str) -> Response:
    """`GET /v1/files/{file_id}/content`, whole or one byte range."""
    service = call.services.files
    file = service.get(call.tenant, _id(file_id))
    elsewhere = _presigned(call, file)
    if elsewhere is not None:
        return elsewhere
    start, end = 0, file.size
    status, headers = 200, {"Accept-Ranges": "bytes", "ETag": file.e_tag}
    byte_range = _range(call.request.headers.get("Range", ""), file.size)
    if call.request.headers.get("If-Range", headers["ETag"]) != headers["ETag"]:
        byte_range = None
    if byte_range is not None:
        start, end = byte_range
        if start >= end:
            response = error_response(
                RangeNotSatisfiable(f"The file has {file.size} bytes.", param="Range")
            )
            response.headers["Content-Range"] = f"bytes */{file.size}"
            return response
        status = 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    body: Iterator[bytes] = iter(())
    if call.request.method != "HEAD" and file.size:
        pieces = service.content(call.tenant, file.id, start, end, actor=call.caller.actor)
        # Reads the first piece before the response starts: a store failure becomes an error.
        body = chain([next(pieces, b"")], pieces)
    headers["Content-Length"] = str(end - start)
    return Response(body, status, headers, mimetype="application/jsonl")


def _presigned(call: Call, file: StoredFile) -> Response | None:
    """Return the response of a presigned download; None if the bytes go through this process."""
    if call.request.method == "HEAD":
        return None
    downloads, actor = call.services.presigned_downloads, call.caller.actor
    if argument(call.request, "presign") is not None:
        seconds = number_argument(call.request, "presign", max_value=MAX_SIGNED_SECONDS)
        pieces, expires_at = downloads.sign(call.tenant, file.id, seconds, actor=actor)
        response = json_response(
            types.PresignedContent(
                file_id=format_file_id(file.id),
                size=file.size,
                expires_at=unix(expires_at),
                pieces=[types.PresignedPiece(url=piece.url, size=piece.size) for piece in pieces],
            )
        )
    # The object store's entity tags differ from those that If-Range names.
    elif (
        "If-Range" in call.request.headers or (url := downloads.redirect(file, actor=actor)) is None
    ):
        return None
    else:
        response = Response(status=302, headers={"Location": url})
    response.headers["Cache-Control"] = "no-store"
    return response


def list_files(call: Call) -> Response:
    """`GET /v1/files`."""
    arguments = page_arguments(call.request, max_limit=10_000, default=10_000)
    after = None if arguments.after is None else _id(arguments.after, "after")
    files, has_more = call.services.files.page(
        call.tenant,
        after=after,
        limit=arguments.limit,
        newest_first=arguments.newest_first,
        purpose=_purpose(call.request),
    )
    return json_response(file_page(files, has_more=has_more))


def delete_file(call: Call, file_id: str) -> Response:
    """`DELETE /v1/files/{file_id}`."""
    call.services.files.delete(call.tenant, _id(file_id), call.caller.actor)
    return json_response(types.DeletedFile(file_id))


def _purpose(request: Request) -> str | None:
    purpose = argument(request, "purpose")
    if purpose is not None and "\x00" in purpose:
        raise InvalidRequest("purpose must not contain U+0000.", param="purpose")
    return purpose


def _id(text: str, param: str = "file_id") -> FileId:
    file = parse_file_id(text)
    if file is None:
        raise file_not_named(text, param)
    return file


def _receive(call: Call, service: Files) -> StoredFile:
    """Stream the form's file into an upload."""
    with ExitStack() as stack:
        upload: Upload
        name: str

        def open_file(filename: str, fields: Mapping[str, bytearray]) -> Callable[[bytes], None]:
            nonlocal upload, name
            name = filename
            is_sealed = _zero_retention(fields.get("zero_retention", b"").decode())
            upload = stack.enter_context(
                service.upload(call.tenant, call.caller.actor, zero_retention=is_sealed)
            )
            return upload.write

        fields = read_form(call.request, open_file, max_file_bytes=service.max_bytes)
        if _zero_retention(fields.get("zero_retention", "")) and not upload.zero_retention:
            raise InvalidRequest(
                "zero_retention came after the file: send it before, since the file is encrypted as "
                "it arrives.",
                param="zero_retention",
            )
        return upload.finish(name, fields.get("purpose"), _expires_after(fields))


def _zero_retention(text: str) -> bool:
    if text not in {"", "true", "false"}:
        raise InvalidRequest("zero_retention must be true or false.", param="zero_retention")
    return text == "true"


def _expires_after(fields: dict[str, str]) -> int | None:
    """Return the seconds of the form's `expires_after[…]` fields, or None without them."""
    expiry = {
        name: fields[f"expires_after[{name}]"]
        for name in ("anchor", "seconds")
        if f"expires_after[{name}]" in fields
    }
    if not expiry:
        return None
    try:
        return msgspec.convert(expiry, types.ExpiresAfter, strict=False).seconds
    except msgspec.ValidationError as error:
        raise InvalidRequest(
            f"expires_after needs the anchor 'created_at' and seconds from 3600 to 2592000: {error}.",
            param="expires_after",
        ) from error


def _range(header: str, size: int) -> tuple[int, int] | None:
    """Return the half-open range of a Range header (RFC 9110, section 14.1.2).

    None without a header, and for one to ignore: several ranges, another unit, or no range.
    """
    match = _RANGE.fullmatch(header)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size
    if match[2] and int(match[2]) < int(match[1]):
        return None
    return int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
