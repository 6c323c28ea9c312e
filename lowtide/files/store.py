"""The records of stored files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import text

from lowtide.core.errors import NotFound
from lowtide.core.ids import FileId, TenantId, format_file_id
from lowtide.database.connections import acting_for
from lowtide.events.outbox import trace_columns, trace_of
from lowtide.files.index import FileSegment, index_key
from lowtide.files.model import FileStatus, Purpose, StoredFile
from lowtide.objects.data_keys import add_key, destroy_unused_keys
from lowtide.objects.names import data_key_of
from lowtide.tenants.audit import note

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection, Engine

    from lowtide.files.lines import ModelCounts
    from lowtide.objects.data_keys import WrappedKey


_COLUMNS = (
    "id, tenant_id, purpose, filename, bytes, lines, sha256, object_key, status, status_details, "
    "created_at, endpoint, expires_at, traceparent, tracestate, model, index_key, segments, models"
)
_ADD = text(f"""
INSERT INTO files ({_COLUMNS}) VALUES (:id, :tenant_id, :purpose, :filename, :bytes, :lines,
  :sha256, :object_key, :status, :status_details, :created_at, :endpoint, :expires_at, :traceparent,
  :tracestate, :model, :index_key, cast(:segments AS jsonb), cast(:models AS jsonb))
ON CONFLICT (id) DO NOTHING
""")  # noqa: S608
_GET = text(f"SELECT {_COLUMNS} FROM files WHERE id = :id")  # noqa: S608
_PAGE = {
    newest_first: text(f"""
SELECT {_COLUMNS} FROM files
WHERE tenant_id = :tenant AND (cast(:purpose AS text) IS NULL OR purpose = :purpose)
  AND (cast(:after AS uuid) IS NULL OR id {"<" if newest_first else ">"} :after)
