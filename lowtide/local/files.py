"""Files of a data directory: the stack's secrets and the endpoints of its services."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import secrets as random_source
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lowtide.tenants.keys import new_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` atomically: a reader gets the old content or the new, never a part."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


ENDPOINTS = "endpoints.json"


def write_endpoints(data_dir: Path, addresses: Mapping[str, Sequence[str]]) -> None:
    """Publish the base URLs of every service's ready replicas."""
    write_atomically(data_dir / ENDPOINTS, msgspec.json.encode(addresses), mode=0o600)


class Endpoints:
    """A live view of the endpoints file, with one round-robin per service."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / ENDPOINTS
        self._version = (0, 0)
        self._addresses: dict[str, list[str]] = {}
        self._turns: dict[str, Iterator[int]] = {}

    def pick(self, service: str) -> str | None:
        """Return the base URL of the next ready replica of `service`; None if there is none."""
        self._refresh()
        addresses = self._addresses.get(service)
        if not addresses:
            return None
        turn = next(self._turns.setdefault(service, itertools.count()))
        return addresses[turn % len(addresses)]

    def _refresh(self) -> None:
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return
        # The inode distinguishes two writes within one clock tick.
        version = (stat.st_mtime_ns, stat.st_ino)
        if version != self._version:
            self._addresses = msgspec.json.decode(
                self._path.read_bytes(), type=dict[str, list[str]]
            )
            self._version = version


NAME = "secrets.json"
LOGIN_ROLES = ("lowtide_api", "lowtide_worker", "lowtide_operator", "lowtide_autoscaler")
OWNER = "lowtide_owner"
SUPERUSER = "postgres"


class Secrets(msgspec.Struct, frozen=True):
    """Random values that survive a restart; `passwords` is keyed by database role."""

    api_key: str
    api_key_pepper: str
    portal_secret: str
    passwords: dict[str, str]

    @property
    def portal_password(self) -> str:
        """The operator's password for the portal."""
        # Derived, so that data directories created before the sign-in existed have one too.
        key = self.portal_secret.encode()
        return hmac.new(key, b"operator's password", hashlib.sha256).hexdigest()[:24]

    @property
    def cells_token(self) -> str:
        """The secret that the cells of a stack and their front share."""
        key = self.portal_secret.encode()
        return hmac.new(key, b"cells' token", hashlib.sha256).hexdigest()


def read_or_create(data_dir: Path) -> Secrets:
    """Return the secrets of `data_dir`, created on first use in a file of mode 0600."""
    path = data_dir / NAME
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=Secrets)
    secrets = Secrets(
        api_key=new_key(),
        api_key_pepper=random_source.token_urlsafe(32),
        portal_secret=random_source.token_urlsafe(32),
        passwords={
            role: random_source.token_urlsafe(24) for role in (SUPERUSER, OWNER, *LOGIN_ROLES)
        },
    )
    write(data_dir, secrets)
    return secrets


def write(data_dir: Path, secrets: Secrets) -> None:
    """Write the secrets of `data_dir`."""
    content = msgspec.json.format(msgspec.json.encode(secrets))
    write_atomically(data_dir / NAME, content, mode=0o600)


def read(data_dir: Path) -> Secrets | None:
    """Return the secrets of `data_dir`; None before the first start."""
    path = data_dir / NAME
    return msgspec.json.decode(path.read_bytes(), type=Secrets) if path.exists() else None
