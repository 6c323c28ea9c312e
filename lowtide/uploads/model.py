"""The records of uploads in parts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from lowtide.core.errors import InvalidRequest
from lowtide.objects.names import DataKeyId

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from lowtide.core.ids import FileId, PartId, TenantId, UploadId


MAX_PART_BYTES: Final = 64 * 1024 * 1024
"""The largest part, which OpenAI's client sends by default."""
MAX_PARTS: Final = 10_000
"""The most parts of an upload: at their largest, they hold 640 GiB."""
UPLOAD_SECONDS: Final = 3600
"""The time after which a pending upload expires, as at OpenAI."""


class UploadStatus(StrEnum):
    """The state of an upload; all but `pending` are final."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class PartedUpload:
    """An upload in parts of a file of `size` bytes.

    The file expires `file_expires_after` seconds after its creation, or after the default time. A
    completed upload has its file and its parts in their order. A presigned one has `part_size`: the
    client writes parts of this size into the object store, the last one shorter.
    """

    id: UploadId
    tenant: TenantId
    filename: str
    size: int
    file_expires_after: int | None
    status: UploadStatus
    created_at: datetime
    expires_at: datetime
    file: FileId | None = None
    parts: Sequence[PartId] | None = None
    part_count: int = 0
    part_bytes: int = 0
    part_size: int | None = None
    zero_retention: bool = False

    @property
    def max_part_bytes(self) -> int:
        """The most bytes of all parts: each may be sent twice, as an answer may be lost."""
        return 2 * self.size + MAX_PART_BYTES

    @property
    def data_key(self) -> DataKeyId | None:
        """The data key of the parts, None if they are plain."""
        return DataKeyId(self.tenant, self.id) if self.zero_retention else None


@dataclass(frozen=True, slots=True)
class Part:
    """A part whose bytes are in the object store under `object_key`."""

    id: PartId
    upload: UploadId
    size: int
    checksum: int
    object_key: str
    created_at: datetime


class PartLost(InvalidRequest):
    """A part whose object is missing or differs from what was sent."""


class UploadEnded(Exception):
    """An upload that is no longer pending."""


class UploadFull(Exception):
    """An upload that can take no further part of this size."""
