"""What an alert needs to know of the whole installation, at a moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.domain.ids import BatchId
    from lowtide.domain.pools import Depth, Pool


@dataclass(frozen=True, slots=True)
class TenantVitals:
    """A tenant with open batches.

    `oldest` are the seconds that the first line has waited in a pool since it could be claimed there;
    a pool where none waits is missing.
    """

    name: str
    batches: int
    at_risk: int
    depths: Mapping[Pool, Depth]
    oldest: Mapping[Pool, float]


@dataclass(frozen=True, slots=True)
class RiskyBatch:
    """A batch whose deadline cannot be held, with the seconds left until then."""

    tenant: str
    batch: BatchId
    left: float


@dataclass(frozen=True, slots=True)
class Vitals:
    """One look.

    `open_letters` are dead letters by tenant that nobody requeued or discarded; they and `events`,
    which wait in the outbox, are counted no further than a bound. `oldest_event` is in seconds.
    """

    tenants: tuple[TenantVitals, ...]
    risky: tuple[RiskyBatch, ...]
    workers: Mapping[Pool, int]
    open_letters: Mapping[str, int]
    events: int
    oldest_event: float
