"""Passwords of the portal, stored as salted scrypt hashes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING

from lowtide.tenants.sign_in import Principal

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from lowtide.core.scopes import Role


# OWASP's parameters for 32 MiB; 64 MiB per sign-in would be much for a container of 512 MiB.
_COST, _BLOCK, _LANES = 2**15, 8, 3
_MEMORY = 2 * 128 * _COST * _BLOCK


def hash_password(password: str) -> str:
    """Return the stored form of a password: method, salt and hash."""
    salt = secrets.token_bytes(16)
    return f"scrypt:{_encode(salt)}:{_encode(_derive(password, salt))}"


def matches(password: str, stored: str) -> bool:
    """Return True if the password matches, in constant time; raises ValueError for a bad hash."""
    try:
        method, salt, derived = stored.split(":")
        expected = base64.b64decode(derived, validate=True)
        actual = _derive(password, base64.b64decode(salt, validate=True))
    except (ValueError, binascii.Error) as error:
        raise ValueError(
            "Invalid password hash: create one with `lowtide portal-password`."
        ) from error
    return hmac.compare_digest(actual, expected) and method == "scrypt"


class PasswordSignIn:
    """Sign-in with a password, which `name` has, as a role with access to every tenant."""

    needs_database = False

    def __init__(self, stored: str, role: Role, name: str = "") -> None:
        self._stored = stored
        # A digest of the secret salted hash: it reveals only that the password was changed.
        fingerprint = hashlib.sha256(f"{role} {stored}".encode()).hexdigest()[:32]
        self._principal = Principal(
            f"{name or role} (portal)", role, credential=f"password {fingerprint}"
        )

    def authenticate(self, secret: str) -> Principal | None:
        """Return the principal of the password; None if it does not match."""
        return self._principal if matches(secret, self._stored) else None

    def holding(self, credentials: AbstractSet[str]) -> AbstractSet[str]:
        """Return the credential of the current password, if among `credentials`."""
        return credentials & {self._principal.credential}


def _derive(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(
        password.encode(), salt=salt, n=_COST, r=_BLOCK, p=_LANES, maxmem=_MEMORY, dklen=32
    )


def _encode(value: bytes) -> str:
    return base64.b64encode(value).decode()
