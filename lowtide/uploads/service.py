"""Uploads in parts: creating them, adding parts, and making files of them."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

from lowtide.core.errors import Conflict, InvalidRequest, NotFound, PayloadTooLarge, Unavailable
from lowtide.core.ids import PartId, UploadId, format_part_id, format_upload_id, parse_part_id
from lowtide.files.lines import NO_BYTES, checksum_of
from lowtide.files.service import check_purpose, shown_filename
from lowtide.objects.names import no_new_key, sealed_key
from lowtide.uploads.model import (
    MAX_PART_BYTES,
    MAX_PARTS,
    UPLOAD_SECONDS,
    Part,
    PartedUpload,
    PartLost,
    UploadEnded,
    UploadFull,
    UploadStatus,
)
from lowtide.uploads.presigned import part_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from types import TracebackType
    from typing import Self
    from uuid import UUID

    from lowtide.core.ids import TenantId
    from lowtide.files.model import StoredFile
    from lowtide.files.service import Checked, Files
    from lowtide.files.store import FileStore
    from lowtide.objects.data_keys import WrappedKey
    from lowtide.objects.store import ObjectStore
    from lowtide.uploads.presigned import PresignedPart, PresignedUploads
    from lowtide.uploads.store import UploadStore


# A completion may run this long after its upload has expired: parts are not deleted before.
_LONGEST_COMPLETION = timedelta(minutes=15)


class PartUpload:
    """A part in progress: stored and checked in one pass, in bounded memory.

    An exception inside the block leaves nothing behind but the record of an orphan.
    """

    def __init__(
        self,
        uploads: UploadStore,
        files: FileStore,
        objects: ObjectStore,
        upload: PartedUpload,
        *,
        part: PartId,
        now: datetime,
    ) -> None:
        self._uploads = uploads
        self._files = files
        self._objects = objects
        self._upload = upload
        self._part = part
        self._now = now
        self._key = sealed_key(upload.data_key, f"parts/{part.hex}")
        self._size = 0
        self._checksum = NO_BYTES
        self._stack = ExitStack()
        self._writer = objects.open_writer(self._key)

    def __enter__(self) -> Self:
        kept = self._upload.expires_at + _LONGEST_COMPLETION - self._now
        self._files.expect(self._upload.tenant, self._key, seconds=kept.total_seconds())
        self._stack.enter_context(self._writer)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, chunk: bytes) -> None:
        """Add a chunk; raises PayloadTooLarge."""
        self._size += len(chunk)
        if self._size > MAX_PART_BYTES:
            raise PayloadTooLarge(
                f"The part is larger than {MAX_PART_BYTES} bytes: send smaller parts.", param="data"
            )
        if self._upload.part_bytes + self._size > self._upload.max_part_bytes:
            raise _full(self._upload)
        self._checksum = checksum_of(chunk, self._checksum)
        self._writer.write(chunk)

    def finish(self) -> Part:
        """Complete the object and record the part.

        Raises Conflict if the upload has ended, and PayloadTooLarge if it is full.
        """
        self._stack.close()
        part = Part(self._part, self._upload.id, self._size, self._checksum, self._key, self._now)
        tenant = self._upload.tenant
        try:
            self._uploads.add_part(self._upload, part)
        except Unavailable:
            # The commit may have succeeded: the object stays until its upload ends.
            raise
        except BaseException as error:
            self._objects.delete([self._key])
            self._files.removed(tenant, self._key)
            if isinstance(error, UploadEnded):
                raise _ended(self._uploads.get(tenant, self._upload.id)) from error
            if isinstance(error, UploadFull):
                raise _full(self._upload) from error
            raise
        return part


class Uploads:
    """The uploads in parts of tenants."""

    def __init__(
        self,
        uploads: UploadStore,
        files: FileStore,
        service: Files,
        objects: ObjectStore,
        presigned: PresignedUploads,
        *,
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
        new_key: Callable[[TenantId, UUID], WrappedKey] = no_new_key,
    ) -> None:
        self._new_key = new_key
        self._uploads = uploads
        self._files = files
        self._service = service
        self._objects = objects
        self._presigned = presigned
        self._new_id = new_id
        self._clock = clock

    def create(
        self,
        tenant: TenantId,
        *,
        filename: str,
        size: int,
        purpose: str,
        file_expires_after: int | None,
        presigned: bool = False,
        zero_retention: bool = False,
    ) -> PartedUpload:
        """Start an upload of `size` bytes; raises InvalidRequest, or PayloadTooLarge.

        With `presigned`, `presigned_parts` returns where the client writes its parts. With
        `zero_retention`, of this upload or of the tenant, its parts and its file are encrypted;
        raises Conflict if there is no master key.
        """
        check_purpose(purpose)
        max_bytes = self._service.max_bytes
        if size > max_bytes:
            raise PayloadTooLarge(
                f"A file may have {max_bytes} bytes, not {size}: split it into several.",
                param="bytes",
            )
        now = self._clock()
        upload = PartedUpload(
            id=UploadId(self._new_id()),
            tenant=tenant,
            filename=shown_filename(filename),
            size=size,
            file_expires_after=file_expires_after,
            status=UploadStatus.PENDING,
            created_at=now,
            expires_at=now + timedelta(seconds=UPLOAD_SECONDS),
            zero_retention=zero_retention or self._files.is_sealed(tenant),
        )
        if presigned:
            return self._presigned.create(upload)
        data_key = self._new_key(tenant, upload.id) if upload.zero_retention else None
        self._uploads.create(upload, data_key=data_key)
        return upload

    def presigned_parts(self, upload: PartedUpload) -> Sequence[PresignedPart]:
        """Return the parts of an upload with their URLs; none if it is not presigned."""
        return [] if upload.part_size is None else self._presigned.parts(upload)

    def part(self, tenant: TenantId, upload_id: UploadId) -> PartUpload:
        """Start a part, a context manager.

        Raises NotFound, Conflict if the upload has ended, and PayloadTooLarge if it is full.
        """
        upload = self._uploads.get(tenant, upload_id)
        if upload.status is not UploadStatus.PENDING:
            raise _ended(upload)
        if upload.part_count >= MAX_PARTS:
            raise _full(upload)
        if upload.part_size is not None:
            raise InvalidRequest(
                "This upload is presigned: send its parts to their URLs.", param="upload_id"
            )
        return PartUpload(
            self._uploads,
            self._files,
            self._objects,
            upload,
            part=PartId(self._new_id()),
            now=self._clock(),
        )

    def complete(
        self,
        tenant: TenantId,
        upload_id: UploadId,
        names: Sequence[str],
        *,
        md5: str | None,
        actor: str,
        watch: Callable[[Checked], None] = lambda _: None,
    ) -> tuple[PartedUpload, StoredFile | None]:
        """Make the file of the named parts, in their order; return the upload with it.

        No names are all parts of a presigned upload, whose bytes are not read.
        `watch` gets the progress of the checks after each part, and their result before the commit.
        Completing again with the same parts returns the same file, None once it is deleted. Raises
        NotFound, InvalidRequest for parts that do not make the file, and Conflict if the upload has
        ended otherwise.
        """
        upload = self._uploads.get(tenant, upload_id)
        if upload.part_size is not None and not names:
            names = [format_part_id(part) for part in part_ids(upload)]
        if upload.status is UploadStatus.PENDING:
            try:
                self._assemble(upload, names, md5, actor, watch)
            except (UploadEnded, PartLost):
                # Another call ended the upload meanwhile, or the parts are really lost.
                upload = self._uploads.get(tenant, upload_id)
                if upload.status is UploadStatus.PENDING:
                    raise
            else:
                upload = self._uploads.get(tenant, upload_id)
        if upload.file is None:
            raise _ended(upload)
        if upload.parts != [parse_part_id(name) for name in names]:
            raise _ended(upload, " with other parts")
        try:
            return upload, self._service.get(tenant, upload.file)
        except NotFound:
            return upload, None

    def cancel(self, tenant: TenantId, upload_id: UploadId) -> PartedUpload:
        """Cancel an upload, again without effect; raises NotFound, or Conflict if it is completed."""
        upload = self._uploads.cancel(tenant, upload_id)
        if upload.status is UploadStatus.COMPLETED:
            raise Conflict(
                f"Upload {format_upload_id(upload_id)!r} is completed: delete its file instead.",
                param="upload_id",
            )
        if upload.part_size is not None:
            self._presigned.remove(upload)
        return upload

    def _assemble(
        self,
        upload: PartedUpload,
        names: Sequence[str],
        md5: str | None,
        actor: str,
        watch: Callable[[Checked], None],
    ) -> None:
        if upload.part_size is None:
            parts = _select(self._uploads.parts(upload.tenant, upload.id), names)
            _check_size(upload, parts)
            self._stream(upload, parts, md5, actor, watch)
            return
        if md5 is not None:
            raise InvalidRequest(
                "The MD5 of a presigned upload is not checked, as its bytes are not read: send the "
                "Content-MD5 of each part to the object store instead.",
                param="md5",
            )
        self._presigned.assemble(upload, names, actor)

    def _stream(
        self,
        upload: PartedUpload,
        parts: Sequence[Part],
        md5: str | None,
        actor: str,
        watch: Callable[[Checked], None],
    ) -> None:
        """Stream the parts into a file, checked like any other upload."""

        def add(file: StoredFile, actor: str | None) -> None:
            watch(whole.checked)
            self._uploads.complete(upload.id, [part.id for part in parts], file, actor)

        digest = hashlib.md5(usedforsecurity=False)
        sealed = upload.zero_retention
        with self._service.upload(upload.tenant, actor, add=add, zero_retention=sealed) as whole:
            for part in parts:
                for chunk in self._read(part):
                    digest.update(chunk)
                    whole.write(chunk)
                watch(whole.checked)
            if md5 is not None and md5.lower() != digest.hexdigest():
                raise InvalidRequest(
                    f"The parts have the MD5 {digest.hexdigest()}, not {md5.lower()}: check the "
                    "order of part_ids, or send the file again.",
                    param="md5",
                )
            whole.finish(upload.filename, None, upload.file_expires_after)

    def _read(self, part: Part) -> Iterator[bytes]:
        """Yield the bytes of a part; raises PartLost at its end if they are not those sent."""
        checksum = NO_BYTES
        try:
            for chunk in self._objects.stream(part.object_key):
                checksum = checksum_of(chunk, checksum)
                yield chunk
        except NotFound as error:
            raise _lost(part) from error
        if checksum != part.checksum:
            raise _lost(part)


def _select(parts: Sequence[Part], names: Sequence[str]) -> Sequence[Part]:
    """Return the named parts in their order."""
    by_name = {format_part_id(part.id): part for part in parts}
    selected: dict[str, Part] = {}
    for name in names:
        if name in selected:
            raise InvalidRequest(
                f"Part {name!r} is named twice: name each part once.", param="part_ids"
            )
        if name not in by_name:
            raise InvalidRequest(
                f"Part {name[:100]!r} is not a part of this upload: name those that it has.",
                param="part_ids",
            )
        selected[name] = by_name[name]
    return list(selected.values())


def _check_size(upload: PartedUpload, parts: Sequence[Part]) -> None:
    size = sum(part.size for part in parts)
    if size != upload.size:
        raise InvalidRequest(
            f"The parts have {size} bytes, but the upload was created for {upload.size}: name all "
            "parts, or create another upload.",
            param="part_ids",
        )


def _lost(part: Part) -> PartLost:
    return PartLost(
        f"Part {format_part_id(part.id)!r} no longer has the bytes that were sent: send it again.",
        param="part_ids",
    )


def _full(upload: PartedUpload) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"An upload of {upload.size} bytes takes at most {MAX_PARTS} parts with "
        f"{upload.max_part_bytes} bytes together: send larger parts, or create another upload.",
        param="data",
    )


def _ended(upload: PartedUpload, how: str = "") -> Conflict:
    return Conflict(
        f"Upload {format_upload_id(upload.id)!r} is {upload.status}{how}: create another one.",
        param="upload_id",
    )
