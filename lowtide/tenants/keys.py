"""API keys, shown once and stored only as keyed hashes, and the records that operators manage."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from lowtide.core.durations import parse_span
from lowtide.core.errors import Conflict, InvalidRequest, NotFound
from lowtide.core.ids import KeyId
from lowtide.core.scopes import Scope, check_scopes
from lowtide.database.connections import begin

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sqlalchemy import Connection, Engine

    from lowtide.core.ids import TenantId


PREFIX = "lt_"
_PREFIX_LENGTH = 9
_MIN_LENGTH = 40
_KEY: Final = re.compile(r"lt_[A-Za-z0-9_-]{43}")


def new_key() -> str:
    """Return a new key with 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def check_key(key: str) -> str:
    """Return a key that `new_key` made; raises InvalidRequest for another text, which may be guessed."""
    if not _KEY.fullmatch(key):
        raise InvalidRequest(
            f"This is no key of Lowtide's: {PREFIX} and 43 letters, digits, - or _, as "
            "`lowtide keys create` prints them.",
            param="key",
        )
    return key


def prefix_of(key: str) -> str | None:
    """Return the visible prefix of a key; None for a key that is too short.

    Of the 256 random bits, 36 are shown.
    """
    return key[:_PREFIX_LENGTH] if len(key) >= _MIN_LENGTH else None


def hash_key(key: str, pepper: str) -> bytes:
    """Return the HMAC-SHA256 of the key; raises ValueError without a pepper.

    The pepper is not in the database, so a stolen table cannot be matched to keys. A lookup by hash
    takes the same time for every wrong key.
    """
    if not pepper:
        raise ValueError(
            "LOWTIDE_API_KEY_PEPPER is not set: API keys cannot be checked without it."
        )
    return hmac.new(pepper.encode(), key.encode(), hashlib.sha256).digest()


LONGEST_OVERLAP: Final = timedelta(days=30)
LONGEST_LIFE: Final = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class KeyTerms:
    """What a new key may do, None for everything, and its time of life, None without an end."""

    scopes: tuple[Scope, ...] | None = None
    life: timedelta | None = None

    @classmethod
    def parse(cls, scopes: Iterable[str] = (), expires_in: str | None = None) -> KeyTerms:
        """Return the terms with these scopes, all if none is named; raises InvalidRequest.

        `expires_in` is such as `12h` or `90d`.
        """
        life = None if expires_in is None else parse_span(expires_in)
        if expires_in is not None and not (life and life <= LONGEST_LIFE):
            raise InvalidRequest(
                f"Invalid expiry {expires_in[:100]!r}: use 30m, 12h or 90d, at most "
                f"{LONGEST_LIFE.days}d.",
                param="expires_in",
            )
        return cls(check_scopes(scopes) or None, life)


EVERYTHING: Final = KeyTerms()


class KeyState(StrEnum):
    """The state of a key; one that ends within the longest overlap is expiring, and still works."""

    ACTIVE = "active"
    EXPIRING = "expiring"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The record of a key, without its secret, which is shown once and not stored.

    `prefix` is the beginning of the key, None for keys created before prefixes were stored;
    `last_used_at` is updated once a minute. `scopes` is None for a key that may do everything.
    """

    id: KeyId
    name: str
    prefix: str | None
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    scopes: tuple[str, ...] | None = None

    def state(self, now: datetime) -> KeyState:
        """Return the state of the key at `now`."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        if self.expires_at is None or self.expires_at > now + LONGEST_OVERLAP:
            return KeyState.ACTIVE
        return KeyState.EXPIRED if self.expires_at <= now else KeyState.EXPIRING


@dataclass(frozen=True, slots=True)
class TenantKey:
    """A key with the name of its tenant; `at` is the database's time."""

    tenant: str
    key: ApiKey
    at: datetime

    @property
    def state(self) -> KeyState:
        """The state of the key at `at`."""
        return self.key.state(self.at)


