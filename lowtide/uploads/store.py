"""The records of uploads in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.core.errors import NotFound
from lowtide.core.ids import FileId, PartId, TenantId, UploadId, format_file_id, format_upload_id
from lowtide.database.connections import acting_for
from lowtide.files.store import add_expected_file, add_orphans, remove_orphans
from lowtide.objects.data_keys import add_key, destroy_keys
from lowtide.tenants.audit import note
from lowtide.uploads.model import (
    MAX_PARTS,
    Part,
    PartedUpload,
    UploadEnded,
    UploadFull,
    UploadStatus,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Engine

    from lowtide.files.model import StoredFile
    from lowtide.objects.data_keys import WrappedKey


_CREATE = text("""
INSERT INTO uploads (id, tenant_id, filename, bytes, file_expires_after, created_at, expires_at,
  part_size, zero_retention)
VALUES (:id, :tenant, :filename, :bytes, :file_expires_after, :created_at, :expires_at, :part_size,
  :zero_retention)
""")
_GET = text("""
SELECT id, tenant_id, filename, bytes, file_expires_after, created_at, expires_at, file_id, part_ids,
  part_count, part_bytes, part_size, zero_retention,
  CASE WHEN status = 'pending' AND expires_at <= now() THEN 'expired' ELSE status END AS status
FROM uploads WHERE id = :id
""")
# Locks the upload: parts are counted one at a time, and none is added while the upload ends.
_COUNT_PART = text("""
UPDATE uploads SET part_count = part_count + 1, part_bytes = part_bytes + :bytes
WHERE id = :id AND status = 'pending' AND expires_at > now()
  AND part_count < :max_parts AND part_bytes + :bytes <= :max_bytes
""")
_ADD_PART = text("""
INSERT INTO upload_parts (id, upload_id, tenant_id, bytes, checksum, object_key, created_at)
VALUES (:id, :upload, :tenant, :bytes, :checksum, :object_key, :created_at)
""")
_PARTS = text("SELECT * FROM upload_parts WHERE upload_id = :id")
# An upload that expires while it is being completed is completed.
_COMPLETE = text("""
UPDATE uploads SET status = 'completed', file_id = :file, part_ids = :parts
WHERE id = :id AND status = 'pending'
""")
_CANCEL = text("""
UPDATE uploads SET status = 'cancelled'
WHERE id = :id AND status = 'pending' AND expires_at > now()
""")
_RELEASE_PARTS = text("""
UPDATE orphan_objects SET due_at = now()
WHERE object_key IN (SELECT object_key FROM upload_parts WHERE upload_id = :id)
""")


class UploadStore:
    """The records of uploads in parts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(
        self,
        upload: PartedUpload,
        keys: Sequence[str] = (),
        seconds: float = 0.0,
        *,
        data_key: WrappedKey | None = None,
    ) -> None:
        """Record a pending upload, with the data key of its parts.

        The objects of `keys` are orphans, due after `seconds`.
        """
        parameters = {
            "id": upload.id,
            "tenant": upload.tenant,
            "filename": upload.filename,
            "bytes": upload.size,
            "file_expires_after": upload.file_expires_after,
            "created_at": upload.created_at,
            "expires_at": upload.expires_at,
            "part_size": upload.part_size,
            "zero_retention": upload.zero_retention,
        }
        with acting_for(self._engine, upload.tenant) as connection:
            connection.execute(_CREATE, parameters)
            add_orphans(connection, upload.tenant, keys, seconds)
            if data_key is not None:
                add_key(connection, data_key)

    def get(self, tenant: TenantId, upload: UploadId) -> PartedUpload:
        """Return an upload; raises NotFound."""
        with acting_for(self._engine, tenant) as connection:
            return _get(connection, upload)

    def add_part(self, upload: PartedUpload, part: Part) -> None:
        """Record a part whose object is complete; raises UploadEnded, or UploadFull."""
        parameters = {
            "id": part.id,
            "upload": upload.id,
            "tenant": upload.tenant,
            "bytes": part.size,
            "checksum": part.checksum,
            "object_key": part.object_key,
            "created_at": part.created_at,
        }
        bounds = {
            "id": upload.id,
            "bytes": part.size,
            "max_parts": MAX_PARTS,
            "max_bytes": upload.max_part_bytes,
        }
        with acting_for(self._engine, upload.tenant) as connection:
            if not connection.execute(_COUNT_PART, bounds).rowcount:
                is_pending = _get(connection, upload.id).status is UploadStatus.PENDING
                raise UploadFull if is_pending else UploadEnded
            connection.execute(_ADD_PART, parameters)

    def parts(self, tenant: TenantId, upload: UploadId) -> Sequence[Part]:
        """Return the parts of an upload, in no order."""
        with acting_for(self._engine, tenant) as connection:
            return [_part_of(row) for row in connection.execute(_PARTS, {"id": upload})]

    def complete(
        self,
        upload: UploadId,
        parts: Sequence[PartId],
        file: StoredFile,
        actor: str | None,
        pieces: Sequence[str] = (),
    ) -> None:
        """Record the file of an upload and release its parts; raises UploadEnded.

        The scheduler deletes the objects of all its parts; those of `pieces` are no longer orphans.
        `actor` is recorded in the audit log.
        """
        parameters = {"id": upload, "file": file.id, "parts": list(parts)}
        with acting_for(self._engine, file.tenant) as connection:
            if not connection.execute(_COMPLETE, parameters).rowcount:
                raise UploadEnded
            add_expected_file(connection, file)
            remove_orphans(connection, pieces)
            connection.execute(_RELEASE_PARTS, {"id": upload})
            if file.zero_retention:
                destroy_keys(connection, [upload])
            if actor is not None:
                note(connection, file.tenant, actor, "files.create", [format_file_id(file.id)])

    def cancel(self, tenant: TenantId, upload: UploadId) -> PartedUpload:
        """Cancel an upload if it is pending, and return it; raises NotFound.

        The scheduler deletes the objects of its parts.
        """
        with acting_for(self._engine, tenant) as connection:
            if connection.execute(_CANCEL, {"id": upload}).rowcount:
                connection.execute(_RELEASE_PARTS, {"id": upload})
                destroy_keys(connection, [upload])
            return _get(connection, upload)


def _get(connection: Connection, upload: UploadId) -> PartedUpload:
    row = connection.execute(_GET, {"id": upload}).one_or_none()
    if row is None:
        raise upload_not_found(format_upload_id(upload))
    return PartedUpload(
        id=UploadId(row.id),
        tenant=TenantId(row.tenant_id),
        filename=row.filename,
        size=row.bytes,
        file_expires_after=row.file_expires_after,
        status=UploadStatus(row.status),
        created_at=row.created_at,
        expires_at=row.expires_at,
        file=None if row.file_id is None else FileId(row.file_id),
        zero_retention=row.zero_retention,
        parts=None if row.part_ids is None else [PartId(part) for part in row.part_ids],
        part_count=row.part_count,
        part_bytes=row.part_bytes,
        part_size=row.part_size,
    )


def upload_not_found(name: str) -> NotFound:
    """Return the error for an upload that this tenant does not have."""
    return NotFound(f"Upload {name[:100]!r} not found: check the id.", param="upload_id")


def _part_of(row: Any) -> Part:
    return Part(
        id=PartId(row.id),
        upload=UploadId(row.upload_id),
        size=row.bytes,
        checksum=row.checksum,
        object_key=row.object_key,
        created_at=row.created_at,
    )
