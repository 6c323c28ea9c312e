"""Presigned uploads: clients write the parts into the object store, past our processes."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from lowtide.core.errors import InvalidRequest, NotFound, Unavailable
from lowtide.core.ids import FileId, derived_part_id, format_file_id, format_part_id
from lowtide.files.model import FileStatus, Purpose, StoredFile
from lowtide.objects.joined import Piece, joined_key
from lowtide.uploads.model import MAX_PART_BYTES, PartedUpload, PartLost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from lowtide.core.ids import PartId
    from lowtide.files.store import FileStore
    from lowtide.objects.joined import JoinedObjects
    from lowtide.objects.presigned import Presigner
    from lowtide.uploads.store import UploadStore


MAX_PARTS: Final = 10_000
PRESIGNED_SECONDS: Final = 24 * 3600
"""The time after which a pending presigned upload and its URLs expire."""
# A PUT that started before its URL expired may end later.
_LONGEST_PUT_SECONDS: Final = 3600
# No valid line of an input file is shorter.
_SHORTEST_LINE: Final = 60

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PresignedPart:
    """A part of an upload: a PUT of `size` bytes, with `headers`, to its URL."""

    id: PartId
    url: str
    size: int
    headers: Mapping[str, str]


class PresignedUploads:
    """The rules of presigned uploads.

    URLs stay valid when an upload ends early. So they lead to objects that are orphans until after
    the URLs' expiry, and a file is made of copies, which no URL can change.
    """

    def __init__(
        self,
        uploads: UploadStore,
        files: FileStore,
        objects: JoinedObjects,
        presigner: Presigner,
        *,
        file_expiry: int,
        max_lines: int,
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
    ) -> None:
        self._uploads = uploads
        self._files = files
        self._objects = objects
        self._presigner = presigner
        self._file_expiry = file_expiry
        self._max_lines = max_lines
        self._new_id = new_id
        self._clock = clock

    def create(self, upload: PartedUpload) -> PartedUpload:
        """Record a presigned upload.

        Raises InvalidRequest if the object store cannot sign URLs, and with zero retention.
        """
        if upload.zero_retention:
            raise InvalidRequest(
                "With zero retention this server encrypts every byte before it is stored, but "
                "presigned parts reach the object store in plain: send the parts to the API, "
                "without this parameter.",
                param="transfer",
                code="zero_retention_not_presigned",
            )
        self._presigner.check("transfer")
        presigned = replace(
            upload,
            part_size=max(MAX_PART_BYTES, -(-upload.size // MAX_PARTS)),
            expires_at=upload.created_at + timedelta(seconds=PRESIGNED_SECONDS),
        )
        seconds = PRESIGNED_SECONDS + _LONGEST_PUT_SECONDS
        self._uploads.create(presigned, _keys(presigned), seconds)
        return presigned

    def parts(self, upload: PartedUpload) -> Sequence[PresignedPart]:
        """Return the parts of an upload, in their order, with URLs that expire with it."""
        sizes, headers = _sizes(upload), self._presigner.upload_headers
        seconds = (upload.expires_at - self._clock()).total_seconds()
        urls = self._presigner.sign("PUT", _keys(upload), seconds)
        parts = zip(part_ids(upload), urls, sizes, strict=True)
        return [PresignedPart(id_, url, size, headers) for id_, url, size in parts]

    def assemble(self, upload: PartedUpload, names: Sequence[str], actor: str) -> None:
        """Make the file of an upload, of copies of its parts inside the store.

        Raises InvalidRequest for other parts, PartLost for missing ones and those of another size,
        and UploadEnded.
        """
        if list(names) != [format_part_id(part) for part in part_ids(upload)]:
            raise InvalidRequest(
                "A presigned upload has all of its parts, in their order: name those, or none.",
                param="part_ids",
            )
        self._check(upload)
        file = FileId(self._new_id())
        pieces = [
            Piece(f"files/{file.hex}/{number:05}", size)
            for number, size in enumerate(_sizes(upload), 1)
        ]
        copies = [piece.key for piece in pieces]
        key = copies[0] if len(copies) == 1 else joined_key(file.hex)
        self._files.expect(upload.tenant, key, *copies)
        self._copy(upload, file, pieces)
        if len(copies) > 1:
            self._objects.join(key, pieces)
        record = self._record(upload, file, key)
        self._uploads.complete(upload.id, part_ids(upload), record, actor, copies)
        _log.info("file.stored", extra={"file_id": format_file_id(file), "bytes": record.size})
        # What remains is deleted when the URLs have expired.
        with suppress(Unavailable):
            self.remove(upload)

    def remove(self, upload: PartedUpload) -> None:
        """Delete the parts that have arrived; the scheduler deletes those that arrive later."""
        self._objects.delete(_keys(upload))

    def _check(self, upload: PartedUpload) -> None:
        """Raise PartLost unless every part has arrived with its size."""
        arrived = self._presigner.sizes(_folder(upload))
        for number, (part, size) in enumerate(
            zip(part_ids(upload), _sizes(upload), strict=True), 1
        ):
            found = arrived.get(f"{number:05}")
            if found != size:
                state = "has not arrived" if found is None else f"has {found} bytes, not {size}"
                raise PartLost(
                    f"Part {format_part_id(part)!r} {state}: send its bytes to its URL.",
                    param="part_ids",
                )

    def _copy(self, upload: PartedUpload, file: FileId, pieces: Sequence[Piece]) -> None:
        """Copy the parts; raises PartLost, or Unavailable if one changes meanwhile."""
        try:
            self._presigner.copy(
                [(key, piece.key) for key, piece in zip(_keys(upload), pieces, strict=True)]
            )
        except NotFound as error:
            raise PartLost("A part was deleted: send its bytes again.", param="part_ids") from error
        copied = self._presigner.sizes(f"files/{file.hex}")
        if copied != {piece.key.rpartition("/")[2]: piece.size for piece in pieces}:
            raise Unavailable("Parts changed while the file was made of them: try again.")

    def _record(self, upload: PartedUpload, file: FileId, key: str) -> StoredFile:
        now = self._clock()
        expires_after = upload.file_expires_after or self._file_expiry
        return StoredFile(
            id=file,
            tenant=upload.tenant,
            purpose=Purpose.BATCH,
            filename=upload.filename,
            size=upload.size,
            lines=min(self._max_lines, -(-upload.size // _SHORTEST_LINE)),
            sha256=None,
            object_key=key,
            status=FileStatus.UPLOADED,
            status_details=None,
            created_at=now,
            expires_at=now + timedelta(seconds=expires_after),
        )


def part_ids(upload: PartedUpload) -> Sequence[PartId]:
    """Return the ids of the parts of a presigned upload, in their order."""
    return [derived_part_id(upload.id, number) for number, _ in enumerate(_sizes(upload), 1)]


def _sizes(upload: PartedUpload) -> Sequence[int]:
    """Return the sizes of the parts; an empty file has one part, too."""
    size = upload.part_size or upload.size
    return [min(size, upload.size - start) for start in range(0, max(1, upload.size), max(1, size))]


def _folder(upload: PartedUpload) -> str:
    return f"parts/{upload.id.hex}"


def _keys(upload: PartedUpload) -> Sequence[str]:
    return [f"{_folder(upload)}/{number:05}" for number, _ in enumerate(_sizes(upload), 1)]
