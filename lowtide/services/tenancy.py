"""What an operator does with tenants, their limits and their keys."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lowtide.domain.errors import InvalidRequest
from lowtide.domain.ids import TenantId
from lowtide.domain.tenants import Tenant, check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from lowtide.domain.limits import TenantLimits
    from lowtide.domain.tenants import ApiKey
    from lowtide.ports import TenantRegistry


@dataclass(frozen=True, slots=True)
class TenantChanges:
    """What becomes different: `limits` by the names of TenantLimits, None for no limit."""

    weight: int | None = None
    limits: Mapping[str, int | None] = field(default_factory=dict)

    def apply(self, tenant: Tenant) -> Tenant:
        """Return the changed tenant; raises InvalidRequest for a number below 1."""
        for name, value in {**self.limits, "weight": self.weight}.items():
            if value is not None and value < 1:
                raise InvalidRequest(f"{name} is {value}: it must be at least 1.", param=name)
        return replace(
            tenant,
            weight=tenant.weight if self.weight is None else self.weight,
            limits=replace(tenant.limits, **self.limits),
        )


class Tenancy:
    """Tenants, limits and keys; `actor` is who the audit log names."""

    def __init__(
        self,
        registry: TenantRegistry,
        defaults: TenantLimits,
        *,
        actor: str,
        new_id: Callable[[], UUID],
        new_key: Callable[[], str],
        clock: Callable[[], datetime],
    ) -> None:
        self._registry = registry
        self._defaults = defaults
        self._actor = actor
        self._new_id = new_id
        self._new_key = new_key
        self._clock = clock

    def tenants(self) -> Sequence[Tenant]:
        """Return all tenants, by name."""
        return self._registry.tenants()

    def create(self, name: str, changes: TenantChanges) -> Tenant:
        """Create a tenant with the default limits, changed; raises InvalidRequest or Conflict."""
        plain = Tenant(
            TenantId(self._new_id()), check_name(name, "name"), 1, self._defaults, self._clock()
        )
        made = changes.apply(plain)
        self._registry.add(made, self._actor)
        return made

    def change(self, name: str, changes: TenantChanges) -> Tenant:
        """Change weight and limits; they hold from the next request on. Raises NotFound."""
        return self._registry.change(name, changes.apply, self._actor)

    def keys(self, tenant: str) -> Sequence[ApiKey]:
        """Return a tenant's keys, oldest first; raises NotFound."""
        return self._registry.keys(tenant)

    def create_key(self, tenant: str, name: str) -> str:
        """Return a new key, which can never be seen again; raises NotFound or Conflict."""
        key = self._new_key()
        self._registry.add_key(tenant, check_name(name, "key"), key, self._actor)
        return key

    def revoke_key(self, tenant: str, name: str) -> None:
        """End a key at once; raises NotFound."""
        self._registry.revoke_key(tenant, name, self._actor)
