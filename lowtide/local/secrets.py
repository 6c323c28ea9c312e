"""Passwords and keys of one data directory: made once, then kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets as random_source
from typing import TYPE_CHECKING

import msgspec

from lowtide.auth.keys import new_key
from lowtide.local.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

NAME = "secrets.json"
LOGIN_ROLES = ("lowtide_api", "lowtide_worker", "lowtide_operator", "lowtide_autoscaler")
OWNER = "lowtide_owner"
SUPERUSER = "postgres"


class Secrets(msgspec.Struct, frozen=True):
    """Everything random that must outlive a restart; `passwords` is by database role."""

    api_key: str
    api_key_pepper: str
    portal_secret: str
    passwords: dict[str, str]

    @property
    def portal_password(self) -> str:
        """What operators of this stack sign in to the portal with."""
        # Derived, so that a data directory from before there was a sign-in has one, too.
        key = self.portal_secret.encode()
        return hmac.new(key, b"operator's password", hashlib.sha256).hexdigest()[:24]


def read_or_create(data_dir: Path) -> Secrets:
    """Return the secrets of `data_dir`, making them on first use; the file is mode 0600."""
    path = data_dir / NAME
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=Secrets)
    made = Secrets(
        api_key=new_key(),
        api_key_pepper=random_source.token_urlsafe(32),
        portal_secret=random_source.token_urlsafe(32),
        passwords={
            role: random_source.token_urlsafe(24) for role in (SUPERUSER, OWNER, *LOGIN_ROLES)
        },
    )
    write_atomically(path, msgspec.json.format(msgspec.json.encode(made)), mode=0o600)
    return made


def read(data_dir: Path) -> Secrets | None:
    """Return the secrets of `data_dir`; None before the first start."""
    path = data_dir / NAME
    return msgspec.json.decode(path.read_bytes(), type=Secrets) if path.exists() else None
