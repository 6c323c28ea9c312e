"""What a batch costs: the replicas' time behind its results, by each pool's price."""

from __future__ import annotations

from dataclasses import dataclass

from lowtide.domain.pools import Pool

_SECONDS_AN_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Prices:
    """What one replica costs an hour, in `currency`."""

    spot: float
    dedicated: float
    currency: str

    def of_second(self, pool: Pool) -> float:
        """Return what one second of a replica of a pool costs."""
        return (self.spot if pool is Pool.SPOT else self.dedicated) / _SECONDS_AN_HOUR


@dataclass(frozen=True, slots=True)
class Cost:
    """What a batch costs by pool, and what the same results would cost on dedicated alone.

    It counts the time of accepted results: what was interrupted, lost or tried in vain, and replicas
    that start or idle, belong to no batch.
    """

    currency: str
    spot: float
    dedicated: float
    all_dedicated: float

    @property
    def total(self) -> float:
        """What both pools cost."""
        return self.spot + self.dedicated

    @property
    def saving(self) -> float:
        """The share of the all-dedicated cost that spot saved; 0 without any cost."""
        return 1 - self.total / self.all_dedicated if self.all_dedicated > 0 else 0.0


def cost_of(spot_seconds: float, dedicated_seconds: float, prices: Prices) -> Cost:
    """Return the cost of so many replica seconds; a result takes as long in either pool.

    A line's replica seconds are its worker's, each divided by the lines in the worker's hands, so
    that a second of a replica is shared out once (processor sharing, Kleinrock 1967).

        >>> cost_of(3600, 0, Prices(1.0, 3.0, "USD")).saving
        0.6666666666666667
    """
    return Cost(
        currency=prices.currency,
        spot=spot_seconds * prices.spot / _SECONDS_AN_HOUR,
        dedicated=dedicated_seconds * prices.dedicated / _SECONDS_AN_HOUR,
        all_dedicated=(spot_seconds + dedicated_seconds) * prices.dedicated / _SECONDS_AN_HOUR,
    )
