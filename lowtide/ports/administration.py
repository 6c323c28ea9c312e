"""What operators read of tenants, keys and what was done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.domain.api_keys import KeyFilter, KeyMark, TenantKey
    from lowtide.domain.audit import AuditEntry, AuditFilter
    from lowtide.domain.tenants import TenantUse


class TenantUsage(Protocol):
    """Tenants, and what they use."""

    def page(self, name: str, *, after: str | None, limit: int) -> Sequence[TenantUse]:
        """Return up to `limit` tenants behind `after` with `name` in their name, by name."""
        ...


class KeyListing(Protocol):
    """Keys of all tenants."""

    def page(self, wanted: KeyFilter, *, after: KeyMark | None, limit: int) -> Sequence[TenantKey]:
        """Return up to `limit` keys behind `after`, newest first."""
        ...


class AuditLog(Protocol):
    """What was done, by whom."""

    def page(self, wanted: AuditFilter, *, after: int | None, limit: int) -> Sequence[AuditEntry]:
        """Return up to `limit` entries behind `after`, newest first."""
        ...

    def actions(self) -> Sequence[str]:
        """Return every action there is, by name."""
        ...
