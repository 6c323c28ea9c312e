"""The records of tenants and keys, as the operator's role sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.auth.keys import hash_key
from lowtide.domain.errors import Conflict, NotFound
from lowtide.domain.ids import TenantId
from lowtide.domain.limits import TenantLimits
from lowtide.domain.tenants import ApiKey, Tenant
from lowtide.postgres.audit import note
from lowtide.postgres.connections import begin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection, Engine

_COLUMNS = (
    "id, name, weight, max_requests_per_minute, max_active_batches, max_queued_lines, max_running, "
    "created_at"
)
_LIST = text(f"SELECT {_COLUMNS} FROM tenants ORDER BY name")  # noqa: S608
_LOCK = text(f"SELECT {_COLUMNS} FROM tenants WHERE name = :name FOR UPDATE")  # noqa: S608
_ADD = text(f"""
INSERT INTO tenants ({_COLUMNS}) VALUES (:id, :name, :weight, :max_requests_per_minute,
  :max_active_batches, :max_queued_lines, :max_running, :created_at)
ON CONFLICT (name) DO NOTHING
""")  # noqa: S608
_CHANGE = text("""
UPDATE tenants SET weight = :weight, max_requests_per_minute = :max_requests_per_minute,
  max_active_batches = :max_active_batches, max_queued_lines = :max_queued_lines,
  max_running = :max_running
WHERE id = :id
""")
_KEYS = text("""
SELECT name, created_at, revoked_at FROM api_keys WHERE tenant_id = :tenant ORDER BY created_at, name
""")
# The tenant's row is locked: a name cannot be taken twice at once.
_ADD_KEY = text("""
INSERT INTO api_keys (hash, tenant_id, name) SELECT :hash, :tenant, :name
WHERE NOT EXISTS (
  SELECT 1 FROM api_keys WHERE tenant_id = :tenant AND name = :name AND revoked_at IS NULL)
""")
_REVOKE = text("""
UPDATE api_keys SET revoked_at = now()
WHERE tenant_id = :tenant AND name = :name AND revoked_at IS NULL
""")


class PostgresTenantRegistry:
    """Port TenantRegistry."""

    def __init__(self, engine: Engine, *, pepper: str) -> None:
        self._engine = engine
        self._pepper = pepper

    def tenants(self) -> Sequence[Tenant]:
        """Return all tenants, by name."""
        with begin(self._engine) as connection:
            return [_tenant(row) for row in connection.execute(_LIST)]

    def add(self, tenant: Tenant, actor: str) -> None:
        """Record a tenant; raises Conflict when its name is taken."""
        values = _values(tenant)
        with begin(self._engine) as connection:
            row = values | {"name": tenant.name, "created_at": tenant.created_at}
            if connection.execute(_ADD, row).rowcount == 0:
                raise Conflict(f"There is a tenant {tenant.name!r} already.", param="name")
            note(connection, tenant.id, actor, "tenant.created", [tenant.name])
            _note_changes(connection, tenant, {"weight": 1}, actor)

    def change(self, name: str, change: Callable[[Tenant], Tenant], actor: str) -> Tenant:
        """Give a tenant the weight and limits that `change` returns; raises NotFound."""
        with begin(self._engine) as connection:
            before = _lock(connection, name)
            after = change(before)
            connection.execute(_CHANGE, _values(after))
            _note_changes(connection, after, _values(before), actor)
        return after

    def keys(self, tenant: str) -> Sequence[ApiKey]:
        """Return a tenant's keys, oldest first; raises NotFound."""
        with begin(self._engine) as connection:
            rows = connection.execute(_KEYS, {"tenant": _lock(connection, tenant).id})
            return [ApiKey(row.name, row.created_at, row.revoked_at) for row in rows]

    def add_key(self, tenant: str, name: str, key: str, actor: str) -> None:
        """Store a key's hash; raises NotFound, or Conflict when a key of that name is in use."""
        with begin(self._engine) as connection:
            id_ = _lock(connection, tenant).id
            row = {"hash": hash_key(key, self._pepper), "tenant": id_, "name": name}
            if connection.execute(_ADD_KEY, row).rowcount == 0:
                raise Conflict(
                    f"Tenant {tenant!r} has a key {name!r} already: choose another name, or revoke "
                    "that one first.",
                    param="key",
                )
            note(connection, id_, actor, "key.created", [name])

    def revoke_key(self, tenant: str, name: str, actor: str) -> None:
        """End a key at once; raises NotFound when none of that name is in use."""
        with begin(self._engine) as connection:
            id_ = _lock(connection, tenant).id
            if connection.execute(_REVOKE, {"tenant": id_, "name": name}).rowcount == 0:
                raise NotFound(
                    f"Tenant {tenant!r} has no key {name[:100]!r} in use: see `lowtide keys list "
                    f"{tenant}`.",
                    param="key",
                )
            note(connection, id_, actor, "key.revoked", [name])


def _lock(connection: Connection, name: str) -> Tenant:
    row = connection.execute(_LOCK, {"name": name}).one_or_none()
    if row is None:
        raise NotFound(
            f"No tenant {name[:100]!r}: see `lowtide tenants list` for those there are.",
            param="name",
        )
    return _tenant(row)


def _note_changes(
    connection: Connection, tenant: Tenant, before: dict[str, object], actor: str
) -> None:
    """Record what is different, as `max_running: 5 -> none`."""
    subjects = [
        f"{name}: {_shown(before.get(name))} -> {_shown(value)}"
        for name, value in _values(tenant).items()
        if name != "id" and value != before.get(name)
    ]
    if subjects:
        note(connection, tenant.id, actor, "tenant.changed", subjects)


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def _values(tenant: Tenant) -> dict[str, object]:
    return {
        "id": tenant.id,
        "weight": tenant.weight,
        "max_requests_per_minute": tenant.limits.requests_per_minute,
        "max_active_batches": tenant.limits.active_batches,
        "max_queued_lines": tenant.limits.queued_lines,
        "max_running": tenant.limits.running_lines,
    }


def _tenant(row: Any) -> Tenant:
    limits = TenantLimits(
        requests_per_minute=row.max_requests_per_minute,
        active_batches=row.max_active_batches,
        queued_lines=row.max_queued_lines,
        running_lines=row.max_running,
    )
    return Tenant(TenantId(row.id), row.name, row.weight, limits, row.created_at)
