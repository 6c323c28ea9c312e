"""What two readings tell together."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from lowtide.core.ids import DEFAULT_TENANT, BatchId
from lowtide.core.pools import Pool
from lowtide.status.operations import Operations, TenantLoad, Work, sample_of

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
ONE, TWO = BatchId(UUID(int=1)), BatchId(UUID(int=2))


def reading(
    after: float = 0.0,
    work: tuple[Work, ...] = (),
    loads: tuple[TenantLoad, ...] = (),
    workers: int = 0,
) -> Operations:
    return Operations(
        at=NOW + timedelta(seconds=after),
        loads=loads,
        work=work,
        workers={Pool.SPOT: workers} if workers else {},
        planned=None,
        ticked_at=None,
        events_waiting=0,
        oldest_event=None,
        server_version="18",
        schema_version="0001",
    )


@pytest.mark.parametrize(
    ("before", "after", "throughput", "interruptions"),
    [
        pytest.param(
            (Work(ONE, Pool.SPOT, 10, 1),), (Work(ONE, Pool.SPOT, 30, 3),), 2, 12, id="on"
        ),
        pytest.param((), (Work(ONE, Pool.SPOT, 30, 0),), 3, 0, id="a batch that is new"),
        pytest.param(
            (Work(ONE, Pool.SPOT, 10, 0), Work(TWO, Pool.SPOT, 5000, 9)),
            (Work(ONE, Pool.SPOT, 20, 0),),
            1,
            0,
            id="a batch that is no longer read takes nothing away",
        ),
        pytest.param((), (Work(ONE, Pool.DEDICATED, 30, 3),), 0, 0, id="the other pool's"),
    ],
)
def test_rates_are_those_of_the_time_between(
    before: tuple[Work, ...], after: tuple[Work, ...], throughput: float, interruptions: float
) -> None:
    spot = sample_of(reading(0, before), reading(10, after), {}).pools[Pool.SPOT]
    assert (spot.throughput, spot.interruptions) == (throughput, interruptions)


def test_the_first_sample_has_no_rates() -> None:
    first = sample_of(None, reading(0, (Work(ONE, Pool.SPOT, 5000, 7),)), {Pool.SPOT: 3})
    assert first.pools[Pool.SPOT].throughput == first.pools[Pool.SPOT].interruptions == 0
    assert first.pools[Pool.SPOT].desired == 3


def test_the_oldest_of_all_tenants_counts() -> None:
    loads = tuple(
        TenantLoad(DEFAULT_TENANT, name, Pool.SPOT, 4, 1, NOW - timedelta(seconds=age))
        for name, age in (("a", 5), ("b", 90))
    )
    found = reading(loads=(*loads, TenantLoad(DEFAULT_TENANT, "c", Pool.SPOT, 0, 2, None)))
    assert found.queued(Pool.SPOT) == 8
    assert found.oldest_age(Pool.SPOT) == 90
    assert found.oldest_age(Pool.DEDICATED) == 0
