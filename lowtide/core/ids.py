"""Ids: prefixed like OpenAI's, time-ordered, and one-to-one with a UUID."""

from __future__ import annotations

import hashlib
import os
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NewType

if TYPE_CHECKING:
    from collections.abc import Callable


TenantId = NewType("TenantId", uuid.UUID)
BatchId = NewType("BatchId", uuid.UUID)
FileId = NewType("FileId", uuid.UUID)
LeaseId = NewType("LeaseId", uuid.UUID)
EventId = NewType("EventId", uuid.UUID)
KeyId = NewType("KeyId", uuid.UUID)
UploadId = NewType("UploadId", uuid.UUID)
PartId = NewType("PartId", uuid.UUID)

DEFAULT_TENANT = TenantId(uuid.UUID(int=0))
"""The tenant that owns everything on a single-tenant installation."""

NAME: Final = r"^[a-z0-9][a-z0-9._-]{0,62}$"
"""The pattern of the names of tenants and keys."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_BATCH_PREFIX = "batch_"
_FILE_PREFIX = "file-"
_REQUEST_PREFIX = "batch_req_"
_KEY_PREFIX = "key_"
_UPLOAD_PREFIX = "upload_"
_PART_PREFIX = "part_"
_HEXADECIMAL = frozenset("0123456789abcdef")
_CELL_BITS: Final = 12
_CELL_SHIFT: Final = 62 - _CELL_BITS
_CELL_MASK: Final = (1 << _CELL_BITS) - 1
LAST_CELL: Final = _CELL_MASK
"""The highest number of a cell; the lowest is 1."""


def now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


def new_id() -> uuid.UUID:
    """Return a time-ordered id."""
    return uuid7(now(), os.urandom)


def ids_of_cell(cell: int | None) -> Callable[[], uuid.UUID]:
    """Return the source of a cell's ids, which `cell_of` recognizes; without a cell, `new_id`."""
    if cell is None:
        return new_id
    return lambda: uuid7(now(), os.urandom, cell)


def uuid7(
    now: datetime, random_bytes: Callable[[int], bytes], cell: int | None = None
) -> uuid.UUID:
    """Return a UUID version 7 (RFC 9562): Unix milliseconds, their fraction, then random bits.

    The fraction (section 6.2, method 3) makes ids sort by time to the microsecond. The id of a cell
    has its number, 1 to LAST_CELL, instead of the first random bits, and a fraction that is one higher,
    which no microsecond has.
    """
    microseconds = (now - EPOCH) // _MICROSECOND
    milliseconds, remainder = divmod(microseconds, 1000)
    fraction = _fraction(remainder)
    random_bits = int.from_bytes(random_bytes(8), "big")
    if cell is not None:
        fraction += 1
        random_bits = random_bits & ~(_CELL_MASK << _CELL_SHIFT) | cell << _CELL_SHIFT
    return _with_version((milliseconds & (2**48 - 1)) << 80 | fraction << 64 | random_bits)


def cell_of(id_: uuid.UUID) -> int | None:
    """Return the number of the cell whose id this is, or was derived from; None if it has none.

    An id derived from one without a cell may have a number by chance.
    """
    fraction = id_.int >> 64 & 0xFFF
    if fraction == _fraction(-(-fraction * 1000 // 4096)):
        return None
    return id_.int >> _CELL_SHIFT & _CELL_MASK


def _fraction(microseconds: int) -> int:
    """Return microseconds as a 12-bit fraction of a millisecond."""
    return microseconds * 4096 // 1000


def derived_file_id(batch: BatchId, role: str) -> FileId:
    """Return the deterministic id of a file that a batch produces.

    Finalizing twice must write the same object, so the id is a function of the batch and `role`.
    It keeps the batch's timestamp bits, so that it sorts with its batch.
    """
    return FileId(_derived(batch, role))


def derived_part_id(upload: UploadId, number: int) -> PartId:
    """Return the deterministic id of a presigned part of an upload."""
    return PartId(_derived(upload, f"part {number}"))


def format_batch_id(batch: BatchId) -> str:
    """Return the public form, `batch_` and 32 hexadecimal digits."""
    return _BATCH_PREFIX + batch.hex


def format_file_id(file: FileId) -> str:
    """Return the public form, `file-` and 32 hexadecimal digits."""
    return _FILE_PREFIX + file.hex


def format_request_id(batch: BatchId, line: int) -> str:
    """Return the public id of a request, `batch_req_` and 40 hexadecimal digits."""
    return f"{_REQUEST_PREFIX}{batch.hex}{line:08x}"


def parse_request_id(text: str) -> tuple[BatchId, int] | None:
    """Parse a request's public id into batch and line; return None if `text` is not one."""
    digits = text.removeprefix(_REQUEST_PREFIX)
    if len(digits) != 40 or len(text) != len(_REQUEST_PREFIX) + 40:
        return None
    batch = _parse(digits[:32], "")
    line = digits[32:]
    # A line is a positive PostgreSQL integer.
    if batch is None or not set(line) <= _HEXADECIMAL or not 0 < int(line, 16) < 2**31:
        return None
    return BatchId(batch), int(line, 16)


def parse_batch_id(text: str) -> BatchId | None:
    """Parse the public form of an id; return None if `text` is not one."""
    value = _parse(text, _BATCH_PREFIX)
    return None if value is None else BatchId(value)


def parse_file_id(text: str) -> FileId | None:
    """Parse the public form of an id; return None if `text` is not one."""
    value = _parse(text, _FILE_PREFIX)
    return None if value is None else FileId(value)


def format_key_id(key: KeyId) -> str:
    """Return the public form of an API key's id, `key_` and 32 hexadecimal digits."""
    return _KEY_PREFIX + key.hex


def parse_key_id(text: str) -> KeyId | None:
    """Parse the public form of an id; return None if `text` is not one."""
    value = _parse(text, _KEY_PREFIX)
    return None if value is None else KeyId(value)


def format_upload_id(upload: UploadId) -> str:
    """Return the public form of an upload in parts, `upload_` and 32 hexadecimal digits."""
    return _UPLOAD_PREFIX + upload.hex


def parse_upload_id(text: str) -> UploadId | None:
    """Parse the public form of an id; return None if `text` is not one."""
    value = _parse(text, _UPLOAD_PREFIX)
    return None if value is None else UploadId(value)


def format_part_id(part: PartId) -> str:
    """Return the public form of a part of an upload, `part_` and 32 hexadecimal digits."""
    return _PART_PREFIX + part.hex


def parse_part_id(text: str) -> PartId | None:
    """Parse the public form of an id; return None if `text` is not one."""
    value = _parse(text, _PART_PREFIX)
    return None if value is None else PartId(value)


def _parse(text: str, prefix: str) -> uuid.UUID | None:
    digits = text.removeprefix(prefix)
    if len(digits) != 32 or len(text) != len(prefix) + 32 or not digits.isascii():
        return None
    try:
        value = uuid.UUID(hex=digits)
    except ValueError:
        return None
    return value if value.hex == digits else None


def _derived(source: uuid.UUID, role: str) -> uuid.UUID:
    digest = hashlib.sha256(source.bytes + role.encode()).digest()
    kept = ~((1 << 80) - 1)
    if cell_of(source) is not None:
        kept |= 0xFFF << 64 | _CELL_MASK << _CELL_SHIFT
    return _with_version(source.int & kept | int.from_bytes(digest[:10], "big") & ~kept)


def _with_version(value: int) -> uuid.UUID:
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value)
