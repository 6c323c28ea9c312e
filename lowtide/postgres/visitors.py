"""Signing in to the portal with an API key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowtide.auth.keys import PREFIX
from lowtide.domain.errors import Unauthenticated
from lowtide.domain.ids import format_key_id, parse_key_id
from lowtide.domain.visitors import Visitor

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from lowtide.domain.ids import KeyId
    from lowtide.domain.visitors import Role
    from lowtide.postgres.tenants import PostgresTenants


class KeySignIn:
    """Port SignIn: the key's tenant is all that its visitor sees."""

    def __init__(self, tenants: PostgresTenants, role: Role) -> None:
        self._tenants = tenants
        self._role = role

    def visitor(self, secret: str) -> Visitor | None:
        """Return the visitor behind a key that is in use."""
        if not secret.startswith(PREFIX):
            return None
        try:
            caller = self._tenants.caller(f"Bearer {secret}")
        except Unauthenticated:
            return None
        if caller.key is None:
            return None
        return Visitor(caller.actor, self._role, caller.tenant, self._credential(caller.key))

    def holding(self, credentials: AbstractSet[str]) -> AbstractSet[str]:
        """Return those of keys that are in use, with the role that keys have now."""
        keys = {
            key: credential
            for credential in credentials
            if (key := parse_key_id(credential.rpartition(" ")[2])) is not None
            and credential == self._credential(key)
        }
        return {keys[key] for key in self._tenants.in_use(keys)} if keys else set()

    def _credential(self, key: KeyId) -> str:
        return f"key {self._role} {format_key_id(key)}"
