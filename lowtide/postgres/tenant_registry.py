"""The records of tenants and keys, as the operator's role sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from lowtide.domain.api_keys import actor_of
from lowtide.domain.errors import Conflict, NotFound
from lowtide.domain.ids import TenantId
from lowtide.domain.limits import TenantLimits
from lowtide.domain.tenants import Tenant
from lowtide.postgres.api_keys import add_key, keys_of, let_expire, revoke_keys
from lowtide.postgres.audit import note
from lowtide.postgres.connections import begin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime, timedelta

    from sqlalchemy import Connection, Engine

    from lowtide.domain.api_keys import ApiKey
    from lowtide.domain.ids import KeyId

TENANT_COLUMNS = (
    "id, name, weight, max_requests_per_minute, max_active_batches, max_queued_lines, max_running, "
    "created_at"
)
_LIST = text(f"SELECT {TENANT_COLUMNS} FROM tenants ORDER BY name")  # noqa: S608
_LOCK = text(f"SELECT {TENANT_COLUMNS} FROM tenants WHERE name = :name FOR UPDATE")  # noqa: S608
_ADD = text(f"""
INSERT INTO tenants ({TENANT_COLUMNS}) VALUES (:id, :name, :weight, :max_requests_per_minute,
  :max_active_batches, :max_queued_lines, :max_running, :created_at)
ON CONFLICT (name) DO NOTHING
""")  # noqa: S608
_CHANGE = text("""
UPDATE tenants SET weight = :weight, max_requests_per_minute = :max_requests_per_minute,
  max_active_batches = :max_active_batches, max_queued_lines = :max_queued_lines,
  max_running = :max_running
WHERE id = :id
""")


class PostgresTenantRegistry:
    """Port TenantRegistry."""

    def __init__(self, engine: Engine, *, pepper: str) -> None:
        self._engine = engine
        self._pepper = pepper

    def tenants(self) -> Sequence[Tenant]:
        """Return all tenants, by name."""
        with begin(self._engine) as connection:
            return [tenant_of(row) for row in connection.execute(_LIST)]

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
            return keys_of(connection, _lock(connection, tenant).id)

    def add_key(self, tenant: str, name: str, key: str, actor: str) -> None:
        """Store a key's hash; raises NotFound, or Conflict when a key of that name is in use."""
        with begin(self._engine) as connection:
            id_ = _lock(connection, tenant).id
            made = add_key(connection, id_, name, key, self._pepper)
            note(connection, id_, actor, "key.created", [actor_of(name, made)])

    def rotate_key(
        self, tenant: str, name: str, key: str, overlap: timedelta, actor: str
    ) -> datetime:
        """Store the hash of the key that follows; return until when the old one works."""
        with begin(self._engine) as connection:
            id_ = _lock(connection, tenant).id
            ends = let_expire(connection, id_, name, overlap)
            made = add_key(connection, id_, name, key, self._pepper, again=True)
            subject = f"{actor_of(name, made)}: the one before it ends {ends:%Y-%m-%d %H:%M:%S} UTC"
            note(connection, id_, actor, "key.rotated", [subject])
        return ends

    def revoke_key(self, tenant: str, name: str, actor: str, key: KeyId | None = None) -> None:
        """End a key at once; raises NotFound when none of that name is in use."""
        with begin(self._engine) as connection:
            id_ = _lock(connection, tenant).id
            ended = revoke_keys(connection, id_, name, key)
            note(connection, id_, actor, "key.revoked", [actor_of(name, each) for each in ended])


def _lock(connection: Connection, name: str) -> Tenant:
    row = connection.execute(_LOCK, {"name": name}).one_or_none()
    if row is None:
        raise NotFound(
            f"No tenant {name[:100]!r}: see `lowtide tenants list` for those there are.",
            param="name",
        )
    return tenant_of(row)


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


def tenant_of(row: Any) -> Tenant:
    """Return the tenant in a row of `tenants`."""
    limits = TenantLimits(
        requests_per_minute=row.max_requests_per_minute,
        active_batches=row.max_active_batches,
        queued_lines=row.max_queued_lines,
        running_lines=row.max_running,
    )
    return Tenant(TenantId(row.id), row.name, row.weight, limits, row.created_at)
