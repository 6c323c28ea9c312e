"""Uploading, listing, reading and deleting files."""

from __future__ import annotations

import hashlib
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from lowtide.core.errors import (
    InvalidRequest,
    PayloadTooLarge,
    Unavailable,
    UnsupportedMediaType,
)
from lowtide.core.ids import FileId, format_file_id
from lowtide.files.index import SegmentSize, index_key
from lowtide.files.lines import Limits, LineReader
from lowtide.files.model import FileStatus, Purpose, StoredFile, object_key
from lowtide.files.validation import Validation
from lowtide.objects.names import no_new_key, sealed_key
from lowtide.telemetry.tracing import TENANT, UNTRACED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from types import TracebackType
    from typing import Self
    from uuid import UUID

    from lowtide.core.ids import TenantId
    from lowtide.files.lines import ModelCounts, Problem
    from lowtide.files.store import FileStore
    from lowtide.objects.data_keys import WrappedKey
    from lowtide.objects.store import ObjectStore
    from lowtide.telemetry.tracing import TraceContext, Tracer


_log = logging.getLogger(__name__)
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """The limits on an upload; `endpoints` are the urls that requests may name.

    A file without its own expiry expires `expires_after` seconds after its upload. `warn` returns why
    no batch of a valid file with these models would run now, if so.
    """

    max_bytes: int
    expires_after: int
    lines: Limits
    endpoints: tuple[str, ...]
    segments: SegmentSize | None = None
    warn: Callable[[ModelCounts, str], str | None] = lambda _models, _endpoint: None


@dataclass(frozen=True, slots=True)
class Checked:
    """The progress of an upload: bytes, requests, their model once one named it, and problems."""

    size: int
    lines: int
    model: str | None
    problems: tuple[Problem, ...]


