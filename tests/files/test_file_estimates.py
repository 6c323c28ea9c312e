"""What a file is guessed to take."""

from __future__ import annotations

import pytest

from lowtide.core.pools import Prices
from lowtide.files.model import estimate_file


def test_an_hour_of_a_replica_costs_its_price() -> None:
    found = estimate_file(4001, 7200, 2.0, Prices(1.0, 3.0, "USD"))
    assert found.replica_seconds == 3600
    assert (found.spot, found.dedicated) == pytest.approx((1.0, 3.0))
    assert (found.input_tokens, found.currency) == (1001, "USD")
