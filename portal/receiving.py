"""Taking a file from a browser: the same upload as the API's, beside the event loop."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from portal.background import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from lowtide.domain.files import StoredFile
    from lowtide.domain.ids import TenantId
    from lowtide.services.files import Checked, Files, Upload

CHUNK_BYTES = 1 << 20


async def receive(
    files: Files,
    tenant: TenantId,
    name: str,
    sent: AsyncIterator[bytes],
    *,
    told: Callable[[Checked], None],
    actor: str,
) -> tuple[StoredFile, Checked]:
    """Store and check a file as it comes; `told` hears what is known after about every megabyte.

    Raises what uploading raises; then nothing is left behind.
    """
    async with _opened(files, tenant, actor) as upload:
        async for chunk in _gathered(sent):
            await in_thread(partial(upload.write, chunk))
            told(upload.checked)
        stored = await in_thread(lambda: upload.finish(name, None))
        return stored, upload.checked


async def _gathered(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the same bytes in fewer pieces: each costs a change of threads."""
    held = bytearray()
    async for piece in pieces:
        held += piece
        if len(held) >= CHUNK_BYTES:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


@asynccontextmanager
async def _opened(files: Files, tenant: TenantId, actor: str) -> AsyncIterator[Upload]:
    upload = await in_thread(lambda: files.upload(tenant, actor))
    await in_thread(upload.__enter__)
    try:
        yield upload
    except BaseException as error:
        failure = error
        await in_thread(lambda: upload.__exit__(type(failure), failure, failure.__traceback__))
        raise
    await in_thread(lambda: upload.__exit__(None, None, None))
