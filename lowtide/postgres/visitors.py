"""Signing in to the portal with an API key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowtide.auth.keys import PREFIX
from lowtide.domain.errors import Unauthenticated
from lowtide.domain.visitors import Visitor

if TYPE_CHECKING:
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
        return Visitor(f"key {caller.name}", self._role, caller.tenant)
