"""API keys: what there is to know of them without what opens anything.

active ──rotate──> expiring ──time──> expired
active, expiring ──revoke──> revoked
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from lowtide.domain.errors import InvalidRequest
from lowtide.domain.windows import parse_span

if TYPE_CHECKING:
    from datetime import datetime

    from lowtide.domain.ids import KeyId, TenantId

LONGEST_OVERLAP: Final = timedelta(days=30)


class KeyState(StrEnum):
    """Whether a key opens anything; an expiring one still does, beside the key that follows it."""

    ACTIVE = "active"
    EXPIRING = "expiring"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without what opens anything: that is shown once and stored nowhere.

    `prefix` is its beginning, None for a key of before these were kept; `last_used_at` is noted once
    a minute.
    """

    id: KeyId
    name: str
    prefix: str | None
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None

    def state(self, now: datetime) -> KeyState:
        """Return where the key stands."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        if self.expires_at is None:
            return KeyState.ACTIVE
        return KeyState.EXPIRED if self.expires_at <= now else KeyState.EXPIRING


@dataclass(frozen=True, slots=True)
class TenantKey:
    """A key, and whose it is; `at` is the database's time."""

    tenant: str
    key: ApiKey
    at: datetime

    @property
    def state(self) -> KeyState:
        """Where the key stands."""
        return self.key.state(self.at)


@dataclass(frozen=True, slots=True)
class KeyFilter:
    """Which keys are wanted; None takes any. `text` is a part of a name or of a prefix."""

    tenant: TenantId | None = None
    state: KeyState | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class KeyMark:
    """Where a page of keys ended."""

    created_at: datetime
    id: KeyId


@dataclass(frozen=True, slots=True)
class Rotation:
    """A new key, which can never be seen again, and until when the one before it works."""

    key: str
    old_until: datetime


def actor_of(name: str, key: KeyId) -> str:
    """Return what the audit log calls a key: names are given again, ids are not."""
    return f"key {name} ({key.hex[:8]})"


def parse_overlap(text: str) -> timedelta:
    """Return for how long two keys work side by side: `0`, or like `30m`, `24h`, `7d`.

    Raises InvalidRequest.
    """
    overlap = timedelta() if text == "0" else parse_span(text)
    if overlap is None or overlap > LONGEST_OVERLAP:
        raise InvalidRequest(
            f"{text[:100]!r} is no overlap: use 30m, 24h or 7d, at most {LONGEST_OVERLAP.days}d, or 0 "
            "to end the old key at once.",
            param="overlap",
        )
    return overlap
