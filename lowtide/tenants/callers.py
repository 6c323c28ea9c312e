"""Authentication of API requests: the tenant of a key or a token, and its allowance of requests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from sqlalchemy import Engine, text

from lowtide.core.errors import MissingScope, Unauthenticated
from lowtide.core.ids import NAME, KeyId, TenantId
from lowtide.core.scopes import EVERY_SCOPE, Scope, Scopes, scopes_of
from lowtide.database.connections import begin
from lowtide.tenants.keys import actor_of, hash_key
from lowtide.tenants.model import Allowance
from lowtide.tenants.sign_in import clean_name

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import TextClause

    from lowtide.identity.model import Identity
    from lowtide.identity.tokens import TokenVerifier

_AUTHENTICATE = text("SELECT * FROM authenticate(:hash)")
_REHASH = text("SELECT rehash_key(:old, :new)")
_IN_USE = text("SELECT * FROM keys_in_use(cast(:ids AS uuid[]))")
_DOTS_OF_A_TOKEN: Final = 2  # a key has none
_ANONYMOUS = text("SELECT * FROM authenticate_anonymous(:name)")


@dataclass(frozen=True, slots=True)
class Caller:
    """The principal of an API request; `name` is the key's, shown if the request names no user.

    `allowance` is the state of the tenant's rate limit, None without a limit. `key` is None for a
    caller with a token, which has an `issuer`, and for an anonymous one.
    """

    tenant: TenantId
    name: str
    allowance: Allowance | None = None
    key: KeyId | None = None
    scopes: Scopes = EVERY_SCOPE
    issuer: str = ""

    def require(self, scope: Scope) -> None:
        """Raise MissingScope without `scope`."""
        if scope not in self.scopes:
            held = ", ".join(each for each in Scope if each in self.scopes) or "none"
            raise MissingScope(
                f"This call needs the scope {scope}, but your {self._credential} has {held}: ask the "
                "operator for it.",
                scope,
            )

    @property
    def actor(self) -> str:
        """The caller's name in the audit log."""
        if self.issuer:
            return f"{self.name} ({urlsplit(self.issuer).netloc})"
        return self.name if self.key is None else actor_of(self.name, self.key)

    @property
    def _credential(self) -> str:
        return "token" if self.issuer else "key"


class Authenticator:
    """Authentication against the database, which counts the request against the tenant's limit."""

    def __init__(
        self,
        engine: Engine,
        *,
        pepper: str,
        previous_pepper: str = "",
        anonymous: str | None,
        tokens: TokenVerifier | None = None,
    ) -> None:
        self._engine = engine
        self._tokens = tokens
        self._pepper = pepper
        self._previous_pepper = previous_pepper
        self._anonymous = anonymous

    def caller(self, authorization: str | None, *, counts: bool = True) -> Caller:
        """Return the caller with this Authorization header; raises Unauthenticated or Unavailable.

        Without `counts`, the tenant's limit does not notice.
        """
        if authorization is None:
            return self._without_key(counts=counts)
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthenticated("Send the API key as 'Authorization: Bearer lt_…'.")
        if self._tokens is not None and key.count(".") == _DOTS_OF_A_TOKEN:
            return self._with_token(self._tokens.identity(key.strip()), counts=counts)
        row = self._with_key(key.strip(), counts=counts)
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

    def _with_key(self, key: str, *, counts: bool) -> Any:
        """Return the row of a key; None for an unknown one."""
        current = hash_key(key, self._pepper)
        row = self._row(_AUTHENTICATE, {"hash": current}, counts=counts)
        if row is not None or not self._previous_pepper:
            return row
        old = hash_key(key, self._previous_pepper)
        row = self._row(_AUTHENTICATE, {"hash": old}, counts=counts)
        if row is None:
            # Another request may just have moved it.
            return self._row(_AUTHENTICATE, {"hash": current}, counts=counts)
        # Processes of both steps of a rotation move a key to and fro while they run side by side. It
        # costs a short update a request, and each finds the key under either pepper.
        with begin(self._engine) as connection:
            connection.execute(_REHASH, {"old": old, "new": current})
        return row

    def _row(
        self, statement: TextClause, parameters: dict[str, object], *, counts: bool = True
    ) -> Any:
        with begin(self._engine) as connection:
            row = connection.execute(statement, parameters).one_or_none()
            if not counts:
                connection.rollback()
            return row

    def _with_token(self, identity: Identity, *, counts: bool) -> Caller:
        if identity.tenant is None:
            raise Unauthenticated(
                "The token names no tenant, or several: ask the operator to map its claims.",
                code="invalid_token",
            )
        row = None
        if re.fullmatch(NAME, identity.tenant):
            # It is named for the other callers without a key.
            row = self._row(_ANONYMOUS, {"name": identity.tenant}, counts=counts)
        if row is None:
            raise Unauthenticated(
                f"The token's tenant {identity.tenant[:100]!r} does not exist: ask the operator to "
                "create it.",
                code="invalid_token",
            )
        return Caller(
            TenantId(row.tenant_id),
            clean_name(identity.user) or "token",
            _allowance(row),
            scopes=identity.scopes,
            issuer=identity.issuer,
        )

    def _without_key(self, *, counts: bool) -> Caller:
        if self._anonymous is not None:
            row = self._row(_ANONYMOUS, {"name": self._anonymous}, counts=counts)
            if row is not None:
                return Caller(TenantId(row.tenant_id), "anonymous", _allowance(row))
        raise Unauthenticated("No API key: send it as 'Authorization: Bearer lt_…'.")


def _allowance(row: Any) -> Allowance | None:
    if row.per_minute is None:
        return None
    return Allowance(row.per_minute, row.used, row.accepted)
