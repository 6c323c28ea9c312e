"""Tenants, as an operator sees them."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lowtide.domain.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping
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
class TenantUse:
    """What a tenant uses now, and of the batches that ended within 24 hours or are not over.

    `requests` of the last minute count against its limit; None without one.
    """

    tenant: Tenant
    requests: float | None
    active_batches: int
    waiting_lines: int
    running_lines: int
    batches: int
    lines: int
    input_tokens: int
    output_tokens: int
    spot_seconds: float
    dedicated_seconds: float


def check_name(name: str, param: str) -> str:
    """Return a good name of a tenant or a key; raises InvalidRequest."""
    if _NAME.fullmatch(name) is None:
        raise InvalidRequest(
            f"{name[:100]!r} is no name: use up to 63 lower-case letters, digits, '.', '_' and '-'.",
            param=param,
        )
    return name


def differences(before: Tenant, after: Tenant) -> Mapping[str, tuple[int | None, int | None]]:
    """Return what is different in weight and limits, by name: the old and the new value."""
    old, new = ({"weight": each.weight, **asdict(each.limits)} for each in (before, after))
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}
