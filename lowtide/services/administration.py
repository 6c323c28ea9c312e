"""Looking at tenants, keys and what was done, and who may change them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide.domain.errors import Forbidden
from lowtide.domain.pricing import cost_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lowtide.domain.api_keys import KeyFilter, KeyMark, TenantKey
    from lowtide.domain.audit import AuditEntry, AuditFilter
    from lowtide.domain.ids import TenantId
    from lowtide.domain.pricing import Cost, Prices
    from lowtide.domain.tenants import TenantUse
    from lowtide.domain.visitors import Visitor
    from lowtide.ports import AuditLog, KeyListing, TenantRegistry, TenantUsage
    from lowtide.services.tenancy import Tenancy


@dataclass(frozen=True, slots=True)
class PricedUse:
    """What a tenant uses, and what that cost."""

    use: TenantUse
    cost: Cost


class Administration:
    """The whole installation's records. Every method raises Forbidden for who sees one tenant."""

    def __init__(
        self,
        registry: TenantRegistry,
        usage: TenantUsage,
        keys: KeyListing,
        log: AuditLog,
        prices: Prices,
        tenancy: Callable[[str], Tenancy],
    ) -> None:
        self._registry = registry
        self._usage = usage
        self._keys = keys
        self._log = log
        self._prices = prices
        self._tenancy = tenancy

    def names(self, visitor: Visitor) -> Mapping[TenantId, str]:
        """Return every tenant's name, by name."""
        _require_all(visitor)
        return {tenant.id: tenant.name for tenant in self._registry.tenants()}

    def tenants(
        self, visitor: Visitor, name: str, *, after: str | None, limit: int
    ) -> tuple[Sequence[PricedUse], bool]:
        """Return up to `limit` tenants behind `after`, by name, and whether there are more."""
        _require_all(visitor)
        found = self._usage.page(name, after=after, limit=limit + 1)
        priced = [
            PricedUse(use, cost_of(use.spot_seconds, use.dedicated_seconds, self._prices))
            for use in found[:limit]
        ]
        return priced, len(found) > limit

    def keys(
        self, visitor: Visitor, wanted: KeyFilter, *, after: KeyMark | None, limit: int
    ) -> tuple[Sequence[TenantKey], bool]:
        """Return up to `limit` keys behind `after`, newest first, and whether there are more."""
        _require_all(visitor)
        found = self._keys.page(wanted, after=after, limit=limit + 1)
        return found[:limit], len(found) > limit

    def audit(
        self, visitor: Visitor, wanted: AuditFilter, *, after: int | None, limit: int
    ) -> tuple[Sequence[AuditEntry], bool]:
        """Return up to `limit` entries behind `after`, newest first, and whether there are more."""
        _require_all(visitor)
        found = self._log.page(wanted, after=after, limit=limit + 1)
        return found[:limit], len(found) > limit

    def actions(self, visitor: Visitor) -> Sequence[str]:
        """Return every action that is in the audit log, by name."""
        _require_all(visitor)
        return self._log.actions()

    def acting(self, visitor: Visitor) -> Tenancy:
        """Return what changes tenants and keys; raises Forbidden for a viewer, too."""
        visitor.require_operator_of_all()
        return self._tenancy(visitor.name)


def _require_all(visitor: Visitor) -> None:
    if visitor.tenant is not None:
        raise Forbidden("This shows every tenant: sign in with a password, not with a key.")
