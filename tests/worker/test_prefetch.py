"""Prefetch: as many requests ready as the engine takes while a claim is under way."""

from __future__ import annotations

import pytest

from lowtide.worker.prefetch import MAX_CLAIM, Prefetch, refill_at


@pytest.mark.parametrize(
    ("concurrency", "prefetch", "free"),
    [(32, 16, 8), (256, 16, 8), (256, 256, 128), (8, 0, 1), (1, 1, 1), (8, 100, 27)],
)
def test_claim_begins_while_half_of_the_prefetch_is_ready(
    concurrency: int, prefetch: int, free: int
) -> None:
    assert refill_at(concurrency + prefetch, prefetch) == free
    assert not prefetch or free <= max(1, prefetch / 2)


class Engine:
    """Ends requests at a rate, in groups."""

    def __init__(self, *, trip: float) -> None:
        self.now = 0.0
        self.prefetch = Prefetch(None, lambda: self.now)
        for _ in range(30):
            self.prefetch.claimed(trip / 2)
            self.prefetch.loaded(trip / 2)

    def run(self, seconds: float, *, rate: float, group: int = 1) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += group / rate
            self.prefetch.ended(group)


@pytest.mark.parametrize(
    ("rate", "group", "trip"),
    [
        pytest.param(20.0, 1, 0.02, id="slow"),
        pytest.param(500.0, 1, 0.02, id="fast"),
        pytest.param(500.0, 1, 0.5, id="slow claims"),
        pytest.param(256.0, 256, 0.05, id="in lockstep"),
    ],
)
def test_ready_requests_outlast_a_claim(rate: float, group: int, trip: float) -> None:
    engine = Engine(trip=trip)
    engine.run(20, rate=rate, group=group)
    size = engine.prefetch.size(256)
    ready = size - refill_at(256 + size, size)
    assert ready >= max(rate * trip, group)
    assert size <= max(256 / 8, 2 * group, 2 * rate * max(2 * trip, 0.25) + 8)


def test_prefetch_is_as_large_as_the_batch_until_it_is_measured() -> None:
    assert Prefetch(None).size(48) == 48


def test_fixed_prefetch_stays() -> None:
    now = 0.0
    prefetch = Prefetch(5, lambda: now)
    prefetch.ended(1000)
    now = 1.0
    prefetch.ended(1000)
    assert prefetch.size(256) == 5


def test_prefetch_shrinks_with_the_rate() -> None:
    engine = Engine(trip=0.02)
    engine.run(10, rate=1000.0)
    assert engine.prefetch.size(64) > 400
    engine.run(240, rate=4.0)
    assert engine.prefetch.size(64) <= 10


def test_prefetch_is_bounded() -> None:
    engine = Engine(trip=5.0)
    engine.run(30, rate=5000.0, group=100)
    assert engine.prefetch.size(1024) == MAX_CLAIM
