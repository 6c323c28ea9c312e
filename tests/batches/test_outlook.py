"""The ETA of a batch from the workload of open work."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from lowtide.batches.model import Batch, BatchStatus, Outcomes
from lowtide.batches.workload import FleetCapacity, OpenWork, PoolWorkers, Workload
from lowtide.core.pools import Pool
from lowtide.planning.demand import Capacity, PoolScale, Rate, RateSample
from tests.batches.test_batches import DEADLINE, example

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NOW = DEADLINE - timedelta(hours=2)
PRIOR = 0.5
# No dedicated replicas back the deadline.
FLEET = FleetCapacity(Capacity(PRIOR, 0, 60.0, 0.0, 10.0, in_flight=1))
TWO_ON_SPOT = {Pool.SPOT: PoolWorkers(2)}
BOTH = {Pool.SPOT: PoolWorkers(1), Pool.DEDICATED: PoolWorkers(1)}


def _work(hours: float, requests: int, model: str | None = "m", *, retried: int = 0) -> OpenWork:
    return OpenWork(NOW + timedelta(hours=hours), model, requests, ended=200, retried=retried)


def _rate(requests_per_second: float) -> Rate:
    return Rate().fold([RateSample(int(requests_per_second * 1000), 1000.0)])


BACKED = FleetCapacity(Capacity(PRIOR, 2, 60.0, 30.0, 10.0, in_flight=1))
LIMITED = OpenWork(NOW + timedelta(hours=2), "m", 60, max_running=1)


def _eta(workload: Workload, batch: Batch, fleet: FleetCapacity = FLEET) -> float | None:
    """Return the seconds until the likely end."""
    forecast = workload.forecast(batch, fleet)
    if forecast is None or forecast.likely is None:
        return None
    return (forecast.likely - workload.at).total_seconds()


@pytest.mark.parametrize(
    ("others", "workers", "rates", "seconds"),
    [
        pytest.param([], TWO_ON_SPOT, {}, 60, id="alone, at the prior"),
        pytest.param([], BOTH, {}, 120, id="dedicated waits for the deadline"),
        pytest.param([_work(1, 30)], TWO_ON_SPOT, {}, 90, id="after one"),
        pytest.param([_work(3, 30)], TWO_ON_SPOT, {}, 60, id="before one"),
        pytest.param([], {}, {}, None, id="no worker"),
        pytest.param([], TWO_ON_SPOT, {(Pool.SPOT, "m"): _rate(1)}, 30, id="measured"),
        pytest.param([], TWO_ON_SPOT, {(Pool.SPOT, ""): _rate(1)}, 30, id="measured, mixed"),
        pytest.param([], TWO_ON_SPOT, {(Pool.SPOT, "n"): _rate(9)}, 60, id="another model"),
        pytest.param([], TWO_ON_SPOT, {(Pool.DEDICATED, "m"): _rate(9)}, 60, id="another pool"),
        pytest.param(
            [_work(1, 60, "n")],
            TWO_ON_SPOT,
            {(Pool.SPOT, "m"): _rate(1), (Pool.SPOT, "n"): _rate(0.5)},
            90,
            id="after a slower model",
        ),
        pytest.param([_work(3, 0, retried=400)], TWO_ON_SPOT, {}, 100, id="retries"),
    ],
)
def test_eta_follows_earlier_work_and_rates(
    others: list[OpenWork],
    workers: Mapping[Pool, PoolWorkers],
    rates: Mapping[tuple[Pool, str], Rate],
    seconds: float | None,
) -> None:
    batch = replace(
        example(BatchStatus.IN_PROGRESS),
        total=100,
        outcomes=Outcomes(queued=60, completed=35, failed=5),
    )
    eta = _eta(Workload(NOW, (*others, _work(2, 60)), workers, rates), batch)
    assert eta == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("status", sorted(set(BatchStatus) - {BatchStatus.IN_PROGRESS}))
def test_only_batch_in_progress_has_eta(status: BatchStatus) -> None:
    workload = Workload(NOW, (), TWO_ON_SPOT)
    assert workload.forecast(replace(example(status), total=10), FLEET) is None


@pytest.mark.parametrize(
    ("paused", "seconds"), [((), 120), ((Pool.SPOT,), None), (tuple(Pool), None)], ids=str
)
def test_eta_ignores_workers_of_paused_pools(
    paused: tuple[Pool, ...], seconds: float | None
) -> None:
    batch = replace(
        example(BatchStatus.IN_PROGRESS),
        total=100,
        outcomes=Outcomes(queued=60, completed=35, failed=5),
    )
    workload = Workload(NOW, (_work(2, 60),), BOTH, paused=frozenset(paused))
    assert _eta(workload, batch) == seconds


@pytest.mark.parametrize(
    ("workers", "paused", "seconds"),
    [
        pytest.param(
            {Pool.SPOT: PoolWorkers(3), Pool.DEDICATED: PoolWorkers(1)}, (), 120, id="with spot"
        ),
        pytest.param(TWO_ON_SPOT, (), None, id="spot only"),
        pytest.param(BOTH, (Pool.DEDICATED,), None, id="dedicated paused"),
    ],
)
def test_eta_of_dedicated_batch_counts_only_dedicated_workers(
    workers: Mapping[Pool, PoolWorkers], paused: tuple[Pool, ...], seconds: float | None
) -> None:
    batch = replace(
        example(BatchStatus.IN_PROGRESS),
        total=100,
        outcomes=Outcomes(queued=60, completed=35, failed=5),
        pool=Pool.DEDICATED,
    )
    workload = Workload(NOW, (_work(2, 60),), workers, paused=frozenset(paused))
    assert _eta(workload, batch) == seconds


def _running(**changes: Any) -> Batch:
    batch = replace(
        example(BatchStatus.IN_PROGRESS), total=60, outcomes=Outcomes(queued=60), model="m"
    )
    return replace(batch, **changes)


def _beside(hours: float, requests: int, sharer: int, **changes: Any) -> OpenWork:
    return replace(_work(hours, requests), ended=0, sharer=sharer, **changes)


@pytest.mark.parametrize(
    ("others", "seconds"),
    [
        pytest.param([_beside(3, 600, 1)], 120, id="an equal tenant gets every second request"),
        pytest.param([_beside(3, 600, 1, weight=3)], 240, id="three of four by weight"),
        pytest.param([_beside(3, 10, 1)], 70, id="no more than it has"),
        pytest.param([_beside(30, 600, 1)], 60, id="less urgent"),
        pytest.param([_beside(0.5, 600, 1)], 660, id="more urgent"),
        pytest.param([_beside(0.5, 600, 1, max_running=1)], 120, id="more urgent, but limited"),
        pytest.param([_beside(3, 600, 0)], 60, id="its own tenant's later deadline"),
    ],
)
def test_eta_knows_urgency_weights_and_limits_of_others(
    others: list[OpenWork], seconds: float
) -> None:
    workload = Workload(NOW, (*others, _beside(2, 60, 0)), TWO_ON_SPOT)
    assert _eta(workload, _running()) == pytest.approx(seconds, rel=1e-3)


def test_eta_knows_limit_of_tenant() -> None:
    # One request at a time, of 2 s each.
    workload = Workload(NOW, (LIMITED,), {Pool.SPOT: PoolWorkers(9)})
    forecast = workload.forecast(_running(), FLEET)
    assert forecast is not None
    assert forecast.is_limited
    assert _eta(workload, _running()) == pytest.approx(120)


@pytest.mark.parametrize(
    ("workers", "paused", "seconds"),
    [
        pytest.param({}, (), 7200 - 32, id="spot gone"),
        pytest.param(TWO_ON_SPOT, (Pool.SPOT,), 7200 - 32, id="spot paused"),
        pytest.param(TWO_ON_SPOT, (), 60, id="spot suffices"),
        pytest.param({}, (Pool.DEDICATED,), None, id="dedicated paused"),
        pytest.param({Pool.DEDICATED: PoolWorkers(away=2)}, (), None, id="engines away"),
    ],
)
def test_dedicated_takes_over_as_late_as_the_deadline_allows(
    workers: Mapping[Pool, PoolWorkers], paused: tuple[Pool, ...], seconds: float | None
) -> None:
    workload = Workload(NOW, (_beside(2, 60, 0),), workers, paused=frozenset(paused))
    assert _eta(workload, _running(), BACKED) == seconds


def test_batch_at_risk_ends_with_all_of_dedicated() -> None:
    workload = Workload(NOW, (_beside(2, 60, 0),), {})
    # Two replicas after a cold start of 60 s.
    assert _eta(workload, _running(at_risk=True), BACKED) == pytest.approx(60 + 60)


def test_starting_replicas_of_new_batch_count() -> None:
    fleet = replace(FLEET, spot=PoolScale(5, 4))
    workload = Workload(NOW, (_beside(2, 60, 0),), {})
    started = NOW - timedelta(seconds=20)
    assert _eta(workload, _running(in_progress_at=started), fleet) == pytest.approx(40 + 30)
    assert _eta(workload, _running(in_progress_at=NOW - timedelta(hours=1)), fleet) is None


def test_request_that_waits_for_its_retry_is_awaited() -> None:
    last = replace(_beside(2, 60, 0), lines=1, last_at=NOW + timedelta(seconds=100))
    batch = _running(total=1, outcomes=Outcomes(queued=1))
    assert _eta(Workload(NOW, (last,), TWO_ON_SPOT), batch) == pytest.approx(102)


class _Counted(tuple[OpenWork, ...]):
    """Open work that counts how often it is read."""

    __slots__ = ()
    reads = 0

    def __iter__(self) -> Iterator[OpenWork]:
        _Counted.reads += 1
        return super().__iter__()


def test_forecast_reads_the_open_work_equally_often_however_much_there_is() -> None:
    batch = replace(example(BatchStatus.IN_PROGRESS), total=10, outcomes=Outcomes(queued=10))
    reads = []
    for count in (5, 500):
        sooner = replace(LIMITED, deadline=NOW + timedelta(hours=1))
        work = _Counted(replace(sooner, sharer=number) for number in range(count))
        _Counted.reads = 0
        Workload(NOW, work, BOTH).forecast(batch, BACKED)
        reads.append(_Counted.reads)
    assert 0 < reads[0] == reads[1]


def test_batch_of_which_nothing_but_retries_is_known_has_a_forecast() -> None:
    work = OpenWork(DEADLINE, "m", 10, ended=0, retried=3)
    batch = replace(example(BatchStatus.IN_PROGRESS), total=10, outcomes=Outcomes(queued=10))
    forecast = Workload(NOW, (work,), BOTH).forecast(batch, FLEET)
    assert forecast is not None
    assert forecast.likely is not None


@pytest.mark.parametrize(
    ("searches", "found", "seconds"),
    [
        pytest.param(True, {Pool.SPOT: 10}, 1200, id="found"),
        pytest.param(True, {Pool.DEDICATED: 10}, 120, id="another pool"),
        pytest.param(False, {Pool.SPOT: 10}, 120, id="a fixed number since then"),
    ],
)
def test_time_of_a_request_follows_what_a_search_found(
    searches: bool, found: Mapping[Pool, int], seconds: float
) -> None:
    fleet = replace(FLEET, dedicated=replace(FLEET.dedicated, searches=searches))
    workload = Workload(NOW, (LIMITED,), TWO_ON_SPOT, concurrency=found)
    assert _eta(workload, _running(), fleet) == seconds
