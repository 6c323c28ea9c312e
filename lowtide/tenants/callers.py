"""Authentication of API requests: the tenant of a key, and its allowance of requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, text

from lowtide.core.errors import MissingScope, Unauthenticated
from lowtide.core.ids import KeyId, TenantId
from lowtide.core.scopes import EVERY_SCOPE, Scope, Scopes, scopes_of
from lowtide.database.connections import begin
from lowtide.tenants.keys import actor_of, hash_key
from lowtide.tenants.model import Allowance

if TYPE_CHECKING:
    from collections.abc import Collection


_AUTHENTICATE = text("SELECT * FROM authenticate(:hash)")
_IN_USE = text("SELECT * FROM keys_in_use(cast(:ids AS uuid[]))")
_ANONYMOUS = text("SELECT * FROM authenticate_anonymous(:name)")


@dataclass(frozen=True, slots=True)
class Caller:
    """The principal of an API request; `name` is the key's, shown if the request names no user.

    `allowance` is the state of the tenant's rate limit, None without a limit. `key` is None for an
    anonymous caller.
    """

    tenant: TenantId
    name: str
    allowance: Allowance | None = None
    key: KeyId | None = None
    scopes: Scopes = EVERY_SCOPE

    def require(self, scope: Scope) -> None:
        """Raise MissingScope without `scope`."""
        if scope not in self.scopes:
            held = ", ".join(each for each in Scope if each in self.scopes) or "none"
            raise MissingScope(
                f"This call needs the scope {scope}, but this key has {held}: ask the operator for a "
                "key with it.",
                scope,
            )

    @property
    def actor(self) -> str:
        """The caller's name in the audit log."""
        return self.name if self.key is None else actor_of(self.name, self.key)


class Authenticator:
    """Authentication against the database, which counts the request against the tenant's limit."""

    def __init__(self, engine: Engine, *, pepper: str, anonymous: str | None) -> None:
        self._engine = engine
        self._pepper = pepper
        self._anonymous = anonymous

    def caller(self, authorization: str | None) -> Caller:
        """Return the caller with this Authorization header; raises Unauthenticated."""
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
        return Caller(
            TenantId(row.tenant_id),
            row.key_name,
            _allowance(row),
            KeyId(row.key_id),
            scopes_of(row.scopes),
        )

    def in_use(self, keys: Collection[KeyId]) -> set[KeyId]:
        """Return those of `keys` that are still in use."""
        with begin(self._engine) as connection:
            rows = connection.execute(_IN_USE, {"ids": list(keys)}).scalars()
            return {KeyId(row) for row in rows}

    def _without_key(self) -> Caller:
        if self._anonymous is not None:
            with begin(self._engine) as connection:
                row = connection.execute(_ANONYMOUS, {"name": self._anonymous}).one_or_none()
            if row is not None:
                return Caller(TenantId(row.tenant_id), "anonymous", _allowance(row))
        raise Unauthenticated("No API key: send it as 'Authorization: Bearer lt_…'.")


def _allowance(row: Any) -> Allowance | None:
    if row.per_minute is None:
        return None
    return Allowance(row.per_minute, row.used, row.accepted)
