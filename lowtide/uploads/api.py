"""`/v1/uploads`: files in parts."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from lowtide.core.ids import format_part_id, format_upload_id, parse_upload_id
from lowtide.core.scopes import Scope
from lowtide.files.api import file_object
from lowtide.http import types
from lowtide.http.application import json_response
from lowtide.http.bodies import json_body, read_form
from lowtide.http.operations import Operation, Route
from lowtide.http.types import unix
from lowtide.uploads.model import MAX_PART_BYTES
from lowtide.uploads.store import upload_not_found

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flask import Response

    from lowtide.core.ids import UploadId
    from lowtide.files.model import StoredFile
    from lowtide.http.application import Call
    from lowtide.uploads.model import PartedUpload
    from lowtide.uploads.presigned import PresignedPart
    from lowtide.uploads.service import PartUpload


_MAX_BODY_BYTES = 1 << 20
_decode_creation = msgspec.json.Decoder(types.CreateUpload).decode
_decode_completion = msgspec.json.Decoder(types.CompleteUpload).decode


def upload_object(
    upload: PartedUpload, file: StoredFile | None = None, parts: Sequence[PresignedPart] = ()
) -> types.Upload:
    """Return the Upload object."""
    return types.Upload(
        id=format_upload_id(upload.id),
        size=upload.size,
        created_at=unix(upload.created_at),
        expires_at=unix(upload.expires_at),
        filename=upload.filename,
        status=upload.status.value,
        file=None if file is None else file_object(file),
        x_lowtide=_extension(upload, parts) if parts else msgspec.UNSET,
    )


def _extension(upload: PartedUpload, parts: Sequence[PresignedPart]) -> types.UploadExtension:
    return types.UploadExtension(
        parts=[
            types.PresignedPart(
                id=format_part_id(part.id),
                url=part.url,
                headers=dict(part.headers),
                size=part.size,
                expires_at=unix(upload.expires_at),
            )
            for part in parts
        ]
    )


def create_upload(call: Call) -> Response:
    """`POST /v1/uploads`."""
    body = json_body(call.request, _decode_creation, max_bytes=_MAX_BODY_BYTES)
    expiry = body.expires_after
    upload = call.services.uploads.create(
        call.tenant,
        filename=body.filename,
        size=int(body.size),
        purpose=body.purpose,
        file_expires_after=None if expiry is None else expiry.seconds,
        presigned=body.transfer is not None,
        zero_retention=body.zero_retention,
    )
    parts = call.services.uploads.presigned_parts(upload)
    response = json_response(upload_object(upload, parts=parts))
    if parts:
        response.headers["Cache-Control"] = "no-store"
    return response


def add_part(call: Call, upload_id: str) -> Response:
    """`POST /v1/uploads/{upload_id}/parts`: a multipart form, read as a stream."""
    upload = _id(upload_id)
    with ExitStack() as stack:
        writing = call.services.uploads.part(call.tenant, upload)
        started: PartUpload

        def open_part(_filename: str, _fields: Mapping[str, bytearray]) -> Callable[[bytes], None]:
            nonlocal started
            started = stack.enter_context(writing)
            return started.write

        read_form(call.request, open_part, max_file_bytes=MAX_PART_BYTES, field="data")
        part = started.finish()
    return json_response(
        types.UploadPart(
            id=format_part_id(part.id), created_at=unix(part.created_at), upload_id=upload_id
        )
    )


def complete_upload(call: Call, upload_id: str) -> Response:
    """`POST /v1/uploads/{upload_id}/complete`."""
    upload = _id(upload_id)
    body = json_body(call.request, _decode_completion, max_bytes=_MAX_BODY_BYTES)
    completed, file = call.services.uploads.complete(
        call.tenant, upload, body.part_ids, md5=body.md5, actor=call.caller.actor
    )
    return json_response(upload_object(completed, file))


def cancel_upload(call: Call, upload_id: str) -> Response:
    """`POST /v1/uploads/{upload_id}/cancel`."""
    return json_response(upload_object(call.services.uploads.cancel(call.tenant, _id(upload_id))))


def _id(text: str) -> UploadId:
    upload = parse_upload_id(text)
    if upload is None:
        raise upload_not_found(text)
    return upload


ROUTES = (
    Route(
        "POST",
        "/v1/uploads",
        create_upload,
        Operation(
            "createUpload",
            "Start an upload in parts. It expires after an hour, after a day with the transfer "
            "`presigned`, whose parts go to the URLs in `x_lowtide`.",
            types.Upload,
            body=types.CreateUpload,
            errors=(409, 413, 415),
        ),
        scope=Scope.FILES_WRITE,
    ),
    Route(
        "POST",
        "/v1/uploads/<upload_id>/parts",
        add_part,
        Operation(
            "addUploadPart",
            "Add a part of up to 64 MiB. Parts may be sent in parallel and in any order.",
            types.UploadPart,
            form={
                "type": "object",
                "required": ["data"],
                "properties": {
                    "data": {"type": "string", "contentMediaType": "application/octet-stream"}
                },
            },
            errors=(404, 409, 413, 415),
        ),
        scope=Scope.FILES_WRITE,
    ),
    Route(
        "POST",
        "/v1/uploads/<upload_id>/complete",
        complete_upload,
        Operation(
            "completeUpload",
            "Make a file of the parts, in the order of their ids. Each line is validated.",
            types.Upload,
            body=types.CompleteUpload,
            errors=(404, 409, 413, 415),
        ),
        scope=Scope.FILES_WRITE,
    ),
    Route(
        "POST",
        "/v1/uploads/<upload_id>/cancel",
        cancel_upload,
        Operation(
            "cancelUpload",
            "Cancel an upload. Its parts are deleted.",
            types.Upload,
            errors=(404, 409),
        ),
        scope=Scope.FILES_WRITE,
    ),
)
