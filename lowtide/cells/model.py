"""Cells, what they report, and which one a new file or batch goes to. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence  # noqa: TC003 - msgspec reads it at run time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from lowtide.core.errors import InvalidRequest, Unavailable
from lowtide.core.ids import cell_of
from lowtide.core.pools import DEFAULT_FLEET, SPOT_HOURS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random
    from uuid import UUID


HEARTBEAT_PATH: Final = "/v1/cell"
TENANT_PATH: Final = "/v1/cell/tenant"
NEARLY_AS_CHEAP: Final = 1.05
"""Cells up to this factor above the lowest price share the work: one alone would fill up before the
fronts learn of it."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One installation. With `unnumbered_ids` it had objects before it got its number.

    A cell that does not accept new work only finishes what it has. `portal` is the address of its
    portal, for browsers.
    """

    number: int
    name: str
    url: str
    region: str
    unnumbered_ids: bool = False
    accepts_work: bool = True
    portal: str | None = None


@dataclass(frozen=True, slots=True)
class Quote:
    """What a fleet would do with more work, and how busy it is.

    `models` are names, prefixes such as `qwen-*`, or `*`. `price` is for the seconds of a replica that
    one request takes, in the cell's currency; `wait` is the seconds until what is queued now has run,
    on dedicated capacity where spot capacity is short, None without any capacity; `interruptions` is
    per spot replica and hour. The price is an assumption until requests have been `measured`.
    """

    models: Sequence[str]
    price: float
    wait: float | None
    interruptions: float = 0.0
    fleet: str = DEFAULT_FLEET
    unfinished: int = 0
    spot_workers: int = 0
    dedicated_workers: int = 0
    measured: bool = True

    def serves(self, model: str) -> bool:
        """Return whether the fleet serves a model."""
        for name in self.models:
            if name == model or (name[-1:] == "*" and model.startswith(name[:-1])):
                return True
        return False

    @property
    def seconds(self) -> float:
        """The wait; infinite without capacity."""
        return math.inf if self.wait is None else self.wait


@dataclass(frozen=True, slots=True)
class Report:
    """A heartbeat of a cell: the quotes of its fleets."""

    quotes: Sequence[Quote]
    currency: str = SPOT_HOURS
    cell: int | None = None


@dataclass(frozen=True, slots=True)
class Demand:
    """What a tenant wants to place: in `window` seconds, and on a fleet of `model` if it is known."""

    tenant: str
    window: float
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Cells:
    """All cells, and the regions that some tenants' data must stay in."""

    cells: Sequence[Cell]
    residency: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def owners(self, id_: UUID) -> Sequence[Cell]:
        """Return all cells that may have an object, the likeliest one first.

        One for the id of a cell, else those with ids older than their numbers. A batch that was
        evacuated is elsewhere, and an old id may look numbered by chance: others follow.
        """
        number = cell_of(id_)
        return sorted(self.cells, key=lambda cell: (cell.number != number, not cell.unnumbered_ids))

    def allowed(self, tenant: str) -> Sequence[Cell]:
        """Return the cells in whose regions the data of a tenant may be."""
        regions = self.residency.get(tenant)
        if regions is None:
            return self.cells
        return [cell for cell in self.cells if cell.region in regions]

    def place(self, demand: Demand, reports: Mapping[int, Report], rng: Random) -> Cell:
        """Return the cell for new work: one of the cheapest that hold its deadline, else the soonest.

        `reports` are those of the cells that answered lately, by number. Raises InvalidRequest if no
        fleet anywhere serves the model, and Unavailable while no cell that may have the work answers.
        """
        cheap: list[tuple[Cell, Quote]] = []
        limit = math.inf
        # One pass that keeps only what may be cheap: this is the cost of placement in 1,000 cells.
        for cell in self.allowed(demand.tenant):
            report = reports.get(cell.number)
            if report is None or not cell.accepts_work:
                continue
            for quote in report.quotes:
                if (
                    (quote.price <= limit or not quote.measured)
                    and quote.seconds < demand.window
                    and (demand.model is None or quote.serves(demand.model))
                ):
                    cheap.append((cell, quote))
                    if quote.measured:
                        limit = min(limit, quote.price * NEARLY_AS_CHEAP)
        if not cheap:
            return self._soonest(demand, reports)
        # Without work, a price that is an assumption would remain one.
        cheap = [
            (cell, quote) for cell, quote in cheap if quote.price <= limit or not quote.measured
        ]
        # Two at random, and of these the one with less to do: close to the best of all, without a herd.
        two = rng.sample(cheap, min(2, len(cheap)))
        return min(two, key=lambda offer: offer[1].seconds)[0]

    def _soonest(self, demand: Demand, reports: Mapping[int, Report]) -> Cell:
        """Return the cell for work that none ends in time; raises as `place` does."""
        allowed = self.allowed(demand.tenant)
        answering = [cell for cell in allowed if cell.accepts_work and cell.number in reports]
        if not answering:
            raise Unavailable(f"No cell that may have the work of {demand.tenant} accepts any now.")
        offers = [
            (cell, quote)
            for cell in answering
            for quote in reports[cell.number].quotes
            if demand.model is None or quote.serves(demand.model)
        ]
        if offers:
            return min(offers, key=lambda offer: offer[1].seconds)[0]
        if len(answering) < len(allowed):
            raise Unavailable("The cells that may serve this model do not answer now.")
        raise InvalidRequest(f"No fleet serves the model {demand.model!r}.", param="model")


def price_of(replica_hour: float, rate: float) -> float:
    """Return the price of a request, from that of a replica per hour and its requests a second."""
    return math.inf if rate <= 0 else replica_hour / 3600 / rate
