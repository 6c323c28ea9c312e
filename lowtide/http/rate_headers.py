"""OpenAI's headers about a rate limit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowtide.domain.limits import Allowance

LIMIT = "x-ratelimit-limit-requests"
REMAINING = "x-ratelimit-remaining-requests"
RESET = "x-ratelimit-reset-requests"


def rate_headers(allowance: Allowance) -> dict[str, str]:
    """Return the headers that every answer to a tenant with a rate limit carries."""
    return {
        LIMIT: str(allowance.per_minute),
        REMAINING: str(allowance.remaining),
        RESET: duration(allowance.reset),
    }


def duration(seconds: float) -> str:
    """Return seconds the way OpenAI writes them, which is Go's: `120ms`, `8.64s`, `6m0s`."""
    milliseconds = math.ceil(seconds * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
