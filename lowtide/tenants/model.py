"""Tenants and their limits."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Final

from lowtide.core.errors import InvalidRequest, TooManyRequests
from lowtide.core.ids import NAME

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from lowtide.core.ids import TenantId


_NAME = re.compile(NAME)


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant; `weight` is its share relative to other tenants with equally urgent work.

    `batch_retention` is in seconds; None is the installation's. With `zero_retention` all its
    uploads are encrypted, and their keys destroyed with them.
    """

    id: TenantId
    name: str
    weight: int
    limits: TenantLimits
    created_at: datetime
    batch_retention: int | None = None
    zero_retention: bool = False


@dataclass(frozen=True, slots=True)
class TenantUse:
    """A tenant's current usage, and totals of its batches that are active or ended within 24 hours.

    `requests` are the API requests that count against the limit now; None without a limit.
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
    cost: float


def check_name(name: str, param: str) -> str:
    """Return the name of a tenant or a key if it is valid; raises InvalidRequest."""
    if _NAME.fullmatch(name) is None:
        raise InvalidRequest(
            f"Invalid name {name[:100]!r}: use up to 63 lowercase letters, digits, '.', '_' and '-'.",
            param=param,
        )
    return name


def differences(before: Tenant, after: Tenant) -> Mapping[str, tuple[int | None, int | None]]:
    """Return the old and the new value of each changed figure of a tenant, by name."""
    old, new = (
        {
            "weight": t.weight,
            **asdict(t.limits),
            "batch_retention": t.batch_retention,
            "zero_retention": t.zero_retention,
        }
        for t in (before, after)
    )
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}


# The end of a batch is unknown; OpenAI's clients honour a Retry-After of up to a minute.
_BATCH_RETRY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """A tenant's limits; None is unlimited.

    Each has a column of `tenants`, named `max_` and its name, and the label of its field in forms;
    the setting named `tenant_` and its name, if there is one, has its default. Enqueued tokens are
    an estimate of unfinished input; days and months are in UTC, and `spend_per_month` counts in the
    currency of the prices.
    """

    requests_per_minute: int | None = field(
        default=None, metadata={"label": "API requests per minute"}
    )
    active_batches: int | None = field(default=None, metadata={"label": "Active batches"})
    queued_lines: int | None = field(default=None, metadata={"label": "Unfinished requests"})
    running_lines: int | None = field(default=None, metadata={"label": "Running requests"})
    enqueued_tokens: int | None = field(default=None, metadata={"label": "Enqueued tokens"})
    tokens_per_day: int | None = field(default=None, metadata={"label": "Tokens per day"})
    spend_per_month: int | None = field(default=None, metadata={"label": "Spend per month"})


LIMITS: Final[Mapping[str, str]] = {
    limit.name: limit.metadata["label"] for limit in fields(TenantLimits)
}
"""The labels of limits by name."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """The state of a tenant's rate limit after an API request.

    A leaky bucket as a meter (J. Turner, New Directions in Communications, 1986), equal to the GCRA
    of ITU-T I.371: `used` requests leak away at `per_minute`, and a request is accepted while there
    is room, so that a whole minute's requests may come at once. A refused request uses nothing.
    """

    per_minute: int
    used: float
    accepted: bool

    @property
    def remaining(self) -> int:
        """The number of requests that would be accepted now."""
        return max(0, math.floor(self.per_minute - self.used))

    @property
    def reset(self) -> float:
        """The seconds until the whole limit is available again."""
        return 60 * self.used / self.per_minute

    @property
    def retry_after(self) -> float:
        """The seconds until one more request is accepted."""
        return 60 * max(0.0, self.used + 1 - self.per_minute) / self.per_minute

    def check(self) -> None:
        """Raise TooManyRequests if the request was not accepted."""
        if not self.accepted:
            raise TooManyRequests(
                f"Rate limit reached: {self.per_minute} requests per minute. Try again in "
                f"{math.ceil(self.retry_after)} s, or ask the operator for a higher limit.",
                retry_after=self.retry_after,
                reason="requests",
            )


@dataclass(frozen=True, slots=True)
class BatchUse:
    """The use of a tenant's limits by its active batches, and of its quotas in their periods.

    `day_left` and `month_left` are the seconds until these periods end.
    """

    active_batches: int
    queued_lines: int
    enqueued_tokens: int = 0
    tokens_today: int = 0
    spend_this_month: float = 0.0
    day_left: float = 0.0
    month_left: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchSize:
    """The requests of a new batch, and an estimate of its input tokens."""

    lines: int
    tokens: int = 0


def check_room(limits: TenantLimits, use: BatchUse, size: BatchSize) -> None:
    """Raise TooManyRequests if one more batch of `size` would exceed a limit.

    Raises InvalidRequest if it would exceed a limit on its own.
    """
    _check_alone(limits, size)
    _check_quotas(limits, use)
    lines = size.lines
    if limits.active_batches is not None and use.active_batches >= limits.active_batches:
        raise TooManyRequests(
            f"{use.active_batches} batches are active; the limit is {limits.active_batches}: "
            "wait until one ends, cancel one, or ask the operator for a higher limit.",
            retry_after=_BATCH_RETRY_SECONDS,
            reason="active_batches",
        )
    if limits.queued_lines is not None and use.queued_lines + lines > limits.queued_lines:
        raise TooManyRequests(
            f"{use.queued_lines} requests are queued and the file has {lines}; the limit is "
            f"{limits.queued_lines}: wait until some are finished, cancel a batch, or ask "
            "the operator for a higher limit.",
            param="input_file_id",
            retry_after=_BATCH_RETRY_SECONDS,
            reason="queued_lines",
        )
    if (most := limits.enqueued_tokens) is not None and use.enqueued_tokens + size.tokens > most:
        raise TooManyRequests(
            f"About {use.enqueued_tokens:,} tokens are enqueued and the file has about "
            f"{size.tokens:,}; the limit is {most:,}: wait until some requests are finished, cancel "
            "a batch, or ask the operator for a higher limit.",
            param="input_file_id",
            retry_after=_BATCH_RETRY_SECONDS,
            reason="enqueued_tokens",
        )


def _check_alone(limits: TenantLimits, size: BatchSize) -> None:
    if limits.queued_lines is not None and size.lines > limits.queued_lines:
        raise InvalidRequest(
            f"The file has {size.lines} requests, but at most {limits.queued_lines} may be queued at "
            "once: split the file, or ask the operator for a higher limit.",
            param="input_file_id",
            code="too_many_lines",
        )
    if limits.enqueued_tokens is not None and size.tokens > limits.enqueued_tokens:
        raise InvalidRequest(
            f"The file has about {size.tokens:,} tokens, but at most {limits.enqueued_tokens:,} may be "
            "enqueued at once: split the file, or ask the operator for a higher limit.",
            param="input_file_id",
            code="token_limit_exceeded",
        )


def _check_quotas(limits: TenantLimits, use: BatchUse) -> None:
    if limits.tokens_per_day is not None and use.tokens_today >= limits.tokens_per_day:
        raise TooManyRequests(
            f"{use.tokens_today:,} tokens were used today; the limit is {limits.tokens_per_day:,} "
            "per day: wait until 00:00 UTC, or ask the operator for a higher limit.",
            retry_after=use.day_left,
            reason="tokens_per_day",
        )
    if limits.spend_per_month is not None and use.spend_this_month >= limits.spend_per_month:
        raise TooManyRequests(
            f"{use.spend_this_month:,.2f} was spent this month; the limit is "
            f"{limits.spend_per_month:,}: wait until next month, or ask the operator for a higher "
            "limit.",
            retry_after=use.month_left,
            reason="spend_per_month",
        )
