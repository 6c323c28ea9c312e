"""The watch over operations and its memory."""

from __future__ import annotations

from dataclasses import replace

from lowtide.core.errors import Unavailable
from lowtide.core.ids import DEFAULT_TENANT
from lowtide.core.pools import Pool, PoolPause
from lowtide.status.operations import (
    SAMPLE_SECONDS,
    SAMPLES,
    Operations,
    OperationsStore,
    OperationsWatch,
    ScaleRule,
    TenantLoad,
    Work,
)
from tests.status.test_operations import NOW, ONE, reading

RULES = {Pool.SPOT: ScaleRule(5, 4), Pool.DEDICATED: ScaleRule(10, 2)}


class Source(OperationsStore):
    """Gives one reading after the other; None is a database that does not answer."""

    def __init__(self, *readings: Operations | None) -> None:
        self.readings = list(readings)

    def read(self) -> Operations:
        found = self.readings.pop(0)
        if found is None:
            raise Unavailable("No answer.")
        return found


def _look(*readings: Operations | None) -> OperationsWatch:
    watch = OperationsWatch(Source(*readings), RULES)
    for _ in readings:
        watch.look()
    return watch


def test_samples_are_taken_at_their_pace_however_often_it_looks() -> None:
    work = [(Work(ONE, Pool.SPOT, done, 0),) for done in range(0, 310, 10)]
    seen = _look(*(reading(second, work[second]) for second in range(31))).seen
    assert [sample.at.second for sample in seen.samples] == [0, 14, 28]
    assert seen.samples[-1].pools[Pool.SPOT].throughput == 10


def test_the_memory_is_bounded() -> None:
    seen = _look(*(reading(n * SAMPLE_SECONDS) for n in range(SAMPLES + 5))).seen
    assert len(seen.samples) == SAMPLES
    assert (seen.samples[0].at - NOW).total_seconds() == 5 * SAMPLE_SECONDS


def test_what_was_read_survives_a_failure_and_the_failure_is_told() -> None:
    watch = _look(reading(), None)
    assert watch.seen.reading == reading()
    assert watch.seen.problem == "No answer."
    watch = _look(None)
    assert watch.seen.reading is None
    assert watch.seen.samples == ()


def test_dedicated_gets_no_more_than_planned() -> None:
    loads = tuple(TenantLoad(DEFAULT_TENANT, "a", pool, 100, 0, NOW) for pool in Pool)
    for planned, dedicated in ((None, 2), (2, 2), (1, 1), (0, 1)):
        (sample,) = _look(replace(reading(loads=loads), planned=planned)).seen.samples
        assert sample.pools[Pool.DEDICATED].desired == dedicated
        assert sample.pools[Pool.SPOT].desired == 4


def test_what_runs_keeps_its_replica_and_nothing_wants_none() -> None:
    for running, dedicated in ((0, 0), (9, 1)):
        loads = (TenantLoad(DEFAULT_TENANT, "a", Pool.DEDICATED, 0, running, NOW),)
        (sample,) = _look(replace(reading(loads=loads), planned=0)).seen.samples
        assert sample.pools[Pool.DEDICATED].desired == dedicated


def test_a_paused_pool_wants_no_replicas() -> None:
    loads = tuple(TenantLoad(DEFAULT_TENANT, "a", pool, 100, 0, NOW) for pool in Pool)
    paused = replace(reading(loads=loads), pauses=(PoolPause(Pool.SPOT, NOW, "ana"),))
    (sample,) = _look(paused).seen.samples
    assert [sample.pools[pool].desired for pool in Pool] == [0, 2]
