"""Registration of buckets by operators."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lowtide.buckets.model import parse_folder_url
from lowtide.buckets.remote import require_foreign
from lowtide.core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.buckets.model import Bucket
    from lowtide.buckets.store import BucketStore


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class Buckets:
    """The registered buckets of all tenants; the audit log records `actor`.

    `own_url` is the installation's object store, which no tenant may reach.
    """

    def __init__(self, buckets: BucketStore, *, own_url: str, actor: str) -> None:
        self._buckets = buckets
        self._own_url = own_url
        self._actor = actor

    def of(self, tenant: str) -> Sequence[Bucket]:
        """Return a tenant's buckets, sorted by URL; raises NotFound."""
        return self._buckets.of_name(tenant)

    def add(
        self, tenant: str, url: str, *, may_read: bool, may_write: bool, credentials: str
    ) -> Bucket:
        """Register a bucket or a folder in it; raises InvalidRequest, NotFound or Conflict.

        `credentials` names a set of the installation; the set itself is never stored.
        """
        if not (may_read or may_write):
            raise InvalidRequest("Allow reading, writing or both.", param="may_read")
        if not _NAME.fullmatch(credentials):
            raise InvalidRequest(
                f"{credentials[:100]!r} is no name of credentials: use letters, digits and _.-",
                param="credentials",
            )
        folder = parse_folder_url(url, "url")
        require_foreign(folder, self._own_url)
        return self._buckets.add(
            tenant,
            folder,
            may_read=may_read,
            may_write=may_write,
            credentials=credentials,
            actor=self._actor,
        )

    def remove(self, tenant: str, url: str) -> None:
        """Remove a registration; raises InvalidRequest or NotFound."""
        self._buckets.remove(tenant, parse_folder_url(url, "url"), self._actor)
