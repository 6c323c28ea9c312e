"""Completion times: a fluid model of claims on spot, with urgency, weights and limits of tenants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lowtide.planning.urgency import own_order, spot_urgency

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


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

    `sharer` stands for its tenant, whose limit allows `max_rate` requests per second. `barrier` is as
    of `Queued`.
    """

    left: float
    lines: float
    sharer: int
    weight: int = 1
    max_rate: float = math.inf
    at_risk: bool = False
    priority: int = 0
    barrier: float = math.inf

    @property
    def urgency(self) -> float:
        """The urgency on spot by its deadline; smaller is more urgent."""
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
    and each serves its own in its order. So a tenant with weight v gets at most v / w of the
    requests that the batch's tenant, with weight w, gets until the batch ends (generalized processor
    sharing), and never more than its limit allows.
    """
    tenants: dict[int, list[Contender]] = {batch.sharer: []}
    for other in others:
        tenants.setdefault(other.sharer, []).append(other)
    level, own_ahead = _own_ahead(batch, tenants.pop(batch.sharer))
    ahead = _rival(own_ahead, level, batch)
    rivals = [_rival(_levels(tenant), level, tenant[0]) for tenant in tenants.values()]
    own = ahead.first + ahead.same + batch.lines
    share = (ahead.same + batch.lines) / batch.weight
    seconds, others_first = math.inf, 0.0
    # The first end assumes that no other tenant is limited; each round brings it closer.
    for _ in range(_ROUNDS):
        others_first = sum(rival.served(share, seconds) for rival in rivals)
        following = seconds_to_run(own + others_first, replicas)
        if following >= seconds:
            break
        seconds = following
    return Turn(seconds, own - batch.lines, others_first, limited=own / batch.max_rate)


_Ranked = list[tuple[float, Contender]]


def _levels(tenant: Sequence[Contender]) -> _Ranked:
    """Return the batches of a tenant with their urgency."""
    # Without priorities there is no need to sort.
    if any(each.priority for each in tenant):
        return own_order(tenant)
    return [(each.urgency, each) for each in tenant]


def _own_ahead(batch: Contender, others: Sequence[Contender]) -> tuple[float, _Ranked]:
    """Return the urgency of a batch, and the batches of its tenant that are served before it."""
    if batch.priority or any(other.priority for other in others):
        ordered = own_order([*others, batch])
        place = next(i for i, (_, each) in enumerate(ordered) if each is batch)
        return ordered[place][0], ordered[:place]
    level = batch.urgency
    ranked = [(other.urgency, other) for other in others]
    return level, [
        (urgency, other)
        for urgency, other in ranked
        if urgency < level or (urgency == level and other.left <= batch.left)
    ]


def _rival(ranked: _Ranked, level: float, tenant: Contender) -> _Rival:
    """Return the requests of a tenant that are more urgent than `level`, and those as urgent."""
    return _Rival(
        tenant.weight,
        tenant.max_rate,
        first=sum(each.lines for urgency, each in ranked if urgency < level),
        same=sum(each.lines for urgency, each in ranked if urgency == level),
    )
