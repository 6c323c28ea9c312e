"""Estimates of a file's cost and tokens."""

from __future__ import annotations

import pytest

from lowtide.core.pools import Prices
from lowtide.files.model import FilePart, estimate_file


def test_estimate_multiplies_replica_hours_by_price() -> None:
    estimate = estimate_file(4001, [FilePart(7200, 2.0, Prices(1.0, 3.0, "USD"))])
    assert estimate.replica_seconds == 3600
    assert (estimate.spot, estimate.dedicated) == pytest.approx((1.0, 3.0))
    assert (estimate.input_tokens, estimate.currency) == (1001, "USD")


def test_parts_of_several_fleets_are_estimated_at_their_own_prices() -> None:
    large = FilePart(3600, 1.0, Prices(4.0, 8.0, "USD"))
    small = FilePart(7200, 4.0, Prices(1.0, 2.0, "USD"))
    estimate = estimate_file(4, [large, small])
    assert estimate.replica_seconds == 5400
    assert (estimate.spot, estimate.dedicated) == pytest.approx((4.5, 9.0))
