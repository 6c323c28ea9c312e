"""Reasons of the scheduler's moves and marks: an enum, the numbers behind it, and its words."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from lowtide.core.durations import duration

if TYPE_CHECKING:
    from datetime import datetime


class Reason(StrEnum):
    """A reason to move requests between the pools, or to mark a batch at risk."""

    DEADLINE_BOUND = "deadline_bound"
    DEDICATED_IDLE = "dedicated_idle"
    SPOT_CAUGHT_UP = "spot_caught_up"
    POOL_PAUSED = "pool_paused"
    ENGINE_AWAY = "engine_away"
    NO_DEDICATED = "no_dedicated"
    FALLBACK = "fallback"
    QUOTA_USED_UP = "quota_used_up"


@dataclass(frozen=True, slots=True)
class Bound:
    """The numbers of a deadline bound.

    `open` requests without a result are due in `seconds`, and `replicas` dedicated workers, each at
    `rate` requests per second, can end `capacity` of them by then.
    """

    open: int
    seconds: float
    replicas: int
    rate: float
    capacity: int


@dataclass(frozen=True, slots=True)
class Risk:
    """The reason for which a batch was marked at risk at `since`."""

    reason: Reason
    bound: Bound | None
    since: datetime


_WORDS: Final = {
    Reason.DEADLINE_BOUND: "Too much work is due by the deadline",
    Reason.DEDICATED_IDLE: "Dedicated workers would be idle otherwise",
    Reason.SPOT_CAUGHT_UP: "Spot has caught up",
    Reason.POOL_PAUSED: "The dedicated pool is paused",
    Reason.ENGINE_AWAY: "No dedicated worker has an engine",
    Reason.NO_DEDICATED: "No dedicated workers are configured",
    Reason.FALLBACK: "Another fleet can still hold the deadline",
    Reason.QUOTA_USED_UP: "A quota of the tenant is used up until after the deadline",
}


def describe(reason: Reason, bound: Bound | None = None) -> str:
    """Return a reason in words, with its numbers if there are any.

    >>> describe(Reason.DEADLINE_BOUND, Bound(812, 120.0, 3, 2.5, 900))
    '812 requests are due in 2 min: that needs 3 dedicated workers at 2.5 requests/s each'
    >>> describe(Reason.DEADLINE_BOUND, Bound(812, 120.0, 2, 2.5, 600))
    '812 requests are due in 2 min: 2 dedicated workers at 2.5 requests/s each can finish 600'
    """
    if reason is not Reason.DEADLINE_BOUND or bound is None:
        return _WORDS[reason]
    are_due = f"{_count(bound.open, 'request')} {'is' if bound.open == 1 else 'are'}"
    if bound.seconds <= 0:
        return f"{are_due} past the deadline"
    each = " each" if bound.replicas != 1 else ""
    workers = f"{_count(bound.replicas, 'dedicated worker')} at {bound.rate:.3g} requests/s{each}"
    need = (
        f"{workers} can finish {bound.capacity:,}"
        if bound.capacity < bound.open
        else f"that needs {workers}"
    )
    return f"{are_due} due in {duration(timedelta(seconds=bound.seconds))}: {need}"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
