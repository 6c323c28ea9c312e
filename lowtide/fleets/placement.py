"""The fleets that run a batch, from the models of its requests. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from lowtide.core.errors import InvalidRequest
from lowtide.core.pools import DEFAULT_FLEET, Prices

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.files.lines import ModelCounts
    from lowtide.fleets.model import Fleet, Fleets


_MOST_NAMED: Final = 10


@dataclass(frozen=True, slots=True)
class BatchPart:
    """The requests of a batch that one fleet runs; a model of None is one of several, or none.

    Prices are of a replica hour; without its own, a part has those of its batch.
    """

    fleet: str
    lines: int
    model: str | None = None
    spot_price: float | None = None
    dedicated_price: float | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """The fleet that runs a batch; None if several do, each a part of `spread`.

    `by_model` are the fleets of the file's models, in their order.
    """

    fleet: str | None
    spread: tuple[BatchPart, ...] = ()
    by_model: tuple[str, ...] = ()

    def parts(self, lines: int) -> dict[str, int]:
        """Return the requests by fleet, for `lines` in all."""
        if self.fleet is not None:
            return {self.fleet: lines}
        return {part.fleet: part.lines for part in self.spread}


DEFAULT_PLACEMENT: Final = Placement(DEFAULT_FLEET)


def place(fleets: Fleets, models: ModelCounts, endpoint: str) -> Placement:
    """Return the fleets for a file's models.

    Raises InvalidRequest for models that no fleet serves, or that theirs serves at other endpoints
    only.
    """
    found = [(model, lines, fleet) for model, lines in models if (fleet := _route(fleets, model))]
    if len(found) < len(models):
        raise _not_served(fleets, [model for model, _ in models if not _route(fleets, model)])
    parts: dict[str, BatchPart] = {}
    by_model = []
    for model, lines, fleet in found:
        if endpoint not in fleet.endpoints:
            raise _wrong_endpoint(fleet, model, endpoint)
        by_model.append(fleet.name)
        before = parts.get(fleet.name)
        parts[fleet.name] = (
            BatchPart(fleet.name, lines, model, fleet.spot.price, fleet.dedicated.price)
            if before is None
            else replace(before, lines=before.lines + lines, model=None)
        )
    if len(parts) == 1:
        return Placement(next(iter(parts)), by_model=tuple(by_model))
    return Placement(None, tuple(parts.values()), tuple(by_model))


def unplaced(fleets: Fleets) -> Placement:
    """Return the fleet that stands for that of a file whose models are not known yet."""
    return Placement(DEFAULT_FLEET if fleets.get(DEFAULT_FLEET) else fleets.names[0])


def prices_of(fleets: Fleets, placement: Placement, currency: str) -> Prices:
    """Return the prices of a batch; those of the largest part if several fleets run it.

    Only parts without prices of their own have them then.
    """
    name = placement.fleet or max(placement.spread, key=lambda part: part.lines).fleet
    fleet = fleets.get(name)
    if fleet is None:
        return Prices(0.0, 0.0, currency)
    return Prices(fleet.spot.price, fleet.dedicated.price, currency)


def _route(fleets: Fleets, model: str | None) -> Fleet | None:
    # Requests without a model go to a fleet that serves any.
    return fleets.route(model or "")


def _not_served(fleets: Fleets, unserved: Sequence[str | None]) -> InvalidRequest:
    names = ", ".join(
        "requests without a model" if name is None else repr(name)
        for name in unserved[:_MOST_NAMED]
    )
    more = f" and {len(unserved) - _MOST_NAMED} more" if len(unserved) > _MOST_NAMED else ""
    served = ", ".join(fleets.listed_models()[:50])
    return InvalidRequest(
        f"No fleet serves {names}{more}: use {served or 'a model that one serves'}. "
        "GET /v1/models lists all.",
        param="input_file_id",
        code="model_not_found",
    )


def _wrong_endpoint(fleet: Fleet, model: str | None, endpoint: str) -> InvalidRequest:
    return InvalidRequest(
        f"Model {model!r} is not served at {endpoint}, but at {', '.join(fleet.endpoints)}.",
        param="endpoint",
        code="invalid_endpoint",
    )
