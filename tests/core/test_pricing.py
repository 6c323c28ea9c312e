"""The cost of a batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.core.pools import Prices, cost_of

PRICES = Prices(spot=1.0, dedicated=3.0, currency="USD")
SECONDS = st.floats(min_value=0, max_value=1e9)
PRICE = st.floats(min_value=0, max_value=1e3)


@pytest.mark.parametrize(
    ("spot", "dedicated", "by_pool", "all_dedicated", "saving"),
    [
        pytest.param(0, 0, (0, 0), 0, 0, id="nothing ran"),
        pytest.param(3600, 0, (1, 0), 3, 2 / 3, id="spot alone"),
        pytest.param(0, 3600, (0, 3), 3, 0, id="dedicated alone"),
        pytest.param(1800, 900, (0.5, 0.75), 2.25, 4 / 9, id="both"),
    ],
)
def test_cost_by_pool_and_saving(
    spot: float,
    dedicated: float,
    by_pool: tuple[float, float],
    all_dedicated: float,
    saving: float,
) -> None:
    cost = cost_of(spot, dedicated, PRICES)
    assert cost.currency == "USD"
    assert (cost.spot, cost.dedicated) == pytest.approx(by_pool)
    assert cost.total == pytest.approx(sum(by_pool))
    assert cost.all_dedicated == pytest.approx(all_dedicated)
    assert cost.saving == pytest.approx(saving)


def test_saving_is_negative_if_spot_costs_more() -> None:
    assert cost_of(3600, 0, Prices(4.0, 2.0, "EUR")).saving == pytest.approx(-1)


def test_saving_is_zero_for_zero_prices() -> None:
    assert cost_of(3600, 3600, Prices(0.0, 0.0, "EUR")).saving == 0


@given(SECONDS, SECONDS, SECONDS, SECONDS, PRICE, PRICE)
def test_costs_add_up(
    a: float, b: float, c: float, d: float, spot: float, dedicated: float
) -> None:
    prices = Prices(spot, dedicated, "USD")
    parts = cost_of(a, b, prices), cost_of(c, d, prices)
    whole = cost_of(a + c, b + d, prices)
    assert whole.total == pytest.approx(sum(part.total for part in parts))
    assert whole.all_dedicated == pytest.approx(sum(part.all_dedicated for part in parts))
