"""Data keys: each is wrapped by the master key, and destroyed by deleting its row."""

from __future__ import annotations

import os
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import text

from lowtide.core.errors import Unavailable
from lowtide.database.connections import acting_for, begin
from lowtide.objects.names import DataKeyId, KeyDestroyed, no_new_key
from lowtide.objects.sealing import KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from uuid import UUID

    from sqlalchemy import Connection, Engine

    from lowtide.core.ids import TenantId


_ADD = text("""
INSERT INTO data_keys (id, tenant_id, wrapped) VALUES (:id, :tenant, :wrapped)
""")
_GET = text("SELECT wrapped FROM data_keys WHERE id = :id AND tenant_id = :tenant")
_DESTROY = text("DELETE FROM data_keys WHERE id = ANY(:ids)")
# A file's key stays while an active batch reads it, a batch's while it is active or has a file, an
# upload's while it may get parts.
# Scalar subqueries stay lookups by key, where NOT EXISTS would become joins with whole tables.
DESTROY_UNUSED = """
DELETE FROM data_keys k WHERE id = ANY(:ids)
  AND (SELECT 1 FROM files WHERE id = coalesce(k.file_id, k.id)) IS NULL
  AND (SELECT 1 FROM batches WHERE input_file_id = coalesce(k.file_id, k.id)
    AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling') LIMIT 1) IS NULL
  AND (SELECT 1 FROM batches WHERE id = k.id
    AND (status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
      OR output_file_id IS NOT NULL OR error_file_id IS NOT NULL)) IS NULL
  AND (SELECT 1 FROM uploads WHERE id = k.id AND status = 'pending' AND expires_at > now()) IS NULL
"""
_DESTROY_UNUSED = text(DESTROY_UNUSED)
_OF_FILE = text("UPDATE data_keys SET file_id = :file WHERE id = :id")
_PAGE = text("""
SELECT id, tenant_id, wrapped FROM data_keys
WHERE cast(:after AS uuid) IS NULL OR id > :after ORDER BY id LIMIT :limit FOR UPDATE
""")
_REWRAP = text("UPDATE data_keys SET wrapped = :wrapped WHERE id = :id")
_NONCE: Final = 12
_CACHED_SECONDS: Final = 60.0
_MAX_CACHED: Final = 1024
_PAGE_ROWS: Final = 500


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A new data key, encrypted with the master key, to be recorded in its owner's transaction."""

    id: DataKeyId
    wrapped: bytes


class MasterKeys:
    """Wraps data keys with the current master key; unwraps with it, or with the previous one."""

    def __init__(self, current: bytes | None, previous: bytes | None = None) -> None:
        self._ciphers = [AESGCM(key) for key in (current, previous) if key is not None]
        self.can_wrap = current is not None

    def wrap(self, key: DataKeyId, data_key: bytes) -> bytes:
        """Encrypt a data key, bound to its id; raises Conflict without a current master key."""
        if not self.can_wrap:
            no_new_key(*key)
        nonce = os.urandom(_NONCE)
        return nonce + self._ciphers[0].encrypt(nonce, data_key, _bound_to(key))

    def unwrap(self, key: DataKeyId, wrapped: bytes) -> tuple[bytes, bool]:
        """Return a data key, and whether the current master key wraps it; raises Unavailable."""
        for cipher in self._ciphers:
            try:
                data_key = cipher.decrypt(wrapped[:_NONCE], wrapped[_NONCE:], _bound_to(key))
            except InvalidTag:
                continue
            return data_key, self.can_wrap and cipher is self._ciphers[0]
        raise Unavailable(
            "The data is encrypted with a master key that this process does not have: ask the "
            "operator to check LOWTIDE_MASTER_KEY."
        )


class DataKeys:
    """The data keys that a process uses.

    They stay in memory for up to a minute: so long may a destroyed key still be used.
    """

    def __init__(
        self, engine: Engine, masters: MasterKeys, *, timer: Callable[[], float] = monotonic
    ) -> None:
        self._engine = engine
        self._masters = masters
        self._timer = timer
        self._cache: dict[DataKeyId, tuple[float, bytes]] = {}
        self._lock = Lock()

    def make(self, tenant: TenantId, owner: UUID) -> WrappedKey:
        """Return a new data key, usable in this process at once; raises Conflict."""
        key, data_key = DataKeyId(tenant, owner), os.urandom(KEY_BYTES)
        wrapped = self._masters.wrap(key, data_key)
        self._remember(key, data_key)
        return WrappedKey(key, wrapped)

    def get(self, key: DataKeyId) -> bytes:
        """Return a data key; raises KeyDestroyed."""
        with self._lock:
            until, data_key = self._cache.get(key, (0.0, b""))
        if until > self._timer():
            return data_key
        with acting_for(self._engine, key.tenant) as connection:
            parameters = {"id": key.owner, "tenant": key.tenant}
            wrapped = connection.execute(_GET, parameters).scalar_one_or_none()
        if wrapped is None:
            raise KeyDestroyed
        data_key, _ = self._masters.unwrap(key, bytes(wrapped))
        self._remember(key, data_key)
        return data_key

    def forget(self, key: DataKeyId) -> None:
        """Drop a key that was destroyed from memory."""
        with self._lock:
            self._cache.pop(key, None)

    def rewrap(self) -> int:
        """Wrap every key with the current master key, a page at a time; return how many changed."""
        changed, after = 0, None
        while True:
            with begin(self._engine) as connection:
                rows = connection.execute(_PAGE, {"after": after, "limit": _PAGE_ROWS}).all()
                for row in rows:
                    key = DataKeyId(row.tenant_id, row.id)
                    data_key, is_current = self._masters.unwrap(key, bytes(row.wrapped))
                    if not is_current:
                        wrapped = self._masters.wrap(key, data_key)
                        connection.execute(_REWRAP, {"id": row.id, "wrapped": wrapped})
                        changed += 1
            if len(rows) < _PAGE_ROWS:
                return changed
            after = rows[-1].id

    def _remember(self, key: DataKeyId, data_key: bytes) -> None:
        now = self._timer()
        with self._lock:
            self._cache.pop(key, None)
            self._cache[key] = (now + _CACHED_SECONDS, data_key)
            # The first entry is the oldest one.
            while len(self._cache) > _MAX_CACHED or next(iter(self._cache.values()))[0] <= now:
                del self._cache[next(iter(self._cache))]


def add_key(connection: Connection, key: WrappedKey) -> None:
    """Record a data key in its owner's transaction."""
    parameters = {"id": key.id.owner, "tenant": key.id.tenant, "wrapped": key.wrapped}
    connection.execute(_ADD, parameters)


def own_key(connection: Connection, key: DataKeyId, file: UUID) -> None:
    """Record the file whose object a key encrypts, if its id is not the owner's."""
    connection.execute(_OF_FILE, {"id": key.owner, "file": file})


def destroy_keys(connection: Connection, owners: Sequence[UUID]) -> None:
    """Destroy the data keys of files, uploads or batches: what they encrypt is lost.

    Destroying a key again changes nothing.
    """
    connection.execute(_DESTROY, {"ids": list(owners)})


def destroy_unused_keys(connection: Connection, keys: Iterable[DataKeyId | None]) -> None:
    """Destroy those of the keys whose owner is gone, or is a batch that ended without files."""
    owners = sorted({key.owner for key in keys if key is not None})
    if owners:
        connection.execute(_DESTROY_UNUSED, {"ids": owners})


def _bound_to(key: DataKeyId) -> bytes:
    return b"lowtide data key 1\0" + key.tenant.bytes + key.owner.bytes
