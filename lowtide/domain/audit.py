"""The audit log: who did what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from lowtide.domain.ids import TenantId


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One thing that was done; `tenant` names whose it was, None for the whole installation."""

    id: int
    at: datetime
    tenant: str | None
    actor: str
    action: str
    subject: str


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries are wanted; None takes any."""

    actor: str | None = None
    action: str | None = None
    tenant: TenantId | None = None
