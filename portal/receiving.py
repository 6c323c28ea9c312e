"""Uploads from a browser: parts that open pages send, and the same checks as the API."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec
from nicegui import app, background_tasks, ui
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse

from lowtide.core.errors import LowtideError, NotFound, PayloadTooLarge, Unavailable
from lowtide.core.ids import format_part_id
from lowtide.files.model import Purpose
from lowtide.uploads.model import MAX_PARTS
from portal.services import in_thread, lowtide, run_blocking
from portal.sessions import principal_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from lowtide.core.ids import PartId, TenantId, UploadId
    from lowtide.files.model import StoredFile
    from lowtide.files.service import Checked
    from lowtide.tenants.sign_in import Principal
    from lowtide.uploads.service import PartUpload, Uploads


_Result = TypeVar("_Result")

PATH: Final = "/upload/"
PAGE_HEADER: Final = "X-Page"
UPLOAD_HEADER: Final = "X-Upload"
PART_BYTES: Final = 8 << 20
MAX_RUNNING: Final = 8
"""Max concurrent parts of all pages; docs/operations.md has the memory they need."""
CHUNK_BYTES: Final = 1 << 20
_MAX_BODY_BYTES: Final = 1 << 20
# Each check holds a request of the max size twice.
_CHECKS: Final = 2
# Until an outage of the database or the object store has ended, the parts are kept.
_RETRY_DELAYS: Final = (1.0, 2.0, 4.0, 8.0, 16.0)

_running: Final[list[Receiver]] = []
_checks: Final = asyncio.Semaphore(_CHECKS)


class UploadPage(Protocol):
    """An open page that receives one file at a time."""

    @property
    def tenant(self) -> TenantId:
        """The tenant of the next file."""
        ...

    def begin(self) -> None:
        """Start a file."""
        ...

    def check(self, filename: str) -> None:
        """Show that all of the file is here and is being checked."""
        ...

    def progress(self, checked: Checked) -> None:
        """Show the progress of the checks."""
        ...

    async def accept(self, stored: StoredFile, checked: Checked) -> None:
        """Show the checked file, or its problems."""
        ...

    def fail(self, message: str) -> None:
        """Show that there is no file."""
        ...


class Start(msgspec.Struct):
    """The file that a page begins to send."""

    name: str
    size: int


class Receiver:
    """The files of an open page, one at a time; a new one replaces the last."""

    def __init__(self, uploads: Uploads, page: UploadPage) -> None:
        self._uploads = uploads
        self._page = page
        self._file: _Receiving | None = None

    async def start(self, principal: Principal, body: bytes) -> object:
        """Start a file; return its upload and the size of its parts."""
        principal.require_operator()
        file = msgspec.json.decode(body, type=Start)
        await self.cancel()
        self._page.begin()
        tenant = self._page.tenant
        upload = await in_thread(
            lambda: self._uploads.create(
                tenant,
                filename=file.name,
                size=file.size,
                purpose=Purpose.BATCH.value,
                file_expires_after=None,
            )
        )
        self._file = _Receiving(self._uploads, self._page, tenant, upload.id, upload.filename)
        part_bytes = max(PART_BYTES, -(-file.size // MAX_PARTS))
        return {"upload": upload.id.hex, "part_bytes": part_bytes}

    async def part(self, upload: str, body: AsyncIterator[bytes]) -> object:
        """Add a part; return its id. Raises Unavailable over the max number of parts."""
        file = self._named(upload)
        if len(_running) >= MAX_RUNNING:
            raise Unavailable("Too many uploads are running: trying again.")
        _running.append(self)
        try:
            return {"id": await file.add(body)}
        finally:
            _running.remove(self)

    async def complete(self, principal: Principal, upload: str, body: bytes) -> object:
        """Check the file in the background; the page shows the result."""
        self._named(upload).check(msgspec.json.decode(body, type=list[str]), principal.name)
        return {}

    async def cancel(self) -> object:
        """Cancel an upload that is not complete; the scheduler deletes its parts."""
        file, self._file = self._file, None
        if file is not None:
            # An upload that is not cancelled expires.
            with suppress(LowtideError):
                await file.cancel()
        return {}

    def _named(self, upload: str) -> _Receiving:
        if self._file is None or self._file.upload.hex != upload:
            raise NotFound("Another upload was started on this page.")
        return self._file


class _Receiving:
    """One file that a page sends."""

    def __init__(
        self, uploads: Uploads, page: UploadPage, tenant: TenantId, upload: UploadId, filename: str
    ) -> None:
        self.upload = upload
        self._uploads = uploads
        self._page = page
        self._tenant = tenant
        self._filename = filename
        self._is_checked = self._is_cancelled = False

    async def add(self, body: AsyncIterator[bytes]) -> str:
        part = await in_thread(lambda: self._uploads.part(self._tenant, self.upload))
        return format_part_id(await receive(part, body))

    def check(self, parts: Sequence[str], actor: str) -> None:
        # The request is repeated if its answer was lost.
        if not self._is_checked:
            self._is_checked = True
            self._page.check(self._filename)
            background_tasks.create(self._check(parts, actor))

    async def cancel(self) -> None:
        self._is_cancelled = True
        if not self._is_checked:
            await in_thread(lambda: self._uploads.cancel(self._tenant, self.upload))

    async def _check(self, parts: Sequence[str], actor: str) -> None:
        checks: list[Checked] = []
        loop = asyncio.get_running_loop()

        def watch(checked: Checked) -> None:
            checks.append(checked)
            checks[:] = checks[-1:]
            loop.call_soon_threadsafe(self._progress, checked)

        complete = partial(
            self._uploads.complete,
            self._tenant,
            self.upload,
            parts,
            md5=None,
            actor=actor,
            watch=watch,
        )
        try:
            async with _checks:
                _, stored = await _patiently(complete)
        except LowtideError as error:
            self._fail(error.message)
            return
        if stored is None or not checks:
            self._fail("The file was deleted.")
        elif not self._is_cancelled:
            await self._page.accept(stored, checks[-1])

    def _progress(self, checked: Checked) -> None:
        if not self._is_cancelled:
            self._page.progress(checked)

    def _fail(self, message: str) -> None:
        if not self._is_cancelled:
            self._page.fail(message)


async def _patiently(call: Callable[[], _Result]) -> _Result:
    """Run a blocking call that can be repeated, through outages of up to half a minute."""
    for delay in _RETRY_DELAYS:
        with suppress(Unavailable):
            return await run_blocking(call)
        await asyncio.sleep(delay)
    return await run_blocking(call)


async def receive(part: PartUpload, body: AsyncIterator[bytes]) -> PartId:
    """Store a part while it arrives, in bounded memory.

    Raises the errors of an upload, and then leaves nothing behind.
    """
    async with _opened(part):
        async for chunk in _merged(body):
            await run_blocking(partial(part.write, chunk))
        return (await in_thread(part.finish)).id


async def _merged(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the same bytes in fewer pieces: each costs a thread switch.

    Raises TimeoutError if the browser stops sending.
    """
    buffer = bytearray()
    while True:
        try:
            async with asyncio.timeout(lowtide().settings.client_timeout):
                buffer += await anext(pieces)
        except StopAsyncIteration:
            break
        if len(buffer) >= CHUNK_BYTES:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)