class Upload:
    """An upload in progress: stored, hashed and checked in one pass.

    An exception inside the block leaves nothing behind. Without `finish` the object remains an
    orphan, which the scheduler deletes.
    """

    def __init__(
        self,
        files: FileStore,
        objects: ObjectStore,
        limits: UploadLimits,
        *,
        tenant: TenantId,
        file: FileId,
        now: datetime,
        actor: str | None = None,
        add: Callable[[StoredFile, str | None], None] | None = None,
        data_key: WrappedKey | None = None,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._actor = actor
        self._data_key = data_key
        self._key = sealed_key(None if data_key is None else data_key.id, object_key(file))
        self._files = files
        self._add = add or files.add
        self._objects = objects
        self._limits = limits
        self._tenant = tenant
        self._file = file
        self._now = now
        self._tracer = tracer
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._head = b""
        self._stack = ExitStack()
        self._writer = objects.open_writer(self._key)
        reader = LineReader(limits.lines, endpoints=limits.endpoints)
        self._validation = Validation(objects, self._key, reader, limits.segments)

    def __enter__(self) -> Self:
        keys = self._key, index_key(self._key)
        self._files.expect(self._tenant, *keys, data_key=self._data_key)
        self._stack.enter_context(self._writer)
        self._stack.enter_context(self._validation)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def zero_retention(self) -> bool:
        """True if the object is encrypted."""
        return self._data_key is not None

    @property
    def checked(self) -> Checked:
        """The progress of the upload."""
        reader = self._validation.reader
        return Checked(self._size, reader.requests, reader.model, tuple(reader.problems))

    def write(self, chunk: bytes) -> None:
        """Add a chunk; raises PayloadTooLarge, or UnsupportedMediaType for a gzip file."""
        if len(self._head) < len(_GZIP):
            self._head = (self._head + chunk)[: len(_GZIP)]
            if self._head == _GZIP:
                raise UnsupportedMediaType(
                    "The file is compressed with gzip: decompress it and upload the JSONL.",
                    param="file",
                    code="packed_file",
                )
        self._size += len(chunk)
        if self._size > self._limits.max_bytes:
            raise PayloadTooLarge(
                f"The file is larger than {self._limits.max_bytes} bytes: split it into several.",
                param="file",
            )
        self._sha256.update(chunk)
        self._validation.feed(chunk)
        self._writer.write(chunk)

    def finish(
        self, filename: str, purpose: str | None, expires_after: int | None = None
    ) -> StoredFile:
        """Complete the object and record the file.

        A missing purpose means `batch`; `expires_after` is in seconds, None takes the default.
        """
        check_purpose(purpose)
        attributes = {TENANT: str(self._tenant), "lowtide.file.id": format_file_id(self._file)}
        with self._tracer.span("store file", attributes=attributes) as span:
            self._validation.finish()
            self._stack.close()
            self._validation.find_repeated()
            file = self._record(filename, expires_after, span.context)
            span.note({"lowtide.lines": file.lines, "lowtide.bytes": file.size})
            try:
                self._add(file, self._actor)
            except Unavailable:
                # The commit may have succeeded. If it has not, the scheduler removes the orphan.
                raise
            except BaseException:
                self._objects.delete([file.object_key, index_key(file.object_key)])
                raise
            extra = {"file_id": format_file_id(file.id), "lines": file.lines, "bytes": file.size}
            _log.info("file.stored", extra=extra)
        return file

    def _record(
        self, filename: str, expires_after: int | None, trace: TraceContext | None
    ) -> StoredFile:
        reader, problems = self._validation.reader, self._validation.problems
        return StoredFile(
            id=self._file,
            tenant=self._tenant,
            purpose=Purpose.BATCH,
            filename=shown_filename(filename),
            size=self._size,
            lines=reader.requests,
            sha256=self._sha256.digest(),
            object_key=self._key,
            status=FileStatus.ERROR if problems else FileStatus.PROCESSED,
            status_details=_summary(problems) if problems else self._warning(),
            created_at=self._now,
            endpoint=reader.endpoint,
            expires_at=self._now + timedelta(seconds=expires_after or self._limits.expires_after),
            trace=trace,
            model=reader.model,
            models=reader.models,
            index_key=None if problems else index_key(self._key),
            segments=None if problems else self._validation.segments,
        )

    def _warning(self) -> str | None:
        """Return why no batch of this valid file would run now, if so."""
        reader = self._validation.reader
        return self._limits.warn(reader.model_counts, reader.endpoint or "")


class Files:
    """The files of tenants."""

    def __init__(
        self,
        files: FileStore,
        objects: ObjectStore,
        limits: UploadLimits,
        *,
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
        new_key: Callable[[TenantId, UUID], WrappedKey] = no_new_key,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._files = files
        self._new_key = new_key
        self._objects = objects
        self._limits = limits
        self._new_id = new_id
        self._clock = clock
        self._tracer = tracer

    @property
    def max_bytes(self) -> int:
        """The largest upload, in bytes."""
        return self._limits.max_bytes

    def upload(
        self,
        tenant: TenantId,
        actor: str | None = None,
        *,
        add: Callable[[StoredFile, str | None], None] | None = None,
        zero_retention: bool = False,
    ) -> Upload:
        """Start an upload, a context manager. `actor` is recorded in the audit log.

        `add` replaces the store's transaction that records the file and the actor. With
        `zero_retention`, of this upload or of the tenant, the object is encrypted; raises Conflict
        if there is no master key.
        """
        file = FileId(self._new_id())
        is_sealed = zero_retention or self._files.is_sealed(tenant)
        return Upload(
            self._files,
            self._objects,
            self._limits,
            tenant=tenant,
            file=file,
            now=self._clock(),
            actor=actor,
            add=add,
            data_key=self._new_key(tenant, file) if is_sealed else None,
            tracer=self._tracer,
        )

    def get(self, tenant: TenantId, file: FileId) -> StoredFile:
        """Return a file; raises NotFound."""
        return self._files.get(tenant, file)

    def content(
        self,
        tenant: TenantId,
        file: FileId,
        start: int = 0,
        end: int | None = None,
        *,
        actor: str,
    ) -> Iterator[bytes]:
        """Stream a file from `start` up to `end`, recorded in the audit log; raises NotFound."""
        record = self._files.download(tenant, file, actor)
        return self._objects.stream(record.object_key, start, end)

    def page(
        self,
        tenant: TenantId,
        *,
        after: FileId | None,
        limit: int,
        newest_first: bool,
        purpose: str | None,
    ) -> tuple[Sequence[StoredFile], bool]:
        """Return up to `limit` files that follow `after`, and whether more follow."""
        files = self._files.page(
            tenant, after=after, limit=limit + 1, newest_first=newest_first, purpose=purpose
        )
        return files[:limit], len(files) > limit

    def delete(self, tenant: TenantId, file: FileId, actor: str) -> None:
        """Delete a file and what it held, recorded in the audit log; raises NotFound.

        Nothing reads its answers from now on. The bytes of an input stay while an active batch
        reads them; what tables hold of its requests, the next ticks erase.
        """
        keys = self._files.remove(tenant, file, actor)
        if keys:
            self._objects.delete(keys)
            self._files.removed(tenant, *keys)


def check_purpose(purpose: str | None) -> None:
    """Raise InvalidRequest for a purpose other than `batch`, which None means, too."""
    if purpose not in (None, Purpose.BATCH):
        raise InvalidRequest(
            f"purpose {purpose!r} is not supported: use 'batch'.",
            param="purpose",
            code="invalid_purpose",
        )


def shown_filename(filename: str) -> str:
    """Return a file's name without its folders."""
    return filename.replace("\\", "/").rsplit("/", 1)[-1].replace("\x00", "") or "file"


def _summary(problems: Sequence[Problem]) -> str:
    messages = [
        problem.message if problem.line is None else f"line {problem.line}: {problem.message}"
        for problem in problems[:5]
    ]
    remaining = len(problems) - len(messages)
    return " ".join(messages) + (f" (and {remaining} more)" if remaining else "")
