"""API keys: random, shown once, stored only as a keyed hash."""

from __future__ import annotations

import hashlib
import hmac
import secrets

PREFIX = "lt_"


def new_key() -> str:
    """Return a new key with 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str, pepper: str) -> bytes:
    """Return HMAC-SHA256 of the key.

    Without the pepper, which the database never sees, a stolen table cannot be matched to keys;
    and a lookup by hash takes the same time for every wrong key.
    """
    if not pepper:
        raise ValueError(
            "LOWTIDE_API_KEY_PEPPER is not set: API keys cannot be checked without it."
        )
    return hmac.new(pepper.encode(), key.encode(), hashlib.sha256).digest()
