"""The records of tenants and keys, for an operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime, timedelta

    from lowtide.domain.api_keys import ApiKey
    from lowtide.domain.ids import KeyId
    from lowtide.domain.tenants import Tenant


class TenantRegistry(Protocol):
    """Every tenant. What changes is in the audit log, under the actor's name."""

    def tenants(self) -> Sequence[Tenant]:
        """Return all tenants, by name."""
        ...

    def add(self, tenant: Tenant, actor: str) -> None:
        """Record a tenant; raises Conflict when its name is taken."""
        ...

    def change(self, name: str, change: Callable[[Tenant], Tenant], actor: str) -> Tenant:
        """Give a tenant the weight and limits that `change` returns; raises NotFound."""
        ...

    def keys(self, tenant: str) -> Sequence[ApiKey]:
        """Return a tenant's keys, oldest first; raises NotFound."""
        ...

    def add_key(self, tenant: str, name: str, key: str, actor: str) -> None:
        """Store a key's hash; raises NotFound, or Conflict when a key of that name is in use."""
        ...

    def rotate_key(
        self, tenant: str, name: str, key: str, overlap: timedelta, actor: str
    ) -> datetime:
        """Store the hash of the key that follows; return until when the old one works.

        Raises NotFound when none of that name is in use.
        """
        ...

    def revoke_key(self, tenant: str, name: str, actor: str, key: KeyId | None = None) -> None:
        """End the keys of a name at once, or the one of them that `key` names.

        Raises NotFound when none is in use.
        """
        ...
