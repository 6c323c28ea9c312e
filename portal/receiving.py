"""Uploads from a browser: the drop zone, progress, and the same checks as the API."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from nicegui import app, ui
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse

from portal.formats import size
from portal.services import in_thread, run_blocking
from portal.sessions import principal_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from lowtide.core.ids import TenantId
    from lowtide.files.model import StoredFile
    from lowtide.files.service import Checked, Files, Upload
    from lowtide.tenants.sign_in import Principal

    Take = Callable[[Principal, str, AsyncIterator[bytes]], Awaitable[None]]


PATH: Final = "/upload/file"
PAGE_HEADER: Final = "X-Page"
NAME_HEADER: Final = "X-File-Name"


class Arrivals:
    """Streams upload bodies to open pages; nothing is stored on this machine."""

    def __init__(self) -> None:
        self._handlers: dict[str, Take] = {}

    def install(self) -> None:
        """Register the upload route."""
        app.add_route(PATH, self._receive, methods=["POST"])

    def expect(self, take: Take) -> str:
        """Return a token that routes uploads to the page being built until it is closed."""
        token = secrets.token_urlsafe(16)
        self._handlers[token] = take
        ui.context.client.on_delete(lambda: self._handlers.pop(token, None))
        return token

    async def _receive(self, request: Request) -> Response:
        """Receive a file: the body holds its bytes, a header its name."""
        principal = principal_of(request.session)
        take = self._handlers.get(request.headers.get(PAGE_HEADER, ""))
        if principal is None or take is None:
            return PlainTextResponse("This page has expired: reload it.", status_code=404)
        name = unquote(request.headers.get(NAME_HEADER, "file"))
        try:
            await take(principal, name, request.stream())
        except ClientDisconnect:
            return PlainTextResponse("The upload was interrupted.", status_code=400)
        return PlainTextResponse("received")


CHUNK_BYTES = 1 << 20


async def receive(
    files: Files,
    tenant: TenantId,
    name: str,
    body: AsyncIterator[bytes],
    *,
    on_progress: Callable[[Checked], None],
    actor: str,
) -> tuple[StoredFile, Checked]:
    """Store and check a file while it arrives; call `on_progress` with the progress about every MiB.

    Raises the errors of an upload, and then leaves nothing behind.
    """
    async with _open_upload(files, tenant, actor) as upload:
        async for chunk in _merged(body):
            await run_blocking(partial(upload.write, chunk))
            on_progress(upload.checked)
        stored = await in_thread(lambda: upload.finish(name, None))
        return stored, upload.checked


async def _merged(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the same bytes in fewer pieces: each costs a thread switch."""
    buffer = bytearray()
    async for piece in pieces:
        buffer += piece
        if len(buffer) >= CHUNK_BYTES:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)


@asynccontextmanager
async def _open_upload(files: Files, tenant: TenantId, actor: str) -> AsyncIterator[Upload]:
    upload = await in_thread(lambda: files.upload(tenant, actor))
    await in_thread(upload.__enter__)
    try:
        yield upload
    except BaseException as error:
        failure = error
        await run_blocking(lambda: upload.__exit__(type(failure), failure, failure.__traceback__))
        raise
    await run_blocking(lambda: upload.__exit__(None, None, None))


_HEADER: Final = """
<div class="drop">
  <q-icon name="upload_file" size="32px" aria-hidden="true"></q-icon>
  <span class="drop-title">Drop a JSONL file here, or choose a file</span>
  <span class="muted small" v-if="!props.isUploading">The file is validated during the upload. Nothing runs until you create a batch.</span>
  <div class="drop-progress" v-if="props.isUploading">
    <q-linear-progress :value="props.uploadProgress" rounded size="8px" aria-label="Upload progress" />
    <span class="muted small">{{ props.uploadProgressLabel }} of {{ props.uploadSizeLabel }} uploaded</span>
  </div>
  <q-uploader-add-trigger></q-uploader-add-trigger>
</div>
"""
_HEADERS: Final = (
    f'files => [{{ name: "{NAME_HEADER}", value: encodeURIComponent(files[0].name) }}, '
    f'{{ name: "{PAGE_HEADER}", value: "%s" }}]'
)


class DropZone:
    """A drop zone and file picker; uploads one file at a time to the page that `token` routes to.

    `max_bytes` is the max file size in bytes.
    """

    def __init__(self, token: str, *, max_bytes: int) -> None:
        self._upload = ui.upload(
            auto_upload=True,
            max_file_size=max_bytes,
            on_rejected=lambda: ui.notify(
                f"File rejected: upload one file at a time, of at most {size(max_bytes)}.",
                type="negative",
            ),
        ).props("flat bordered send-raw accept=.jsonl,.ndjson,.json,.txt")
        self._upload.props["url"] = PATH
        self._upload.props[":headers"] = _HEADERS % token
        # Reset only after the response: a reset aborts a running upload.
        for event in ("uploaded", "failed"):
            self._upload.on(event, self._upload.reset, args=[])
        self._upload.classes("drop-zone")
        self._upload.add_slot("header", _HEADER)
        self._upload.add_slot("list", "<span></span>")
