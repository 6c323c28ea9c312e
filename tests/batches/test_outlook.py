"""The ETA of a batch from the workload of open work."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from lowtide.batches.forecast import OpenWork, Workload
from lowtide.batches.model import BatchStatus, Outcomes
from lowtide.core.pools import Pool
from lowtide.planning.demand import Rate, RateSample
from tests.batches.test_batches import DEADLINE, example

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = DEADLINE - timedelta(hours=2)
PRIOR = 0.5
TWO_ON_SPOT = {Pool.SPOT: 2}
BOTH = {Pool.SPOT: 1, Pool.DEDICATED: 1}


def _work(hours: float, requests: int, model: str | None = "m", *, retried: int = 0) -> OpenWork:
    return OpenWork(NOW + timedelta(hours=hours), model, requests, ended=200, retried=retried)


def _rate(requests_per_second: float) -> Rate:
    return Rate().fold([RateSample(int(requests_per_second * 1000), 1000.0)])


@pytest.mark.parametrize(
    ("others", "workers", "rates", "seconds"),
    [
        pytest.param([], TWO_ON_SPOT, {}, 60, id="alone, at the prior"),
        pytest.param([], BOTH, {}, 60, id="both pools"),
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
    workers: Mapping[Pool, int],
    rates: Mapping[tuple[Pool, str], Rate],
    seconds: float | None,
) -> None:
    batch = replace(
        example(BatchStatus.IN_PROGRESS),
        total=100,
        outcomes=Outcomes(queued=60, completed=35, failed=5),
    )
    eta = Workload(NOW, (*others, _work(2, 60)), workers, rates).eta(batch, PRIOR)
    if seconds is None:
        assert eta is None
    else:
        assert eta is not None
        assert (eta - NOW).total_seconds() == pytest.approx(seconds)


@pytest.mark.parametrize("status", sorted(set(BatchStatus) - {BatchStatus.IN_PROGRESS}))
def test_only_batch_in_progress_has_eta(status: BatchStatus) -> None:
    workload = Workload(NOW, (), TWO_ON_SPOT)
    assert workload.eta(replace(example(status), total=10), PRIOR) is None


@pytest.mark.parametrize(
    ("paused", "seconds"), [((), 60), ((Pool.SPOT,), 120), (tuple(Pool), None)], ids=str
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
    eta = workload.eta(batch, PRIOR)
    assert (None if eta is None else (eta - NOW).total_seconds()) == seconds


@pytest.mark.parametrize(
    ("workers", "paused", "seconds"),
    [
        pytest.param({Pool.SPOT: 3, Pool.DEDICATED: 1}, (), 120, id="with spot"),
        pytest.param(TWO_ON_SPOT, (), None, id="spot only"),
        pytest.param(BOTH, (Pool.DEDICATED,), None, id="dedicated paused"),
    ],
)
def test_eta_of_dedicated_batch_counts_only_dedicated_workers(
    workers: Mapping[Pool, int], paused: tuple[Pool, ...], seconds: float | None
) -> None:
    batch = replace(
        example(BatchStatus.IN_PROGRESS),
        total=100,
        outcomes=Outcomes(queued=60, completed=35, failed=5),
        pool=Pool.DEDICATED,
    )
    workload = Workload(NOW, (_work(2, 60),), workers, paused=frozenset(paused))
    eta = workload.eta(batch, PRIOR)
    assert (None if eta is None else (eta - NOW).total_seconds()) == seconds
