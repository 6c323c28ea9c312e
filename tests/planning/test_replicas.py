"""Replicas desired for a queue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowtide.core.pools import Depth
from lowtide.planning.demand import PoolScale, desired_replicas, scaled_replicas


@pytest.mark.parametrize(
    ("rows", "per_replica", "max_replicas", "replicas"),
    [
        pytest.param(0, 5, 10, 0, id="spot 0"),
        pytest.param(1, 5, 10, 1, id="spot 1"),
        pytest.param(5, 5, 10, 1, id="spot 5"),
        pytest.param(6, 5, 10, 2, id="spot 6"),
        pytest.param(25, 5, 10, 5, id="spot 25"),
        pytest.param(26, 5, 10, 6, id="spot 26"),
        pytest.param(1_000_000, 5, 10, 10, id="spot max"),
        pytest.param(0, 10, 2, 0, id="dedicated 0"),
        pytest.param(10, 10, 2, 1, id="dedicated 10"),
        pytest.param(11, 10, 2, 2, id="dedicated 11"),
        pytest.param(21, 10, 2, 2, id="dedicated max"),
        pytest.param(7, 5, 0, 0, id="none allowed"),
    ],
)
def test_replicas_are_rounded_up_and_capped(
    rows: int, per_replica: int, max_replicas: int, replicas: int
) -> None:
    assert desired_replicas(rows, per_replica, max_replicas=max_replicas) == replicas


def test_minimum_applies_to_empty_pool() -> None:
    assert desired_replicas(0, 5, max_replicas=4, min_replicas=1) == 1


@given(st.integers(0, 10**9), st.integers(1, 1000), st.integers(0, 1000))
def test_replicas_suffice_without_excess(rows: int, per_replica: int, max_replicas: int) -> None:
    replicas = desired_replicas(rows, per_replica, max_replicas=max_replicas)
    assert 0 <= replicas <= max_replicas
    assert replicas == max_replicas or replicas * per_replica >= rows
    assert replicas == 0 or (replicas - 1) * per_replica < rows


@pytest.mark.parametrize(
    ("stranded", "planned", "replicas"),
    [(0, None, 4), (1, None, 1), (3, None, 3), (9, None, 4), (3, 2, 2)],
)
def test_pool_without_engine_gains_no_replicas(
    stranded: int, planned: int | None, replicas: int
) -> None:
    scaled = scaled_replicas(
        Depth(99, 0), PoolScale(5, 4), planned=planned, paused=False, stranded=stranded
    )
    assert scaled == replicas


@pytest.mark.parametrize(
    ("depth", "planned", "paused", "stranded", "replicas"),
    [
        pytest.param(Depth(0, 0), None, False, 0, 2, id="nothing waits"),
        pytest.param(Depth(11, 0), None, False, 0, 3, id="more are needed"),
        pytest.param(Depth(99, 0), 1, False, 0, 2, id="above the plan"),
        pytest.param(Depth(99, 0), None, True, 0, 2, id="paused"),
        pytest.param(Depth(99, 0), None, False, 1, 2, id="without engine"),
        pytest.param(Depth(99, 0), None, False, 0, 4, id="maximum"),
    ],
)
def test_min_replicas_run_in_any_case(
    depth: Depth, planned: int | None, paused: bool, stranded: int, replicas: int
) -> None:
    scale = PoolScale(5, 4, min_replicas=2)
    scaled = scaled_replicas(depth, scale, planned=planned, paused=paused, stranded=stranded)
    assert scaled == replicas
