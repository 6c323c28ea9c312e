from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from lowtide.core.pools import Pool
from lowtide.fleets.file import default_fleet
from lowtide.fleets.model import ANY, Fleet, Fleets, covers
from lowtide.settings import Settings

BASE = default_fleet(Settings())


def fleet(
    name: str, *models: str, fallback: str | None = None, aliases: dict[str, str] | None = None
) -> Fleet:
    return replace(BASE, name=name, models=models, fallback=fallback, aliases=aliases or {})


FLEETS = Fleets(
    (
        fleet("small", "qwen-7b", "qwen-*", aliases={"fast": "qwen-7b"}, fallback="cpu"),
        fleet("large", "qwen-72b", "qwen-72b-*"),
        fleet("cpu", "qwen-7b", "qwen-*", "tiny"),
        fleet("rest", ANY),
    )
)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("qwen-7b", "small"),
        ("qwen-72b", "large"),
        ("fast", "small"),
        ("qwen-3b", "small"),
        ("qwen-72b-awq", "large"),
        ("tiny", "cpu"),
        ("tiny-2", "rest"),
        ("Qwen-7b", "rest"),
        ("", "rest"),
    ],
)
def test_exact_name_or_alias_then_longest_prefix_then_any(model: str, name: str) -> None:
    found = FLEETS.route(model)
    assert found is not None
    assert found.name == name


def test_routing_does_not_depend_on_order_of_fleets() -> None:
    for order in itertools.permutations(FLEETS):
        assert Fleets(order).route("qwen-7b") == FLEETS.get("small")
        assert Fleets(order).route("qwen-9b") == FLEETS.get("small")
        assert Fleets(order).names == ("cpu", "large", "rest", "small")


def test_model_of_no_fleet_has_no_route() -> None:
    fleets = Fleets((fleet("a", "x", "y-*"),))
    assert fleets.route("z") is None
    assert fleets.route("y") is None
    assert fleets.get("b") is None


@pytest.mark.parametrize(
    ("name", "model", "served"),
    [
        ("small", "fast", "qwen-7b"),
        ("small", "qwen-7b", "qwen-7b"),
        ("cpu", "fast", "qwen-7b"),
        ("rest", "unknown", "unknown"),
    ],
)
def test_served_name_resolves_aliases_in_the_fallback_too(
    name: str, model: str, served: str
) -> None:
    found = FLEETS.get(name)
    assert found is not None
    assert FLEETS.served_name(found, model) == served


def test_listed_models_are_exact_names_and_aliases() -> None:
    assert FLEETS.listed_models() == ("fast", "qwen-72b", "qwen-7b", "tiny")


def test_chain_of_fallbacks_ends_at_a_circle() -> None:
    fleets = Fleets(
        (
            fleet("a", fallback="b"),
            fleet("b", fallback="c"),
            fleet("c", fallback="b"),
            fleet("d", fallback="gone"),
        )
    )
    names = {one.name: [each.name for each in fleets.fallbacks(one)] for one in fleets}
    assert names == {"a": ["b", "c"], "b": ["c"], "c": ["b"], "d": []}


@pytest.mark.parametrize(
    ("pattern", "model", "expected"),
    [
        ("a", "a", True),
        ("a", "a-", False),
        ("a-*", "a-", True),
        ("a-*", "a", False),
        ("a-*", "a-b*", True),
        ("a-b*", "a-*", False),
        ("*", "a", True),
        ("*", "*", True),
        ("a*", "*", False),
        ("a", "a*", False),
    ],
)
def test_pattern_covers_names_and_narrower_patterns(
    pattern: str, model: str, expected: bool
) -> None:
    assert covers(pattern, model) is expected


def test_pools_have_their_own_specs() -> None:
    assert (BASE.pool(Pool.SPOT).price, BASE.pool(Pool.DEDICATED).price) == (1.0, 3.0)
