"""The records of API keys, as the operator's role sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.auth.keys import hash_key, prefix_of
from lowtide.domain.api_keys import ApiKey, KeyState, TenantKey
from lowtide.domain.errors import Conflict, NotFound
from lowtide.domain.ids import KeyId
from lowtide.postgres.connections import begin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from sqlalchemy import Connection, Engine

    from lowtide.domain.api_keys import KeyFilter, KeyMark
    from lowtide.domain.ids import TenantId

_COLUMNS = "id, name, prefix, created_at, last_used_at, expires_at, revoked_at"
_IN_USE = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"
_OF_TENANT = text(
    f"SELECT {_COLUMNS} FROM api_keys WHERE tenant_id = :tenant ORDER BY created_at, id"  # noqa: S608
)
_STATES = {
    None: "true",
    KeyState.ACTIVE: "revoked_at IS NULL AND expires_at IS NULL",
    KeyState.EXPIRING: "revoked_at IS NULL AND expires_at > now()",
    KeyState.EXPIRED: "revoked_at IS NULL AND expires_at <= now()",
    KeyState.REVOKED: "revoked_at IS NOT NULL",
}
PAGES = {
    (state, of_tenant): f"""
SELECT k.*, t.name AS tenant_name, now() AS at FROM (
  SELECT {_COLUMNS}, tenant_id FROM api_keys
  WHERE {is_such} {"AND tenant_id = :tenant" if of_tenant else ""}
    AND (cast(:text AS text) IS NULL OR strpos(name, :text) > 0 OR starts_with(prefix, :text))
    AND (cast(:after AS uuid) IS NULL
      OR (created_at, id) < (cast(:created_at AS timestamptz), cast(:after AS uuid)))
  ORDER BY created_at DESC, id DESC LIMIT :limit
) k JOIN tenants t ON t.id = k.tenant_id
ORDER BY k.created_at DESC, k.id DESC
"""  # noqa: S608
    for state, is_such in _STATES.items()
    for of_tenant in (False, True)
}
"""The statement of each state, for all tenants and for one."""
_PAGES = {which: text(statement) for which, statement in PAGES.items()}
# The tenant's row is locked: a name cannot be taken twice at once.
_ADD = text(f"""
INSERT INTO api_keys (hash, tenant_id, name, prefix) SELECT :hash, :tenant, :name, :prefix
WHERE :again OR NOT EXISTS (
  SELECT 1 FROM api_keys WHERE tenant_id = :tenant AND name = :name AND {_IN_USE})
RETURNING id
""")  # noqa: S608
_EXPIRE = text(f"""
UPDATE api_keys SET expires_at = least(expires_at, now() + cast(:overlap AS interval))
WHERE tenant_id = :tenant AND name = :name AND {_IN_USE} RETURNING expires_at
""")  # noqa: S608
_REVOKE = text(f"""
UPDATE api_keys SET revoked_at = now()
WHERE tenant_id = :tenant AND name = :name AND {_IN_USE}
  AND (cast(:id AS uuid) IS NULL OR id = :id)
RETURNING id
""")  # noqa: S608


class PostgresKeyListing:
    """Port KeyListing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(self, wanted: KeyFilter, *, after: KeyMark | None, limit: int) -> Sequence[TenantKey]:
        """Return up to `limit` keys behind `after`, newest first."""
        parameters = {
            "tenant": wanted.tenant,
            "text": wanted.text or None,
            "after": None if after is None else after.id,
            "created_at": None if after is None else after.created_at,
            "limit": limit,
        }
        statement = _PAGES[wanted.state, wanted.tenant is not None]
        if wanted.tenant is None:
            del parameters["tenant"]
        with begin(self._engine) as connection:
            rows = connection.execute(statement, parameters)
            return [TenantKey(row.tenant_name, _key(row), row.at) for row in rows]


def keys_of(connection: Connection, tenant: TenantId) -> Sequence[ApiKey]:
    """Return a tenant's keys, oldest first."""
    return [_key(row) for row in connection.execute(_OF_TENANT, {"tenant": tenant})]


def add_key(
    connection: Connection,
    tenant: TenantId,
    name: str,
    key: str,
    pepper: str,
    *,
    again: bool = False,
) -> KeyId:
    """Store a key's hash; raises Conflict when the name is in use, unless it is given `again`."""
    row = {
        "hash": hash_key(key, pepper),
        "tenant": tenant,
        "name": name,
        "prefix": prefix_of(key),
        "again": again,
    }
    made = connection.execute(_ADD, row).scalar_one_or_none()
    if made is None:
        raise Conflict(
            f"There is a key {name!r} already: choose another name, rotate that one, or revoke it "
            "first.",
            param="key",
        )
    return KeyId(made)


def let_expire(connection: Connection, tenant: TenantId, name: str, overlap: timedelta) -> datetime:
    """End the keys of a name after `overlap`, none later than before; return when the last does.

    Raises NotFound when none of that name is in use.
    """
    parameters = {"tenant": tenant, "name": name, "overlap": overlap}
    ends: list[datetime] = list(connection.execute(_EXPIRE, parameters).scalars())
    if not ends:
        raise _no_key(name)
    return max(ends)


def revoke_keys(
    connection: Connection, tenant: TenantId, name: str, key: KeyId | None
) -> Sequence[KeyId]:
    """End the keys of a name at once, or the one of them that is named; raises NotFound."""
    parameters = {"tenant": tenant, "name": name, "id": key}
    ended = [KeyId(row) for row in connection.execute(_REVOKE, parameters).scalars()]
    if not ended:
        raise _no_key(name)
    return ended


def _no_key(name: str) -> NotFound:
    return NotFound(
        f"The tenant has no key {name[:100]!r} in use: `lowtide keys list` shows those there are.",
        param="key",
    )


def _key(row: Any) -> ApiKey:
    return ApiKey(
        id=KeyId(row.id),
        name=row.name,
        prefix=row.prefix,
        created_at=row.created_at,
        last_used_at=row.last_used_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
