"""Presigned downloads: clients read files from the object store, past our processes."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from lowtide.core.errors import InvalidRequest
from lowtide.objects.joined import Piece, is_joined
from lowtide.objects.presigned import SignedPiece

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from lowtide.core.ids import FileId, TenantId
    from lowtide.files.model import StoredFile
    from lowtide.files.store import FileStore
    from lowtide.objects.joined import JoinedObjects
    from lowtide.objects.presigned import Presigner


# Clients follow a redirect at once, and may read as long as they like.
_REDIRECT_SECONDS: Final = 300


class PresignedDownloads:
    """URLs of the files of tenants; with `redirects`, ordinary downloads use them, too."""

    def __init__(
        self,
        files: FileStore,
        objects: JoinedObjects,
        presigner: Presigner,
        *,
        redirects: bool,
        clock: Callable[[], datetime],
    ) -> None:
        self._files = files
        self._objects = objects
        self._presigner = presigner
        self._redirects = redirects
        self._clock = clock

    def sign(
        self, tenant: TenantId, file: FileId, seconds: int, *, actor: str
    ) -> tuple[Sequence[SignedPiece], datetime]:
        """Return the URLs of a file's pieces, in their order, and when those expire.

        It is recorded in the audit log as a download. Raises NotFound, or InvalidRequest if the
        object store cannot sign URLs, and for a file with zero retention.
        """
        if self._files.get(tenant, file).zero_retention:
            raise InvalidRequest(
                "The file has zero retention: the object store has only its encrypted bytes, which "
                "this server decrypts. Download it without this parameter.",
                param="presign",
                code="zero_retention_not_presigned",
            )
        self._presigner.check("presign")
        expires_at = self._clock() + timedelta(seconds=seconds)
        record = self._files.download(tenant, file, actor)
        pieces = [Piece(record.object_key, record.size)]
        if is_joined(record.object_key):
            pieces = list(self._objects.pieces(record.object_key))
        urls = self._presigner.sign("GET", [piece.key for piece in pieces], seconds)
        signed = zip(urls, pieces, strict=True)
        return [SignedPiece(url, piece.size) for url, piece in signed], expires_at

    def redirect(self, file: StoredFile, *, actor: str) -> str | None:
        """Return the URL for an ordinary download of a file, recorded in the audit log.

        None if redirects are off, if the file is made of several objects, or if it is encrypted.
        """
        if not self._redirects or is_joined(file.object_key) or file.zero_retention:
            return None
        pieces, _ = self.sign(file.tenant, file.id, _REDIRECT_SECONDS, actor=actor)
        return pieces[0].url