@dataclass(frozen=True, slots=True)
class KeyFilter:
    """A filter of keys; None matches all. `text` is part of a name, or the start of a prefix."""

    tenant: TenantId | None = None
    state: KeyState | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class KeyMark:
    """The position after the last key of a page."""

    created_at: datetime
    id: KeyId


@dataclass(frozen=True, slots=True)
class Rotation:
    """A new key, which is not stored, and the time until which the old one works."""

    key: str
    old_until: datetime


def actor_of(name: str, key: KeyId) -> str:
    """Return a key's name in the audit log, with part of its id, as names are reused."""
    return f"{name} (api key {key.hex[:8]})"


def parse_overlap(text: str) -> timedelta:
    """Parse the time for which two keys work side by side: `0`, or such as `30m`, `24h`, `7d`.

    Raises InvalidRequest.
    """
    overlap = timedelta() if text == "0" else parse_span(text)
    if overlap is None or overlap > LONGEST_OVERLAP:
        raise InvalidRequest(
            f"Invalid overlap {text[:100]!r}: use 30m, 24h or 7d, at most {LONGEST_OVERLAP.days}d, or 0 "
            "to end the old key at once.",
            param="overlap",
        )
    return overlap


_COLUMNS = "id, name, prefix, created_at, last_used_at, expires_at, revoked_at, scopes"
_IN_USE = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"
_OF_TENANT = text(
    f"SELECT {_COLUMNS} FROM api_keys WHERE tenant_id = :tenant ORDER BY created_at, id"  # noqa: S608
)
_SOON = f"now() + interval '{LONGEST_OVERLAP.days} days'"
_STATES = {
    None: "true",
    KeyState.ACTIVE: f"revoked_at IS NULL AND (expires_at IS NULL OR expires_at > {_SOON})",
    KeyState.EXPIRING: f"revoked_at IS NULL AND expires_at > now() AND expires_at <= {_SOON}",
    KeyState.EXPIRED: "revoked_at IS NULL AND expires_at <= now()",
    KeyState.REVOKED: "revoked_at IS NOT NULL",
}
PAGES = {
    (state, of_tenant): f"""
SELECT k.*, t.name AS tenant_name, now() AS at FROM (
  SELECT {_COLUMNS}, tenant_id FROM api_keys
  WHERE {condition} {"AND tenant_id = :tenant" if of_tenant else ""}
    AND (cast(:text AS text) IS NULL OR strpos(name, :text) > 0 OR starts_with(prefix, :text))
    AND (cast(:after AS uuid) IS NULL
      OR (created_at, id) < (cast(:created_at AS timestamptz), cast(:after AS uuid)))
  ORDER BY created_at DESC, id DESC LIMIT :limit
) k JOIN tenants t ON t.id = k.tenant_id
ORDER BY k.created_at DESC, k.id DESC
"""  # noqa: S608
    for state, condition in _STATES.items()
    for of_tenant in (False, True)
}
"""The statement for each state, for all tenants (False) and for one (True)."""
_PAGES = {variant: text(statement) for variant, statement in PAGES.items()}
# The caller has locked the tenant's row, so that two transactions cannot take the same name.
_ADD = text(f"""
INSERT INTO api_keys (hash, tenant_id, name, prefix, scopes, expires_at)
SELECT :hash, :tenant, :name, :prefix, cast(:scopes AS text[]), now() + cast(:life AS interval)
WHERE :again OR NOT EXISTS (
  SELECT 1 FROM api_keys WHERE tenant_id = :tenant AND name = :name AND {_IN_USE})
RETURNING id
""")  # noqa: S608
_IN_USE_OF = text(f"""
SELECT t.name, ARRAY(
  SELECT DISTINCT name FROM api_keys WHERE tenant_id = t.id AND {_IN_USE} ORDER BY name) AS keys
FROM tenants t WHERE t.id = :tenant
""")  # noqa: S608
_EXPIRE = text(f"""
UPDATE api_keys SET expires_at = least(expires_at, now() + cast(:overlap AS interval))
WHERE tenant_id = :tenant AND name = :name AND {_IN_USE} RETURNING expires_at, created_at, scopes
""")  # noqa: S608
_REVOKE = text(f"""
UPDATE api_keys SET revoked_at = now()
WHERE tenant_id = :tenant AND name = :name AND {_IN_USE}
  AND (cast(:id AS uuid) IS NULL OR id = :id)
RETURNING id
""")  # noqa: S608


