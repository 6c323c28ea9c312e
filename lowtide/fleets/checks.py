"""The rules that fleets must keep together: routing is unambiguous, and a fallback can stand in. Pure."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from lowtide.core.pools import Pool
from lowtide.fleets.model import is_pattern

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowtide.core.yaml_files import Problem
    from lowtide.fleets.model import Fleet, Fleets


def contradictions(fleets: Fleets) -> Iterator[Problem]:
    """Yield the contradictions; a location starts with the name of a fleet."""
    for fleet in fleets:
        for location, message in (*_names(fleet), *_bounds(fleet), *_fallback(fleet, fleets)):
            yield (fleet.name, *location), message
    yield from _shared_names(fleets)


def _names(fleet: Fleet) -> Iterator[Problem]:
    for position, name in enumerate(fleet.models):
        if name in fleet.models[:position]:
            yield ("models", position), f"{name} is listed twice: remove one"
    for alias, target in fleet.aliases.items():
        if alias in fleet.models:
            yield ("aliases", alias), f"{alias} is also listed in models: remove one of them"
        elif target in fleet.aliases:
            yield (
                ("aliases", alias),
                f"{target} is itself an alias: name the model that it stands for",
            )
        elif not fleet.serves(target):
            yield ("aliases", alias), f"the fleet does not serve {target}: add it to models"


def _bounds(fleet: Fleet) -> Iterator[Problem]:
    for pool in Pool:
        spec = fleet.pool(pool)
        if spec.min_replicas > spec.max_replicas:
            variable = f"LOWTIDE_{pool.value.upper()}_REPLICAS"
            message = (
                f"{spec.min_replicas} is more than max_replicas, which is {spec.max_replicas}: raise it, "
                f"or {variable} if the file does not set it"
            )
            yield (pool.value, "min_replicas"), message


def _shared_names(fleets: Fleets) -> Iterator[Problem]:
    """Yield each name that leads to two fleets, neither of which falls back to the other."""
    for first, second in combinations(fleets, 2):
        if first in fleets.fallbacks(second) or second in fleets.fallbacks(first):
            continue
        names = {*first.models, *first.aliases}
        for position, name in enumerate(second.models):
            if name in names:
                yield (second.name, "models", position), _both(name, first)
        for name in second.aliases:
            if name in names:
                yield (second.name, "aliases", name), _both(name, first)


def _both(name: str, other: Fleet) -> str:
    return (
        f"the fleet {other.name} has {name}, too, so it is not clear where requests go: remove one, "
        "or let one of the fleets be the fallback of the other"
    )


def _fallback(fleet: Fleet, fleets: Fleets) -> Iterator[Problem]:
    if fleet.fallback is None:
        return
    fallback = fleets.get(fleet.fallback)
    for problem in _unusable(fleet, fallback, fleets):
        yield ("fallback",), problem


def _unusable(fleet: Fleet, fallback: Fleet | None, fleets: Fleets) -> Iterator[str]:
    """Yield the reasons why a fleet cannot fall back to another."""
    if fallback is None:
        others = ", ".join(name for name in fleets.names if name != fleet.name) or "none"
        yield f"there is no fleet {fleet.fallback}: the other fleets are {others}"
        return
    if fallback is fleet:
        yield "a fleet cannot be its own fallback: name another one, or remove it"
        return
    chain = fleets.fallbacks(fleet)
    if chain[-1].fallback is not None and fleets.get(chain[-1].fallback) in (fleet, *chain):
        path = " -> ".join(one.name for one in (fleet, *chain))
        yield f"{path} -> {chain[-1].fallback} goes round in a circle: remove one of these fallbacks"
        return
    missing = [name for name in fleet.models if not fallback.serves(name)]
    if missing:
        patterns = " (a pattern)" if all(map(is_pattern, missing)) else ""
        yield f"{fallback.name} does not serve {', '.join(missing)}{patterns}: add it to its models"
    absent = [endpoint for endpoint in fleet.endpoints if endpoint not in fallback.endpoints]
    if absent:
        yield f"{fallback.name} lacks {', '.join(absent)}: add it to its endpoints"
    longest, shorter = fleet.engine.longest_context, fallback.engine.longest_context
    if longest is not None and shorter is not None and shorter < longest:
        yield f"{fallback.name} has a longest_context of {shorter}, less than {longest}"
