"""Taking a file from a browser: the same upload as the API's, beside the event loop."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from portal.background import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nicegui.elements.upload_files import FileUpload

    from lowtide.domain.files import StoredFile
    from lowtide.domain.ids import TenantId
    from lowtide.services.files import Checked, Files, Upload

CHUNK_BYTES = 1 << 20


async def receive(
    files: Files, tenant: TenantId, sent: FileUpload, *, told: Callable[[Checked], None]
) -> tuple[StoredFile, Checked]:
    """Store and check a file; `told` hears what is known after every chunk.

    Raises what uploading raises; then nothing is left behind.
    """
    async with _opened(files, tenant) as upload:
        async for chunk in sent.iterate(chunk_size=CHUNK_BYTES):
            await in_thread(partial(upload.write, chunk))
            told(upload.checked)
        stored = await in_thread(lambda: upload.finish(sent.name, None))
        return stored, upload.checked


@asynccontextmanager
async def _opened(files: Files, tenant: TenantId) -> AsyncIterator[Upload]:
    upload = await in_thread(lambda: files.upload(tenant))
    await in_thread(upload.__enter__)
    try:
        yield upload
    except BaseException as error:
        failure = error
        await in_thread(lambda: upload.__exit__(type(failure), failure, failure.__traceback__))
        raise
    await in_thread(lambda: upload.__exit__(None, None, None))
