"""Completion times: a fluid model of claims on spot, with urgency, weights and limits of tenants."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


URGENCY_EDGES: Final = (900.0, 3600.0, 14_400.0, 86_400.0)
"""Seconds until a deadline that separate levels of urgency: 15 minutes, 1, 4 and 24 hours."""


def spot_urgency(left: float, *, at_risk: bool) -> float:
    """Return the urgency on spot of a batch that is due in `left` seconds; smaller is more urgent."""
    return 0.0 if at_risk else float(bisect_left(URGENCY_EDGES, left))


@dataclass(frozen=True, slots=True)
class Replicas:
    """Replicas that each end `rate` requests per second, from `start` seconds from now on."""

    count: float
    rate: float
    start: float = 0.0


def seconds_to_run(lines: float, replicas: Iterable[Replicas]) -> float:
    """Return the seconds until all replicas together have run `lines`; infinity if they never have.

    >>> seconds_to_run(30, [Replicas(1, 1.0), Replicas(1, 1.0, start=10.0)])
    20.0
    """
    at = speed = 0.0
    for group in sorted(replicas, key=lambda each: each.start):
        if group.count <= 0 or group.rate <= 0:
            continue
        step = (group.start - at) * speed
        if lines <= step:
            break
        lines -= step
        at = group.start
        speed += group.count * group.rate
    if lines <= 0:
        return 0.0
    return at + lines / speed if speed > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Contender:
    """The open requests of a batch that is due in `left` seconds.

    `sharer` stands for its tenant, whose limit allows `max_rate` requests per second.
    """

    left: float
    lines: float
    sharer: int
    weight: int = 1
    max_rate: float = math.inf
    at_risk: bool = False

    @property
    def urgency(self) -> float:
        """The urgency on spot; smaller is more urgent."""
        return spot_urgency(self.left, at_risk=self.at_risk)


@dataclass(frozen=True, slots=True)
class Turn:
    """The seconds until a batch's last request ends, and the requests that are served before that.

    `own` and `others` are requests of the batch's tenant and of other tenants. The tenant's limit
    alone would let the batch end after `limited` seconds, on any replicas.
    """

    seconds: float
    own: float = 0.0
    others: float = 0.0
    limited: float = 0.0


@dataclass(slots=True)
class _Rival:
    """Another tenant: requests that are more urgent than the batch, and those as urgent."""

    weight: int
    max_rate: float
    first: float = 0.0
    same: float = 0.0

    def served(self, share: float, seconds: float) -> float:
        """Return its requests that are served until the batch ends, after `seconds`."""
        return min(self.first + min(self.same, self.weight * share), self.max_rate * seconds)


_ROUNDS: Final = 20


def turn_of(batch: Contender, others: Sequence[Contender], replicas: Sequence[Replicas]) -> Turn:
    """Return the turn of a batch among others, as claims on spot serve them.

    More urgent batches go first. Tenants whose batches are as urgent share the replicas by weight,
    and each serves its earliest deadline first. So a tenant with weight v gets at most v / w of the
    requests that the batch's tenant, with weight w, gets until the batch ends (generalized processor
    sharing), and never more than its limit allows.
    """
    ahead = _Rival(batch.weight, batch.max_rate)
    rivals: dict[int, _Rival] = {}
    level = batch.urgency
    for other in others:
        urgency = other.urgency
        if urgency > level:
            continue
        if other.sharer != batch.sharer:
            tenant = rivals.setdefault(other.sharer, _Rival(other.weight, other.max_rate))
        elif urgency < level or other.left <= batch.left:
            tenant = ahead
        else:
            continue
        if urgency < level:
            tenant.first += other.lines
        else:
            tenant.same += other.lines
    own = ahead.first + ahead.same + batch.lines
    share = (ahead.same + batch.lines) / batch.weight
    seconds, others_first = math.inf, 0.0
    # The first end assumes that no other tenant is limited; each round brings it closer.
    for _ in range(_ROUNDS):
        others_first = sum(rival.served(share, seconds) for rival in rivals.values())
        following = seconds_to_run(own + others_first, replicas)
        if following >= seconds:
            break
        seconds = following
    return Turn(seconds, own - batch.lines, others_first, limited=own / batch.max_rate)
