"""Tenants and their API keys, as an operator sees them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide.domain.errors import InvalidRequest

if TYPE_CHECKING:
    from datetime import datetime

    from lowtide.domain.ids import TenantId
    from lowtide.domain.limits import TenantLimits

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant; `weight` is its share beside other tenants whose work is as urgent."""

    id: TenantId
    name: str
    weight: int
    limits: TenantLimits
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without what opens anything: that is shown once and stored nowhere."""

    name: str
    created_at: datetime
    revoked_at: datetime | None


def check_name(name: str, param: str) -> str:
    """Return a good name of a tenant or a key; raises InvalidRequest."""
    if _NAME.fullmatch(name) is None:
        raise InvalidRequest(
            f"{name[:100]!r} is no name: use up to 63 lower-case letters, digits, '.', '_' and '-'.",
            param=param,
        )
    return name
