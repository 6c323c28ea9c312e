"""Identifiers: prefixed like OpenAI's, time-ordered, and one-to-one with a UUID."""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, NewType

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

TenantId = NewType("TenantId", uuid.UUID)
BatchId = NewType("BatchId", uuid.UUID)
FileId = NewType("FileId", uuid.UUID)
LeaseId = NewType("LeaseId", uuid.UUID)
EventId = NewType("EventId", uuid.UUID)

DEFAULT_TENANT = TenantId(uuid.UUID(int=0))
"""The tenant that owns everything on a single-tenant installation."""

_BATCH_PREFIX = "batch_"
_FILE_PREFIX = "file-"


def uuid7(now: datetime, random_bytes: Callable[[int], bytes]) -> uuid.UUID:
    """Return a UUID version 7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then random."""
    milliseconds = int(now.timestamp() * 1000)
    return _with_version(
        (milliseconds & (2**48 - 1)) << 80 | int.from_bytes(random_bytes(10), "big")
    )


def derived_file_id(batch: BatchId, role: str) -> FileId:
    """Return the id of a batch's own file, the same at every call.

    Finalizing twice must write the same object, so the id is a function of the batch and `role`.
    The batch's timestamp bits are kept, so that derived ids sort with their batch.
    """
    digest = hashlib.sha256(batch.bytes + role.encode()).digest()
    return FileId(_with_version((batch.int >> 80) << 80 | int.from_bytes(digest[:10], "big")))


def format_batch_id(batch: BatchId) -> str:
    """Return the public form, `batch_` and 32 hexadecimal digits."""
    return _BATCH_PREFIX + batch.hex


def format_file_id(file: FileId) -> str:
    """Return the public form, `file-` and 32 hexadecimal digits."""
    return _FILE_PREFIX + file.hex


def format_request_id(batch: BatchId, line: int) -> str:
    """Return the public id of one line of a batch, `batch_req_` and 40 hexadecimal digits."""
    return f"batch_req_{batch.hex}{line:08x}"


def parse_batch_id(text: str) -> BatchId | None:
    """Return the id behind its public form, or None when `text` is not one."""
    value = _parse(text, _BATCH_PREFIX)
    return None if value is None else BatchId(value)


def parse_file_id(text: str) -> FileId | None:
    """Return the id behind its public form, or None when `text` is not one."""
    value = _parse(text, _FILE_PREFIX)
    return None if value is None else FileId(value)


def _parse(text: str, prefix: str) -> uuid.UUID | None:
    digits = text.removeprefix(prefix)
    if len(digits) != 32 or len(text) != len(prefix) + 32 or not digits.isascii():
        return None
    try:
        value = uuid.UUID(hex=digits)
    except ValueError:
        return None
    return value if value.hex == digits else None


def _with_version(value: int) -> uuid.UUID:
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value)
