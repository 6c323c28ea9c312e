"""Estimates of a file's cost and tokens."""

from __future__ import annotations

import pytest

from lowtide.core.pools import Prices
from lowtide.files.model import estimate_file


def test_estimate_multiplies_replica_hours_by_price() -> None:
    estimate = estimate_file(4001, 7200, 2.0, Prices(1.0, 3.0, "USD"))
    assert estimate.replica_seconds == 3600
    assert (estimate.spot, estimate.dedicated) == pytest.approx((1.0, 3.0))
    assert (estimate.input_tokens, estimate.currency) == (1001, "USD")
