"""How fast workers are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.domain.ids import LeaseId
    from lowtide.domain.pools import Pool
    from lowtide.domain.rates import Rate, Sample


class RateBook(Protocol):
    """Rates that survive the workers they were measured at."""

    def report(self, lease: LeaseId, total: Sample) -> None:
        """Note what a worker has ended while it was full, since its lease was opened."""
        ...

    def fold(self) -> Mapping[tuple[Pool, str], Rate]:
        """Fold what workers reported since the last time; return all rates by pool and model."""
        ...