class KeyStore:
    """Queries for the API keys of all tenants."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(
        self, key_filter: KeyFilter, *, after: KeyMark | None, limit: int
    ) -> Sequence[TenantKey]:
        """Return up to `limit` keys after the mark `after`, newest first."""
        parameters = {
            "tenant": key_filter.tenant,
            "text": key_filter.text or None,
            "after": None if after is None else after.id,
            "created_at": None if after is None else after.created_at,
            "limit": limit,
        }
        statement = _PAGES[key_filter.state, key_filter.tenant is not None]
        if key_filter.tenant is None:
            del parameters["tenant"]
        with begin(self._engine) as connection:
            rows = connection.execute(statement, parameters)
            return [TenantKey(row.tenant_name, _key(row), row.at) for row in rows]


def keys_of(connection: Connection, tenant: TenantId) -> Sequence[ApiKey]:
    """Return a tenant's keys, oldest first."""
    return [_key(row) for row in connection.execute(_OF_TENANT, {"tenant": tenant})]


def add_key(
    connection: Connection,
    tenant: TenantId,
    name: str,
    key: str,
    pepper: str,
    terms: KeyTerms,
    *,
    reuse_name: bool = False,
) -> KeyId:
    """Store a key's hash; raises Conflict if the name is in use, unless `reuse_name` is set."""
    row = {
        "hash": hash_key(key, pepper),
        "tenant": tenant,
        "name": name,
        "prefix": prefix_of(key),
        "again": reuse_name,
        "scopes": None if terms.scopes is None else list(terms.scopes),
        "life": terms.life,
    }
    key_id = connection.execute(_ADD, row).scalar_one_or_none()
    if key_id is None:
        raise Conflict(
            f"Key {name!r} already exists: choose another name, rotate it, or revoke it first.",
            param="key",
        )
    return KeyId(key_id)


def let_expire(
    connection: Connection, tenant: TenantId, name: str, overlap: timedelta
) -> tuple[datetime, KeyTerms]:
    """Expire the keys of a name after `overlap`, none later than before.

    Returns the last expiry, and the terms of the newest key for its successor, which has no end.
    Raises NotFound if no key of that name is in use.
    """
    parameters = {"tenant": tenant, "name": name, "overlap": overlap}
    rows = connection.execute(_EXPIRE, parameters).all()
    if not rows:
        raise _no_key(connection, tenant, name)
    scopes = max(rows, key=lambda row: row.created_at).scopes
    terms = KeyTerms(None if scopes is None else check_scopes(scopes))
    return max(row.expires_at for row in rows), terms


def revoke_keys(
    connection: Connection, tenant: TenantId, name: str, key: KeyId | None
) -> Sequence[KeyId]:
    """Revoke the keys of a name, or of these only `key`; raises NotFound if none is in use."""
    parameters = {"tenant": tenant, "name": name, "id": key}
    key_ids = [KeyId(row) for row in connection.execute(_REVOKE, parameters).scalars()]
    if not key_ids:
        raise _no_key(connection, tenant, name)
    return key_ids


def _no_key(connection: Connection, tenant: TenantId, name: str) -> NotFound:
    """Return the error for a name without a key in use, which names those of the tenant."""
    row = connection.execute(_IN_USE_OF, {"tenant": tenant}).one()
    fix = f"create one with `lowtide keys create {row.name}`"
    if row.keys:
        fix = f"its active keys are {', '.join(row.keys)}; name one with --name"
    return NotFound(f"Tenant {row.name!r} has no active key {name[:100]!r}: {fix}.", param="key")


def _key(row: Any) -> ApiKey:
    return ApiKey(
        id=KeyId(row.id),
        name=row.name,
        prefix=row.prefix,
        created_at=row.created_at,
        last_used_at=row.last_used_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        scopes=None if row.scopes is None else tuple(row.scopes),
    )
