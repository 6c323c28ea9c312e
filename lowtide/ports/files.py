"""The records of files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.domain.files import StoredFile
    from lowtide.domain.ids import FileId, TenantId


class FileCatalog(Protocol):
    """The records of stored files, for one tenant at a time."""

    def expect(self, tenant: TenantId, object_key: str) -> None:
        """Note an object before it is written, so that a crash cannot leave it behind unseen."""
        ...

    def add(self, file: StoredFile, actor: str | None = None) -> None:
        """Record a file whose object is complete; the audit log names `actor`."""
        ...

    def get(self, tenant: TenantId, file: FileId) -> StoredFile:
        """Return a file; raises NotFound."""
        ...

    def page(
        self,
        tenant: TenantId,
        *,
        after: FileId | None,
        limit: int,
        newest_first: bool,
        purpose: str | None,
    ) -> Sequence[StoredFile]:
        """Return up to `limit` files behind `after`."""
        ...

    def download(self, tenant: TenantId, file: FileId, actor: str) -> StoredFile:
        """Return a file to read and tell the audit log; raises NotFound."""
        ...

    def remove(self, tenant: TenantId, file: FileId, actor: str | None = None) -> str | None:
        """Forget a file; return the key of its object, None while an active batch reads that.

        Raises NotFound. The object then goes once no active batch reads it. The audit log names
        `actor`.
        """
        ...

    def removed(self, tenant: TenantId, object_key: str) -> None:
        """Note that the object of a forgotten file is gone from the store."""
        ...
