"""Fleets and their routing: which fleet serves a model, and under which name. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from lowtide.core.pools import Pool

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


ANY: Final = "*"
"""Ends a pattern of model names; alone it matches every model."""

Share = Literal["all", "spare"]


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A pool of a fleet.

    `price` is that of a replica hour, `rows_per_replica` KEDA's target, `cold_start` the max seconds
    until a new replica works, `rate` the assumed requests per second of a replica.
    """

    min_replicas: int
    max_replicas: int
    price: float
    rows_per_replica: int
    cold_start: float
    rate: float


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """The engine of a fleet's workers.

    `kind` is a value of the setting `LOWTIDE_ENGINE`. `api_key_env` names the environment variable
    that holds the engine's key. `concurrency` is None for workers that search for it,
    `longest_context` (in tokens) None if unknown. `share` is `spare` for an engine that also serves
    online traffic, else `all`.
    """

    kind: str
    url: str
    api_key_env: str
    concurrency: int | None = None
    longest_context: int | None = None
    share: Share = "all"

    @property
    def searches(self) -> bool:
        """Whether a worker searches for its number of requests in flight."""
        return self.kind == "openai" and self.concurrency is None


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers that serve a set of models on one kind of hardware.

    `models` are exact names, prefixes such as `qwen-*`, or `*`. `aliases` maps further names to
    names that the engine knows. `fallback` names the fleet that takes over requests whose deadline
    this one cannot meet.
    """

    name: str
    models: tuple[str, ...]
    aliases: Mapping[str, str]
    endpoints: tuple[str, ...]
    engine: EngineSpec
    spot: PoolSpec
    dedicated: PoolSpec
    gpu: str | None = None
    fallback: str | None = None

    def pool(self, pool: Pool) -> PoolSpec:
        """Return the bounds and prices of a pool."""
        return self.spot if pool is Pool.SPOT else self.dedicated

    @property
    def exact_names(self) -> tuple[str, ...]:
        """The model names that are no patterns, then the aliases."""
        return (*(name for name in self.models if not is_pattern(name)), *self.aliases)

    def serves(self, model: str) -> bool:
        """Return whether the fleet serves a name; of a pattern, whether it serves all its names."""
        return model in self.aliases or any(covers(name, model) for name in self.models)


def is_pattern(model: str) -> bool:
    """Return whether a model name is `*` or a prefix such as `qwen-*`."""
    return model.endswith(ANY)


def covers(pattern: str, model: str) -> bool:
    """Return whether a name or pattern matches a name, or every name of another pattern.

    >>> covers("qwen-*", "qwen-7b"), covers("*", "qwen-*"), covers("qwen-*", "*")
    (True, True, False)
    """
    if is_pattern(pattern):
        return model.removesuffix(ANY).startswith(pattern.removesuffix(ANY))
    return pattern == model


@dataclass(frozen=True)
class Fleets:
    """The fleets of an installation, ordered by name.

    Of fleets that list the same name, only those that are no fallback of another one are routed to:
    a file where that leaves more than one is invalid.
    """

    fleets: tuple[Fleet, ...]
    _exact: Mapping[str, Fleet] = field(init=False, repr=False, compare=False)
    _patterns: tuple[tuple[str, Fleet], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Order the fleets, and the names that they are found by."""
        ordered = tuple(sorted(self.fleets, key=lambda fleet: fleet.name))
        object.__setattr__(self, "fleets", ordered)
        exact: dict[str, Fleet] = {}
        patterns: dict[str, Fleet] = {}
        for fleet in self._primary_first():
            for name in fleet.exact_names:
                exact.setdefault(name, fleet)
            for name in filter(is_pattern, fleet.models):
                patterns.setdefault(name, fleet)
        longest_first = sorted(patterns.items(), key=lambda item: (-len(item[0]), item[0]))
        object.__setattr__(self, "_exact", exact)
        object.__setattr__(self, "_patterns", tuple(longest_first))

    def __iter__(self) -> Iterator[Fleet]:
        """Yield the fleets by name."""
        return iter(self.fleets)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the fleets, sorted."""
        return tuple(fleet.name for fleet in self.fleets)

    def get(self, name: str) -> Fleet | None:
        """Return the fleet of this name."""
        return next((fleet for fleet in self.fleets if fleet.name == name), None)

    def route(self, model: str) -> Fleet | None:
        """Return the fleet that serves a model; None if there is none.

        An exact name or alias comes first, then the longest prefix, then `*`.
        """
        fleet = self._exact.get(model)
        if fleet is not None:
            return fleet
        matching = (fleet for pattern, fleet in self._patterns if covers(pattern, model))
        return next(matching, None)

    def served_name(self, fleet: Fleet, model: str) -> str:
        """Return the name that a fleet's engine knows a model by.

        A fallback also understands the aliases of the fleet that it stands in for.
        """
        if model in fleet.aliases:
            return fleet.aliases[model]
        owner = self._exact.get(model)
        return model if owner is None else owner.aliases.get(model, model)

    def served_names(self, name: str) -> dict[str, str]:
        """Return the names of models that a fleet's engine knows by another, each with that name."""
        fleet = self.get(name)
        if fleet is None:
            return {}
        served = {model: self.served_name(fleet, model) for model in self._exact}
        return {model: known for model, known in served.items() if model != known}

    def listed_models(self) -> tuple[str, ...]:
        """Return the exact names and aliases that can be requested, sorted."""
        return tuple(sorted(self._exact))

    def fallbacks(self, fleet: Fleet) -> tuple[Fleet, ...]:
        """Return the chain of fallbacks of a fleet, without the unknown and the repeated."""
        chain: list[Fleet] = []
        following = fleet
        while following.fallback is not None:
            found = self.get(following.fallback)
            if found is None or found is fleet or found in chain:
                break
            chain.append(found)
            following = found
        return tuple(chain)

    def _primary_first(self) -> Iterable[Fleet]:
        """Return the fleets such that each comes before its fallbacks."""
        depth = dict.fromkeys(self.names, 0)
        for fleet in self.fleets:
            for step, fallback in enumerate(self.fallbacks(fleet), start=1):
                depth[fallback.name] = max(depth[fallback.name], step)
        return sorted(self.fleets, key=lambda fleet: (depth[fleet.name], fleet.name))