@asynccontextmanager
async def _opened(part: PartUpload) -> AsyncIterator[None]:
    await in_thread(part.__enter__)
    try:
        yield
    except BaseException as error:
        failure = error
        await run_blocking(lambda: part.__exit__(type(failure), failure, failure.__traceback__))
        raise
    await run_blocking(lambda: part.__exit__(None, None, None))


class Arrivals:
    """Routes the requests of open pages to their receivers."""

    def __init__(self) -> None:
        self._receivers: dict[str, Receiver] = {}

    def install(self) -> None:
        """Register the routes."""
        for step in ("start", "part", "complete", "cancel"):
            app.add_route(PATH + step, partial(self._receive, step), methods=["POST"])

    def expect(self, receiver: Receiver) -> str:
        """Return a token that routes to the page being built until it is closed."""
        token = secrets.token_urlsafe(16)
        self._receivers[token] = receiver

        async def close() -> None:
            self._receivers.pop(token, None)
            await receiver.cancel()

        ui.context.client.on_delete(close)
        return token

    async def _receive(self, step: str, request: Request) -> Response:
        """Answer a request with JSON, or an error in plain text."""
        principal = principal_of(request.session)
        receiver = self._receivers.get(request.headers.get(PAGE_HEADER, ""))
        if principal is None or receiver is None:
            return PlainTextResponse("This page has expired: reload it.", status_code=404)
        try:
            return JSONResponse(await _take(step, receiver, principal, request))
        except LowtideError as error:
            return PlainTextResponse(error.message, status_code=error.status)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return PlainTextResponse("The request is malformed.", status_code=400)
        except (ClientDisconnect, TimeoutError):
            return PlainTextResponse("The upload was interrupted.", status_code=408)


async def _take(step: str, receiver: Receiver, principal: Principal, request: Request) -> object:
    if step == "cancel":
        return await receiver.cancel()
    upload = request.headers.get(UPLOAD_HEADER, "")
    if step == "part":
        return await receiver.part(upload, request.stream())
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_BODY_BYTES:
            raise PayloadTooLarge("The request is too large.")
    if step == "start":
        return await receiver.start(principal, bytes(body))
    return await receiver.complete(principal, upload, bytes(body))
