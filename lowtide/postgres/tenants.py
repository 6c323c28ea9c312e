"""Who may call: API keys and tenants."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, text

from lowtide.auth.keys import hash_key
from lowtide.domain.errors import Unauthenticated
from lowtide.domain.ids import TenantId
from lowtide.postgres.connections import begin

_AUTHENTICATE = text("SELECT tenant_id, key_name FROM authenticate(:hash)")
_NAMED = text("SELECT tenant_named(:name)")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request acts for; `name` is the key's, shown where no user is named."""

    tenant: TenantId
    name: str


class PostgresTenants:
    """Finds the caller behind a key."""

    def __init__(self, engine: Engine, *, pepper: str, anonymous: str | None) -> None:
        self._engine = engine
        self._pepper = pepper
        self._anonymous = anonymous

    def caller(self, authorization: str | None) -> Caller:
        """Return who sent this Authorization header; raises Unauthenticated."""
        if authorization is None:
            return self._without_key()
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthenticated("Send the API key as 'Authorization: Bearer lt_…'.")
        parameters = {"hash": hash_key(key.strip(), self._pepper)}
        with begin(self._engine) as connection:
            row = connection.execute(_AUTHENTICATE, parameters).one_or_none()
        if row is None:
            raise Unauthenticated("Incorrect API key: check it, or ask for a new one.")
        return Caller(TenantId(row.tenant_id), row.key_name)

    def _without_key(self) -> Caller:
        if self._anonymous is not None:
            with begin(self._engine) as connection:
                tenant = connection.execute(_NAMED, {"name": self._anonymous}).scalar_one()
            if tenant is not None:
                return Caller(TenantId(tenant), "anonymous")
        raise Unauthenticated("No API key: send it as 'Authorization: Bearer lt_…'.")
