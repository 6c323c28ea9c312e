"""Files: what users upload and what batches produce."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from lowtide.domain.ids import FileId, TenantId
    from lowtide.domain.traces import TraceContext


class Purpose(StrEnum):
    """What a file is for."""

    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"


class FileStatus(StrEnum):
    """Whether a file's lines passed the checks; `error` names the problems in status_details."""

    UPLOADED = "uploaded"
    PROCESSED = "processed"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file whose bytes are in the object store under `object_key`.

    `size` is in bytes; `endpoint` is the url of its first good line, for callers who name
    none; `trace` is the work that made it.
    """

    id: FileId
    tenant: TenantId
    purpose: Purpose
    filename: str
    size: int
    lines: int
    sha256: bytes
    object_key: str
    status: FileStatus
    status_details: str | None
    created_at: datetime
    endpoint: str | None = None
    expires_at: datetime | None = None
    trace: TraceContext | None = None


def object_key(file: FileId) -> str:
    """Return where a file's bytes live in the object store."""
    return f"files/{file.hex}"
