"""The fleets of a batch, from the models of its file."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lowtide.core.errors import InvalidRequest
from lowtide.core.pools import Prices
from lowtide.fleets.model import Fleet, Fleets
from lowtide.fleets.placement import BatchPart, Placement, place, prices_of, unplaced
from tests.fleets.single import SINGLE

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
(ANY,) = SINGLE


def fleet(name: str, *models: str, endpoint: str = CHAT, price: float = 1.0) -> Fleet:
    spot, dedicated = replace(ANY.spot, price=price), replace(ANY.dedicated, price=3 * price)
    return replace(
        ANY, name=name, models=models, endpoints=(endpoint,), spot=spot, dedicated=dedicated
    )


FLEETS = Fleets(
    (
        fleet("large", "llama-70b", price=8.0),
        fleet("small", "llama-8b", "qwen-*"),
        fleet("vectors", "bge-m3", endpoint=EMBEDDINGS, price=0.1),
    )
)


def test_one_fleet_runs_a_file_of_its_models() -> None:
    assert place(FLEETS, (("llama-70b", 5),), CHAT).fleet == "large"
    both = place(FLEETS, (("qwen-7b", 5), ("llama-8b", 2)), CHAT)
    assert (both.fleet, both.spread, both.parts(7)) == ("small", (), {"small": 7})


def test_several_fleets_run_a_mixed_file() -> None:
    placed = place(FLEETS, (("llama-8b", 5), ("llama-70b", 2), ("qwen-7b", 3)), CHAT)
    assert placed == Placement(
        None,
        (
            BatchPart("small", 8, None, 1.0, 3.0),
            BatchPart("large", 2, "llama-70b", 8.0, 24.0),
        ),
        ("small", "large", "small"),
    )
    assert placed.parts(10) == {"small": 8, "large": 2}
    assert prices_of(FLEETS, placed, "USD") == Prices(1.0, 3.0, "USD")


@pytest.mark.parametrize(
    ("models", "named"),
    [
        pytest.param((("gpt-9", 1),), "'gpt-9'", id="one"),
        pytest.param((("llama-8b", 1), ("gpt-9", 1)), "'gpt-9'", id="beside one that is served"),
        pytest.param(((None, 1),), "requests without a model", id="no model"),
        pytest.param(tuple((f"m{n}", 1) for n in range(12)), "'m9' and 2 more", id="many"),
    ],
)
def test_unserved_models_are_named(models: tuple[tuple[str | None, int], ...], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named) as refused:
        place(FLEETS, models, CHAT)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "input_file_id")
    assert "llama-70b" in str(refused.value)


def test_model_at_wrong_endpoint_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=f"not served at {CHAT}, but at {EMBEDDINGS}"):
        place(FLEETS, (("bge-m3", 1),), CHAT)


def test_requests_without_a_model_go_to_a_fleet_that_serves_any() -> None:
    fleets = Fleets((*FLEETS, replace(ANY, endpoints=(CHAT,))))
    assert place(fleets, ((None, 3),), CHAT).fleet == "default"
    assert unplaced(fleets).fleet == "default"
    assert unplaced(FLEETS).fleet == "large"
