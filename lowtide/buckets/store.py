"""The records of registered buckets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.buckets.model import Bucket, parse_bucket_url
from lowtide.core.errors import Conflict, NotFound
from lowtide.core.ids import TenantId
from lowtide.database.connections import acting_for, begin
from lowtide.tenants.audit import note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Engine

    from lowtide.buckets.model import BucketUrl


OF_TENANT = """
SELECT url, may_read, may_write, credentials, created_at, created_by FROM buckets
WHERE tenant_id = :tenant ORDER BY url
"""
_OF_TENANT = text(OF_TENANT)
_TENANT = text("SELECT id FROM tenants WHERE name = :name")
_ADD = text("""
INSERT INTO buckets (tenant_id, url, may_read, may_write, credentials, created_by)
VALUES (:tenant, :url, :may_read, :may_write, :credentials, :actor)
ON CONFLICT DO NOTHING RETURNING created_at
""")
_REMOVE = text("DELETE FROM buckets WHERE tenant_id = :tenant AND url = :url")


class BucketStore:
    """The registered buckets of tenants."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def of(self, tenant: TenantId) -> Sequence[Bucket]:
        """Return a tenant's buckets, sorted by URL."""
        with acting_for(self._engine, tenant) as connection:
            return _buckets(connection, tenant)

    def of_name(self, tenant: str) -> Sequence[Bucket]:
        """Return the buckets of the tenant with this name; raises NotFound."""
        with begin(self._engine) as connection:
            return _buckets(connection, _tenant(connection, tenant))

    def add(
        self,
        tenant: str,
        url: BucketUrl,
        *,
        may_read: bool,
        may_write: bool,
        credentials: str,
        actor: str,
    ) -> Bucket:
        """Register a folder; raises NotFound, or Conflict if it is registered."""
        with begin(self._engine) as connection:
            owner = _tenant(connection, tenant)
            values = {"may_read": may_read, "may_write": may_write, "credentials": credentials}
            created_at = connection.execute(
                _ADD, values | {"tenant": owner, "url": str(url), "actor": actor}
            ).scalar_one_or_none()
            if created_at is None:
                raise Conflict(
                    f"{url} is already registered for {tenant}: remove it first.", param="url"
                )
            rights = [name for name, given in (("read", may_read), ("write", may_write)) if given]
            subject = f"{url}: {' and '.join(rights)} with the credentials {credentials}"
            note(connection, owner, actor, "bucket.registered", [subject])
        return Bucket(url, may_read, may_write, credentials, created_at, actor)

    def remove(self, tenant: str, url: BucketUrl, actor: str) -> None:
        """Remove a folder's registration; raises NotFound."""
        with begin(self._engine) as connection:
            owner = _tenant(connection, tenant)
            if connection.execute(_REMOVE, {"tenant": owner, "url": str(url)}).rowcount == 0:
                raise NotFound(
                    f"{url} is not registered for {tenant}: see `lowtide buckets list`.",
                    param="url",
                )
            note(connection, owner, actor, "bucket.removed", [str(url)])


def _tenant(connection: Connection, name: str) -> TenantId:
    id_: Any = connection.execute(_TENANT, {"name": name}).scalar_one_or_none()
    if id_ is None:
        raise NotFound(
            f"Tenant {name[:100]!r} not found: see `lowtide tenants list`.", param="tenant"
        )
    return TenantId(id_)


def _buckets(connection: Connection, tenant: TenantId) -> Sequence[Bucket]:
    return [
        Bucket(
            parse_bucket_url(row.url, "url"),
            row.may_read,
            row.may_write,
            row.credentials,
            row.created_at,
            row.created_by,
        )
        for row in connection.execute(_OF_TENANT, {"tenant": tenant})
    ]
