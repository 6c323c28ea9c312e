"""The records of uploads in parts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from lowtide.objects.names import DataKeyId

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from lowtide.core.ids import FileId, PartId, TenantId, UploadId


MAX_PART_BYTES: Final = 64 * 1024 * 1024
"""The largest part, which OpenAI's client sends by default."""
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
    completed upload has its file and its parts in their order.
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
    zero_retention: bool = False

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


class UploadEnded(Exception):
    """An upload that is no longer pending."""
