"""Management of tenants, limits and keys by operators."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from lowtide.core.durations import format_window
from lowtide.core.errors import Conflict, Forbidden, InvalidRequest, NotFound
from lowtide.core.ids import TenantId
from lowtide.tenants.keys import EVERYTHING, Rotation, check_key, parse_overlap
from lowtide.tenants.model import Tenant, check_name, differences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from lowtide.core.ids import KeyId
    from lowtide.tenants.audit import AuditEntry, AuditFilter, AuditLog
    from lowtide.tenants.keys import ApiKey, KeyFilter, KeyMark, KeyStore, KeyTerms, TenantKey
    from lowtide.tenants.model import TenantLimits, TenantUse
    from lowtide.tenants.sign_in import Principal
    from lowtide.tenants.store import TenantStore, TenantUsageStore


MOST = 1_000_000_000
"""The highest weight, and the highest limit of anything but tokens."""
MOST_TOKENS = 1_000_000_000_000_000
SHORTEST_RETENTION = 3600
"""In seconds."""


def most_of(name: str) -> int:
    """Return the highest value of a limit, or of the weight."""
    return MOST_TOKENS if "tokens" in name else MOST


@dataclass(frozen=True, slots=True)
class TenantChanges:
    """Changes to a tenant: `limits` by the names of TenantLimits, None for no limit.

    A `batch_retention` of 0 seconds is the installation's.
    """

    weight: int | None = None
    limits: Mapping[str, int | None] = field(default_factory=dict)
    batch_retention: int | None = None
    zero_retention: bool | None = None

    def apply(self, tenant: Tenant) -> Tenant:
        """Return the changed tenant; raises InvalidRequest for a number out of range."""
        for name, value in {**self.limits, "weight": self.weight}.items():
            most = most_of(name)
            if value is not None and not 1 <= value <= most:
                raise InvalidRequest(
                    f"{name} is {value}: it must be from 1 to {most:,}.", param=name
                )
        kept = tenant.batch_retention if self.batch_retention is None else self.batch_retention
        if kept and not SHORTEST_RETENTION <= kept <= MOST:
            raise InvalidRequest("The retention must be at least 1h.", param="batch_retention")
        return replace(
            tenant,
            batch_retention=kept or None,
            weight=tenant.weight if self.weight is None else self.weight,
            zero_retention=(
                tenant.zero_retention if self.zero_retention is None else self.zero_retention
            ),
            limits=replace(tenant.limits, **self.limits),
        )


class Tenancy:
    """Management of tenants, limits and keys; the audit log records `actor`."""

    def __init__(
        self,
        registry: TenantStore,
        defaults: TenantLimits,
        *,
        actor: str,
        new_id: Callable[[], UUID],
        new_key: Callable[[], str],
        clock: Callable[[], datetime],
    ) -> None:
        self.defaults = defaults
        self._registry = registry
        self._actor = actor
        self._new_id = new_id
        self._new_key = new_key
        self._clock = clock

    def tenants(self) -> Sequence[Tenant]:
        """Return all tenants, sorted by name."""
        return self._registry.tenants()

    def create(self, name: str, changes: TenantChanges) -> Tenant:
        """Create a tenant; `changes` override the defaults. Raises InvalidRequest or Conflict."""
        default = Tenant(
            TenantId(self._new_id()), check_name(name, "name"), 1, self.defaults, self._clock()
        )
        tenant = changes.apply(default)
        self._registry.add(tenant, self._actor)
        return tenant

    def change(self, name: str, changes: TenantChanges, expected: Tenant | None = None) -> Tenant:
        """Change weight and limits, effective from the next request on; raises NotFound.

        Raises Conflict if the tenant differs from `expected`.
        """

        def apply(current: Tenant) -> Tenant:
            if expected is not None and (changed := differences(expected, current)):
                raise Conflict(
                    f"{name} was changed in the meantime: {', '.join(told(changed))}. Review it and try again."
                )
            return changes.apply(current)

        return self._registry.change(name, apply, self._actor)

    def keys(self, tenant: str) -> Sequence[ApiKey]:
        """Return a tenant's keys, oldest first; raises NotFound."""
        return self._registry.keys(tenant)

    def create_key(
        self, tenant: str, name: str, terms: KeyTerms = EVERYTHING, *, key: str | None = None
    ) -> str:
        """Create a key and return it, as it is not stored; raises NotFound or Conflict.

        A `key` of another cell opens both; raises InvalidRequest if it is none.
        """
        key = self._new_key() if key is None else check_key(key)
        self._registry.add_key(tenant, check_name(name, "key"), key, terms, self._actor)
        return key

    def rotate_key(self, tenant: str, name: str, overlap: str) -> Rotation:
        """Create a key's successor with its scopes; the old key works for `overlap` more.

        The overlap is such as `24h` or `0`; the successor has no end.

        Raises NotFound, or InvalidRequest for an invalid overlap.
        """
        span = parse_overlap(overlap)
        key = self._new_key()
        until = self._registry.rotate_key(tenant, name, key, span, self._actor)
        return Rotation(key, until)

    def revoke_key(self, tenant: str, name: str, key: KeyId | None = None) -> None:
        """Revoke the keys of a name, or of these only `key`; raises NotFound."""
        self._registry.revoke_key(tenant, name, self._actor, key)