ORDER BY id {"DESC" if newest_first else ""} LIMIT :limit
""")  # noqa: S608
    for newest_first in (True, False)
}
# The lock order is file, batch, as for creating a batch: a deletion and a creation serialize.
_LOCK = text(f"SELECT {_COLUMNS} FROM files WHERE id = :id FOR UPDATE")  # noqa: S608
_IS_READ = text("""
SELECT EXISTS (SELECT 1 FROM batches WHERE input_file_id = :id
  AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling'))
""")
_REMOVE = text("DELETE FROM files WHERE id = :id")
_ADD_ORPHANS = text("""
INSERT INTO orphan_objects (object_key, tenant_id, due_at)
SELECT key, :tenant, now() + make_interval(secs => :after)
FROM (SELECT DISTINCT unnest(cast(:keys AS text[])) AS key) AS keys
ORDER BY key
ON CONFLICT (object_key) DO UPDATE SET due_at = least(orphan_objects.due_at, excluded.due_at)
""")
_IS_SEALED = text("SELECT zero_retention FROM tenants WHERE id = :tenant")
# Before the deletion of the file, which forgets its batches.
_ERASE = text("""
INSERT INTO erasures (batch_id, tenant_id, part)
SELECT id, tenant_id, 'output' FROM batches WHERE output_file_id = :id
UNION ALL SELECT id, tenant_id, 'error' FROM batches WHERE error_file_id = :id
UNION ALL SELECT id, tenant_id, 'input' FROM batches WHERE input_file_id = :id
ON CONFLICT DO NOTHING
""")
_REMOVE_ORPHANS = text("DELETE FROM orphan_objects WHERE object_key = ANY(:keys)")
# A longer upload is lost: the scheduler deletes its object as an orphan.
LONGEST_UPLOAD_SECONDS = 6 * 3600


def add_file(connection: Connection, file: StoredFile) -> None:
    """Record a file in the caller's transaction; recording it again changes nothing."""
    connection.execute(
        _ADD,
        {
            "id": file.id,
            "tenant_id": file.tenant,
            "purpose": file.purpose.value,
            "filename": file.filename,
            "bytes": file.size,
            "lines": file.lines,
            "sha256": file.sha256,
            "object_key": file.object_key,
            "status": file.status.value,
            "status_details": file.status_details,
            "created_at": file.created_at,
            "endpoint": file.endpoint,
            "expires_at": file.expires_at,
            **trace_columns(file.trace),
            "model": file.model,
            "index_key": file.index_key,
            "segments": None if file.segments is None else encode_segments(file.segments),
            "models": encode_models(file.models),
        },
    )


def add_expected_file(connection: Connection, file: StoredFile) -> None:
    """Record a file whose objects were expected; they are no longer orphans."""
    add_file(connection, file)
    remove_orphans(connection, [file.object_key, index_key(file.object_key)])


def add_orphans(
    connection: Connection, tenant: TenantId, keys: Sequence[str], seconds: float
) -> None:
    """Record objects that the scheduler deletes after `seconds`, unless a file owns them by then."""
    parameters = {"keys": list(keys), "tenant": tenant, "after": seconds}
    connection.execute(_ADD_ORPHANS, parameters)


def remove_orphans(connection: Connection, keys: Sequence[str]) -> None:
    """Drop the records of orphans."""
    connection.execute(_REMOVE_ORPHANS, {"keys": list(keys)})


def file_not_found(file: FileId) -> NotFound:
    """Return the error for a file that this tenant does not have."""
    return NotFound(f"File {format_file_id(file)!r} not found: check the id.", param="id")


class FileStore:
    """The records of files."""

    def __init__(
        self,
        engine: Engine,
        *,
        before_deletion: Callable[[Connection, FileId], None] = lambda _connection, _file: None,
    ) -> None:
        """`before_deletion` is the last step of a transaction that deletes a file."""
        self._engine = engine
        self._before_deletion = before_deletion

    def is_sealed(self, tenant: TenantId) -> bool:
        """Return whether every upload of the tenant has zero retention."""
        with acting_for(self._engine, tenant) as connection:
            return bool(connection.execute(_IS_SEALED, {"tenant": tenant}).scalar_one_or_none())

    def expect(
        self,
        tenant: TenantId,
        *object_keys: str,
        seconds: float = LONGEST_UPLOAD_SECONDS,
        data_key: WrappedKey | None = None,
    ) -> None:
        """Record objects as orphans before they are written, so that a crash cannot leak them.

        Unless they are recorded as a file, the scheduler deletes them after `seconds`, and their
        data key.
        """
        with acting_for(self._engine, tenant) as connection:
            add_orphans(connection, tenant, object_keys, seconds)
            if data_key is not None:
                add_key(connection, data_key)

    def add(self, file: StoredFile, actor: str | None = None) -> None:
        """Record a file whose object is complete; `actor` is recorded in the audit log."""
        with acting_for(self._engine, file.tenant) as connection:
            add_expected_file(connection, file)
            if actor is not None:
                note(connection, file.tenant, actor, "files.create", [format_file_id(file.id)])

    def get(self, tenant: TenantId, file: FileId) -> StoredFile:
        """Return a file; raises NotFound."""
        with acting_for(self._engine, tenant) as connection:
            return _get(connection, file)

    def download(self, tenant: TenantId, file: FileId, actor: str) -> StoredFile:
        """Return a file, and record its download in the audit log; raises NotFound."""
        with acting_for(self._engine, tenant) as connection:
            record = _get(connection, file)
            note(connection, tenant, actor, "files.download", [format_file_id(file)])
        return record

    def page(
        self,
        tenant: TenantId,
        *,
        after: FileId | None,
        limit: int,
        newest_first: bool,
        purpose: str | None,
    ) -> Sequence[StoredFile]:
        """Return up to `limit` files that follow `after`."""
        with acting_for(self._engine, tenant) as connection:
            rows = connection.execute(
                _PAGE[newest_first],
                {"tenant": tenant, "after": after, "limit": limit, "purpose": purpose},
            )
            return [file_of(row) for row in rows]

    def remove(self, tenant: TenantId, file: FileId, actor: str | None = None) -> Sequence[str]:
        """Delete a file's record; return the keys of its objects, none while a batch reads them.

        Raises NotFound. The scheduler deletes the objects once no active batch reads them, and
        erases what tables hold of the file.
        """
        with acting_for(self._engine, tenant) as connection:
            row = connection.execute(_LOCK, {"id": file}).one_or_none()
            if row is None:
                raise file_not_found(file)
            is_read: bool = connection.execute(_IS_READ, {"id": file}).scalar_one()
            connection.execute(_ERASE, {"id": file})
            connection.execute(_REMOVE, {"id": file})
            keys = [key for key in (row.object_key, row.index_key) if key is not None]
            add_orphans(connection, tenant, keys, 0)
            destroy_unused_keys(connection, [data_key_of(row.object_key)])
            if actor is not None:
                note(connection, tenant, actor, "files.delete", [format_file_id(file)])
            if is_read:
                self._before_deletion(connection, file)
        return [] if is_read else keys

    def removed(self, tenant: TenantId, *keys: str) -> None:
        """Drop the orphan records of objects that were deleted from the store."""
        with acting_for(self._engine, tenant) as connection:
            remove_orphans(connection, keys)
            destroy_unused_keys(connection, map(data_key_of, keys))


def _get(connection: Connection, file: FileId) -> StoredFile:
    row = connection.execute(_GET, {"id": file}).one_or_none()
    if row is None:
        raise file_not_found(file)
    return file_of(row)


def file_of(row: Any) -> StoredFile:
    """Return the file in a row of `files`."""
    return StoredFile(
        id=FileId(row.id),
        tenant=TenantId(row.tenant_id),
        purpose=Purpose(row.purpose),
        filename=row.filename,
        size=row.bytes,
        lines=row.lines,
        sha256=row.sha256,
        object_key=row.object_key,
        status=FileStatus(row.status),
        status_details=row.status_details,
        created_at=row.created_at,
        endpoint=row.endpoint,
        expires_at=row.expires_at,
        trace=trace_of(row),
        model=row.model,
        index_key=row.index_key,
        segments=None if row.segments is None else segments_of(row.segments),
        models=models_of(row.models),
    )


def encode_models(models: ModelCounts | None) -> str | None:
    """Return the models of a file that has several as JSON."""
    return None if models is None else msgspec.json.encode(models).decode()


def models_of(rows: Sequence[Sequence[Any]] | None) -> ModelCounts | None:
    """Return the models in a column of JSON."""
    return None if rows is None else tuple((model, lines) for model, lines in rows)


def encode_segments(segments: Sequence[FileSegment]) -> str:
    """Return the segments of an index as JSON."""
    return msgspec.json.encode(segments).decode()


def segments_of(rows: Sequence[Sequence[int]]) -> tuple[FileSegment, ...]:
    """Return the segments in a column of JSON."""
    return tuple(FileSegment(*row) for row in rows)
