"""API keys: random, shown once, stored only as a keyed hash."""

from __future__ import annotations

import hashlib
import hmac
import secrets

PREFIX = "lt_"
_KNOWN_BY = 9
_SHORTEST = 40


def new_key() -> str:
    """Return a new key with 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def prefix_of(key: str) -> str | None:
    """Return what people know a key by; None for one that is too short to show a part of.

    Of the 256 random bits, 36 are shown.
    """
    return key[:_KNOWN_BY] if len(key) >= _SHORTEST else None


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