def told(changes: Mapping[str, tuple[int | None, int | None]]) -> Sequence[str]:
    """Format differences, such as `running requests: 5 → none`."""
    return [
        f"{name.replace('_lines', ' requests').replace('_', ' ')}: {_format_value(name, old)} → {_format_value(name, new)}"
        for name, (old, new) in changes.items()
    ]


def _format_value(name: str, value: int | None) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if name == "batch_retention":
        return "default" if value is None else format_window(timedelta(seconds=value))
    return "none" if value is None else f"{value:,}"


class Administration:
    """Installation-wide records; every method raises Forbidden for a principal of one tenant."""

    def __init__(
        self,
        registry: TenantStore,
        usage: TenantUsageStore,
        keys: KeyStore,
        log: AuditLog,
        currency: str,
        tenancy: Callable[[str], Tenancy],
    ) -> None:
        self._registry = registry
        self._usage = usage
        self._keys = keys
        self._log = log
        self.currency = currency
        self._tenancy = tenancy

    def names(self, principal: Principal) -> Mapping[TenantId, str]:
        """Return every tenant's name, sorted by name."""
        _require_all(principal)
        return {tenant.id: tenant.name for tenant in self._registry.tenants()}

    def ids(self) -> Mapping[str, TenantId]:
        """Return every tenant's id by its name, for the sign-in of people."""
        return {tenant.name: tenant.id for tenant in self._registry.tenants()}

    def own_name(self, principal: Principal) -> str:
        """Return the name of the principal's tenant; raises NotFound without one."""
        for tenant in self._registry.tenants():
            if tenant.id == principal.tenant:
                return tenant.name
        raise NotFound("Tenant not found.")

    def tenants(
        self, principal: Principal, name: str, *, after: str | None, limit: int
    ) -> tuple[Sequence[TenantUse], bool]:
        """Return up to `limit` tenants after the name `after`, and True if there are more."""
        _require_all(principal)
        page = self._usage.page(name, self.currency, after=after, limit=limit + 1)
        return page[:limit], len(page) > limit

    def keys(
        self, principal: Principal, key_filter: KeyFilter, *, after: KeyMark | None, limit: int
    ) -> tuple[Sequence[TenantKey], bool]:
        """Return up to `limit` keys after `after`, newest first, and True if there are more."""
        _require_all(principal)
        page = self._keys.page(key_filter, after=after, limit=limit + 1)
        return page[:limit], len(page) > limit

    def audit(
        self, principal: Principal, audit_filter: AuditFilter, *, after: int | None, limit: int
    ) -> tuple[Sequence[AuditEntry], bool]:
        """Return up to `limit` entries after `after`, newest first, and True if there are more."""
        _require_all(principal)
        page = self._log.page(audit_filter, after=after, limit=limit + 1)
        return page[:limit], len(page) > limit

    def export_audit(
        self, principal: Principal, *, since: datetime | None, after: int
    ) -> Iterator[AuditEntry]:
        """Yield the audit log since a time and after an id, oldest first."""
        _require_all(principal)
        return self._log.export(since=since, after=after)

    def actions(self, principal: Principal) -> Sequence[str]:
        """Return the distinct actions in the audit log, sorted by name."""
        _require_all(principal)
        return self._log.actions()

    def acting(self, principal: Principal) -> Tenancy:
        """Return the service that changes tenants and keys; raises Forbidden for all but admins."""
        principal.require_admin()
        return self._tenancy(principal.name)


def _require_all(principal: Principal) -> None:
    if principal.tenant is not None:
        raise Forbidden("Only available to those who see all tenants: you are signed in to one.")
