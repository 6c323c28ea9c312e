"""What the administration pages share: their filters in URLs, the service, and the check of names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlencode
from uuid import UUID

from lowtide.core.errors import InvalidRequest, NotFound
from lowtide.core.ids import KeyId
from lowtide.tenants.audit import AuditFilter
from lowtide.tenants.keys import KeyFilter, KeyMark, KeyState
from lowtide.tenants.model import check_name
from portal.queries import clean
from portal.services import lowtide
from portal.sessions import current_principal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.core.ids import TenantId
    from lowtide.tenants.keys import TenantKey
    from lowtide.tenants.service import Tenancy


TENANTS: Final = "/tenants"
KEYS: Final = "/keys"
AUDIT: Final = "/audit"
USAGE: Final = "/usage"


@dataclass(frozen=True, slots=True)
class TenantQuery:
    """Tenants with `text` in their name; `after` is the last name of the previous page."""

    text: str = ""
    after: str = ""

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> TenantQuery:
        """Parse URL parameters."""
        return cls(clean(parameters.get("search", "")), clean(parameters.get("after", "")))

    @property
    def narrows(self) -> bool:
        """True if any filter is set."""
        return bool(self.text)

    def address(self) -> str:
        """Return the URL of this query."""
        return _address(TENANTS, search=self.text, after=self.after)

    def behind(self, after: str) -> Self:
        """Return the same query after a cursor; an empty one is the first page."""
        return replace(self, after=after)


@dataclass(frozen=True, slots=True)
class KeyQuery:
    """Keys by tenant and state, with `text` in their name or at the start of the key."""

    tenant: str = ""
    state: KeyState | None = None
    text: str = ""
    after: str = ""

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> KeyQuery:
        """Parse URL parameters; an invalid state is ignored."""
        state = parameters.get("state", "")
        return cls(
            tenant=clean(parameters.get("tenant", "")),
            state=KeyState(state) if state in set(KeyState) else None,
            text=clean(parameters.get("search", "")),
            after=clean(parameters.get("after", "")),
        )

    @property
    def narrows(self) -> bool:
        """True if any filter is set."""
        return bool(self.tenant or self.state or self.text)

    def address(self) -> str:
        """Return the URL of this query."""
        return _address(
            KEYS, tenant=self.tenant, state=self.state or "", search=self.text, after=self.after
        )

    def behind(self, after: str) -> Self:
        """Return the same query after a cursor; an empty one is the first page."""
        return replace(self, after=after)

    def filter(self, tenants: Mapping[TenantId, str]) -> KeyFilter:
        """Return the filter with the tenant's id; raises NotFound for an unknown tenant."""
        return KeyFilter(tenant_named(self.tenant, tenants), self.state, self.text)

    def mark(self) -> KeyMark | None:
        """Return the cursor at the end of the previous page; None if absent or invalid."""
        moment, _, key = self.after.partition("~")
        try:
            return KeyMark(datetime.fromisoformat(moment), KeyId(UUID(hex=key)))
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Audit entries by actor, action and tenant; `after` is the last id of the previous page."""

    actor: str = ""
    action: str = ""
    tenant: str = ""
    after: str = ""

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> AuditQuery:
        """Parse URL parameters."""
        names = ("actor", "action", "tenant", "after")
        return cls(*(clean(parameters.get(name, "")) for name in names))

    @property
    def narrows(self) -> bool:
        """True if any filter is set."""
        return bool(self.actor or self.action or self.tenant)

    def address(self) -> str:
        """Return the URL of this query."""
        return _address(
            AUDIT, actor=self.actor, action=self.action, tenant=self.tenant, after=self.after
        )

    def behind(self, after: str) -> Self:
        """Return the same query after a cursor; an empty one is the first page."""
        return replace(self, after=after)

    def filter(self, tenants: Mapping[TenantId, str]) -> AuditFilter:
        """Return the filter with the tenant's id; raises NotFound for an unknown tenant."""
        return AuditFilter(
            self.actor or None, self.action or None, tenant_named(self.tenant, tenants)
        )

    def mark(self) -> int | None:
        """Return the cursor at the end of the previous page; None if absent or invalid."""
        text = self.after
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def key_mark(tenant_key: TenantKey) -> str:
    """Return the cursor after a key."""
    return f"{tenant_key.key.created_at.isoformat()}~{tenant_key.key.id.hex}"


def tenant_named(name: str, tenants: Mapping[TenantId, str]) -> TenantId | None:
    """Return the id of a tenant, None for an empty name; raises NotFound."""
    if not name:
        return None
    for tenant, tenant_name in tenants.items():
        if tenant_name == name:
            return tenant
    raise NotFound(f"Tenant {name!r} not found.")


def usage_address(tenant: str) -> str:
    """Return the URL of a tenant's usage."""
    return _address(USAGE, tenant=tenant)


def _address(path: str, **parameters: str) -> str:
    query_string = urlencode({name: value for name, value in parameters.items() if value})
    return f"{path}?{query_string}" if query_string else path


def tenancy_of_principal() -> Tenancy:
    """Return the service that changes tenants and keys; raises Forbidden for a viewer."""
    return lowtide().administration.acting(current_principal())


def name_problem(text: str | None) -> str | None:
    """Return the error of a name of a tenant or a key, if it has one."""
    try:
        check_name((text or "").strip(), "name")
    except InvalidRequest:
        return "Use up to 63 lowercase letters, digits, '.', '_' and '-', starting with a letter or digit."
    return None
