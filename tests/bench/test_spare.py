"""A deadline on spare capacity, with the scheduler's own plan."""

from __future__ import annotations

from bench.spare import DEADLINE, DOUBLES_AT, deadline


def test_dedicated_steps_in_when_online_traffic_doubles() -> None:
    figures, job = deadline(seed=7)
    assert job.ended is not None
    assert job.ended <= DEADLINE
    assert figures["left_without_dedicated"] > 0
    assert figures["dedicated_from_s"] > DOUBLES_AT
    assert 0 < figures["dedicated_share"] < 0.25
    assert figures["p99_ratio"] <= 1.15
