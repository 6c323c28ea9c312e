"""Uploads received as streams."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from nicegui import core

from lowtide.core.errors import Forbidden, LowtideError, NotFound, PayloadTooLarge, Unavailable
from lowtide.core.ids import DEFAULT_TENANT, new_id
from lowtide.core.scopes import Role
from lowtide.files.lines import ENDPOINTS, Limits
from lowtide.files.model import FileStatus
from lowtide.files.service import Checked, Files, UploadLimits
from lowtide.files.store import FileStore
from lowtide.objects.joined import JoinedObjects
from lowtide.objects.presigned import Presigner
from lowtide.objects.store import ObstoreObjects
from lowtide.tenants.sign_in import Principal
from lowtide.uploads import service
from lowtide.uploads.presigned import PresignedUploads
from lowtide.uploads.service import Uploads
from lowtide.uploads.store import UploadStore
from portal import receiving
from portal.receiving import Receiver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from pathlib import Path

    from lowtide.core.ids import TenantId
    from lowtide.files.model import StoredFile
    from tests.conftest import Database

LINE = b'{"custom_id":"%d","method":"POST","url":"/v1/embeddings","body":{"model":"m"}}\n'
LINES = [LINE % number for number in range(9)]
OPERATOR = Principal("me", Role.OPERATOR)


class Page:
    """An open page that keeps what it is to show."""

    tenant: TenantId = DEFAULT_TENANT

    def __init__(self) -> None:
        self.shown: list[Any] = []
        self.ended = asyncio.Event()

    def begin(self) -> None:
        self.shown.append("begin")

    def check(self, filename: str) -> None:
        self.shown.append(filename)

    def progress(self, checked: Checked) -> None:
        self.shown.append(checked.lines)

    def fail(self, message: str) -> None:
        self.shown.append(message)
        self.ended.set()

    async def accept(self, stored: StoredFile, checked: Checked) -> None:
        self.shown += [stored, checked]
        self.ended.set()


@pytest.fixture
def uploads(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Uploads:
    settings = SimpleNamespace(client_timeout=0.2)
    monkeypatch.setattr(receiving, "lowtide", lambda: SimpleNamespace(settings=settings))
    engine = database.engine("operator")
    store, objects = FileStore(engine), ObstoreObjects(tmp_path.as_uri())
    limits = UploadLimits(10_000, 3600, Limits(), ENDPOINTS)

    def clock() -> datetime:
        return datetime.now(UTC)

    files = Files(store, objects, limits, new_id=new_id, clock=clock)
    records, joined = UploadStore(engine), JoinedObjects(objects)
    presigned = PresignedUploads(
        records,
        store,
        joined,
        Presigner(tmp_path.as_uri(), None),
        file_expiry=3600,
        max_lines=10,
        new_id=new_id,
        clock=clock,
    )
    return Uploads(records, store, files, objects, presigned, new_id=new_id, clock=clock)


async def stream(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def start(receiver: Receiver, size: int, principal: Principal = OPERATOR) -> str:
    body = msgspec.json.encode({"name": "in.jsonl", "size": size})
    answer: Any = await receiver.start(principal, body)
    return str(answer["upload"])


async def send(receiver: Receiver, upload: str, pieces: Iterable[bytes]) -> str:
    answer: Any = await receiver.part(upload, stream(pieces))
    return str(answer["id"])


async def complete(receiver: Receiver, upload: str, parts: list[str]) -> None:
    await receiver.complete(OPERATOR, upload, msgspec.json.encode(parts))


def run(uploads: Uploads, act: Callable[[Receiver, Page], Awaitable[None]]) -> list[Any]:
    """Act on an open page; return what it showed."""

    async def main() -> list[Any]:
        patch.setattr(core, "loop", asyncio.get_running_loop())
        page = Page()
        await act(Receiver(uploads, page), page)
        return page.shown

    with pytest.MonkeyPatch.context() as patch:
        return asyncio.run(main())


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_parts_become_file_with_progress_and_problems(uploads: Uploads) -> None:
    pieces = [LINES[:4], [*LINES[4:], b"{no\n"]]
    size = sum(map(len, (line for piece in pieces for line in piece)))

    async def act(receiver: Receiver, page: Page) -> None:
        upload = await start(receiver, size)
        second = await send(receiver, upload, pieces[1])
        first = await send(receiver, upload, pieces[0])
        await complete(receiver, upload, [first, second])
        await complete(receiver, upload, [first, second])
        await page.ended.wait()

    *shown, stored, checked = run(uploads, act)
    assert shown == ["begin", "in.jsonl", 4, 10, 10]
    assert (stored.status, stored.size, stored.lines) == (FileStatus.ERROR, size, 10)
    assert (checked.model, [problem.line for problem in checked.problems]) == ("m", [10])


def test_part_is_written_in_pieces_of_bounded_size(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "CHUNK_BYTES", 100)
    sizes: list[int] = []
    write = service.PartUpload.write

    def noted(self: service.PartUpload, chunk: bytes) -> None:
        sizes.append(len(chunk))
        write(self, chunk)

    monkeypatch.setattr(service.PartUpload, "write", noted)

    async def act(receiver: Receiver, _: Page) -> None:
        await send(receiver, await start(receiver, 5000), [b"1234567"] * 500)

    run(uploads, act)
    assert sum(sizes) == 3500
    assert max(sizes) < 107


def test_larger_file_gets_larger_parts(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "MAX_PARTS", 3)
    monkeypatch.setattr(receiving, "PART_BYTES", 100)

    async def act(receiver: Receiver, page: Page) -> None:
        for size in (200, 301):
            body = msgspec.json.encode({"name": "a", "size": size})
            answer: Any = await receiver.start(OPERATOR, body)
            page.shown.append(answer["part_bytes"])

    assert run(uploads, act) == ["begin", 100, "begin", 101]


@pytest.mark.parametrize(
    ("size", "principal", "error"),
    [
        pytest.param(10_001, OPERATOR, PayloadTooLarge, id="too large"),
        pytest.param(1, Principal("me", Role.VIEWER), Forbidden, id="viewer"),
    ],
)
def test_refused_file_leaves_nothing(
    uploads: Uploads,
    tmp_path: Path,
    size: int,
    principal: Principal,
    error: type[LowtideError],
) -> None:
    async def act(receiver: Receiver, _: Page) -> None:
        with pytest.raises(error):
            await start(receiver, size, principal)
        with pytest.raises(NotFound):
            await send(receiver, "0" * 32, [])

    run(uploads, act)
    assert files_in(tmp_path) == []


def test_browser_that_stops_sending_is_interrupted(uploads: Uploads, tmp_path: Path) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield LINES[0]
        await asyncio.sleep(60)

    async def act(receiver: Receiver, _: Page) -> None:
        upload = await start(receiver, 1000)
        with pytest.raises(TimeoutError):
            await receiver.part(upload, stalled())
        assert files_in(tmp_path) == []
        await send(receiver, upload, LINES)

    run(uploads, act)
    assert len(files_in(tmp_path)) == 1
    assert receiving._running == []


def test_parts_are_limited_in_number(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "MAX_RUNNING", 1)

    async def act(receiver: Receiver, _: Page) -> None:
        upload = await start(receiver, 1000)
        arrived, going_on = asyncio.Event(), asyncio.Event()

        async def held() -> AsyncIterator[bytes]:
            arrived.set()
            await going_on.wait()
            yield LINES[0]

        running = asyncio.create_task(receiver.part(upload, held()))
        await arrived.wait()
        with pytest.raises(Unavailable, match="Too many uploads"):
            await send(receiver, upload, LINES)
        going_on.set()
        await running
        await send(receiver, upload, LINES)

    run(uploads, act)


@pytest.mark.parametrize("by", ["cancel", "another file"])
def test_upload_that_was_left_is_cancelled(uploads: Uploads, database: Database, by: str) -> None:
    async def act(receiver: Receiver, _: Page) -> None:
        upload = await start(receiver, 1000)
        await send(receiver, upload, LINES)
        if by == "cancel":
            await receiver.cancel()
        else:
            await start(receiver, 500)
        with pytest.raises(NotFound):
            await send(receiver, upload, LINES)

    run(uploads, act)
    with database.engine("worker").connect() as connection:
        rows = connection.exec_driver_sql("SELECT status FROM uploads ORDER BY id").all()
    assert [row.status for row in rows][:1] == ["cancelled"]


def test_outage_during_completion_is_waited_for(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "_RETRY_DELAYS", (0.0, 0.0))
    real, calls = UploadStore.complete, []

    def fail_then_answer(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) < 3:
            raise Unavailable("away")
        real(*arguments)

    monkeypatch.setattr(UploadStore, "complete", fail_then_answer)

    async def act(receiver: Receiver, page: Page) -> None:
        upload = await start(receiver, len(LINES[0]))
        await complete(receiver, upload, [await send(receiver, upload, LINES[:1])])
        await page.ended.wait()

    *_, stored, checked = run(uploads, act)
    assert (stored.status, checked.problems, len(calls)) == (FileStatus.PROCESSED, (), 3)


def test_parts_that_do_not_make_the_file_are_reported(uploads: Uploads) -> None:
    async def act(receiver: Receiver, page: Page) -> None:
        upload = await start(receiver, 1)
        await complete(receiver, upload, [await send(receiver, upload, LINES[:1])])
        await page.ended.wait()

    assert "the upload was created for 1" in run(uploads, act)[-1]
