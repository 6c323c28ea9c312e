"""Uploads received as streams."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from lowtide.core.errors import PayloadTooLarge
from lowtide.core.ids import DEFAULT_TENANT, new_id
from lowtide.files.lines import ENDPOINTS, Limits
from lowtide.files.model import FileStatus
from lowtide.files.service import Checked, Files, UploadLimits
from lowtide.files.store import FileStore
from lowtide.objects.store import ObstoreObjects
from portal import receiving
from portal.receiving import receive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from lowtide.files.model import StoredFile
    from tests.conftest import Database

LINE = b'{"custom_id":"%d","method":"POST","url":"/v1/embeddings","body":{"model":"m"}}\n'


async def _stream(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _receive(
    database: Database, folder: Path, pieces: Iterable[bytes], progress: list[Checked]
) -> tuple[StoredFile, Checked]:
    limits = UploadLimits(10_000, 3600, Limits(), ENDPOINTS)
    files = Files(
        FileStore(database.engine("operator")),
        ObstoreObjects(folder.as_uri()),
        limits,
        new_id=new_id,
        clock=lambda: datetime.now(UTC),
    )
    return asyncio.run(
        receive(
            files,
            DEFAULT_TENANT,
            "in.jsonl",
            _stream(pieces),
            on_progress=progress.append,
            actor="me",
        )
    )


def test_upload_reports_progress_and_problems(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "CHUNK_BYTES", 100)
    progress: list[Checked] = []
    content = b"".join(LINE % number for number in range(9)) + b"{no\n"
    pieces = [content[start : start + 7] for start in range(0, len(content), 7)]
    stored, checked = _receive(database, tmp_path, pieces, progress)
    assert (stored.status, stored.size, stored.lines) == (FileStatus.ERROR, len(content), 10)
    assert (checked.model, [problem.line for problem in checked.problems]) == ("m", [10])
    assert [each.lines for each in progress] == sorted(each.lines for each in progress)
    assert 5 < len(progress) < len(pieces) / 10


def test_oversized_upload_leaves_no_file(database: Database, tmp_path: Path) -> None:
    with pytest.raises(PayloadTooLarge):
        _receive(database, tmp_path, [LINE % 1] * 1000, [])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
