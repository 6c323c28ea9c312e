"""A batch of low priority beside a stream of urgent ones that never ends: it still ends in time."""

from __future__ import annotations

import math
from datetime import timedelta
from random import Random

import pytest

from lowtide.planning import escalation
from lowtide.planning.demand import PoolScale
from tests.explain.simulator import START, TARGET, Scenario, Simulation, Work

RATE, SPOT, SIZE, WINDOW = 1.0, 4, 6000, 5400.0
EVERY, REQUESTS = 80.0, 400
"""The stream alone is a quarter more than spot can run."""


class Stream(Simulation):
    """One tenant: a batch of priority 0, and from the start on batches of `priority`, due in a day."""

    def __init__(self, seed: int, priority: int) -> None:
        super().__init__(
            Scenario(
                rng=Random(seed),  # noqa: S311
                rate=RATE,
                slots=4,
                spot=PoolScale(5, SPOT),
                dedicated=SPOT,
                cold_start=120.0,
                spread=1.0,
                failures=0.0,
                lifetime=math.inf,
                outage=0.0,
                weights=[1],
                limits=[None],
                arrival=EVERY,
                size=SIZE,
                window=WINDOW,
                # Workers differ by a tenth, which plans cannot know at first.
                margin=300.0,
            )
        )
        self._priority = priority

    def lose_spot(self, at: float) -> None:
        self._at(at, "loss", None)

    def _on_loss(self, _: object) -> None:
        self.market = 0

    def _on_arrival(self, _: object) -> None:
        number = TARGET + 1 + self._sequence
        self.work[number] = Work(
            number, 0, REQUESTS, self.now, self.now + 86_400 + number * 1e-3, spot=REQUESTS,
            priority=self._priority,
        )  # fmt: skip
        self._claim_all()
        self._at(self.now + EVERY, "arrival", None)

    def end(self) -> tuple[float, Work]:
        """Return the seconds that were left at the end of the target, and the target."""
        end = self.run()
        target = self.work[TARGET]
        return target.deadline - end, target


@pytest.mark.parametrize("seed", range(3))
def test_low_priority_waits_but_spot_alone_ends_it_in_time(seed: int) -> None:
    equal, of_equal = Stream(seed, 0).end()
    left, target = Stream(seed, 5).end()
    # Without a priority the earlier deadline goes first.
    assert equal > WINDOW - 1.5 * SIZE / (RATE * SPOT)
    assert 0 < left < equal / 2
    assert target.on_dedicated == of_equal.on_dedicated == 0


def test_mark_without_headroom_comes_too_late_for_spot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(escalation, "HEADROOM", 1)
    left, target = Stream(0, 5).end()
    print(f"{left:.0f} s left, {target.on_dedicated} of {SIZE} requests on dedicated")
    assert left > 0
    assert target.on_dedicated > SIZE / 4


@pytest.mark.parametrize("lost_at", [600.0, 3000.0, 3600.0])
def test_low_priority_ends_in_time_without_spot(lost_at: float) -> None:
    simulation = Stream(0, 5)
    simulation.lose_spot(lost_at)
    left, target = simulation.end()
    assert left > 0
    assert target.on_dedicated > SIZE / 3


@pytest.mark.parametrize("seed", range(5))
def test_forecast_knows_that_urgent_work_may_come(seed: int) -> None:
    simulation = Stream(seed, 5)
    simulation.end()
    moment = simulation.moment
    assert moment is not None
    forecast = moment.workload.forecast(moment.batch, simulation.setting.fleet)
    assert forecast is not None
    end = START + timedelta(seconds=simulation.now)
    assert forecast.low is not None
    assert forecast.high is not None
    assert forecast.low <= end <= forecast.high
