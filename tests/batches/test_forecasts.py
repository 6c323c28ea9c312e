"""Forecasts of completion: one read of the workload serves many batches."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from lowtide.batches.forecast import Forecaster, OpenWork, Workload, WorkloadStore
from lowtide.batches.model import BatchStatus
from lowtide.core.pools import Pool
from tests.batches.test_batches import DEADLINE, EARLY, example


class _Source(WorkloadStore):
    def __init__(self) -> None:
        self.reads = 0

    def read(self) -> Workload:
        self.reads += 1
        return Workload(EARLY, (OpenWork(DEADLINE, "m", 10),), {Pool.SPOT: self.reads})


def test_outlook_is_cached_for_two_seconds() -> None:
    source = _Source()
    now = [100.0]
    forecaster = Forecaster(source, prior=1.0, timer=lambda: now[0])
    batch = replace(example(BatchStatus.IN_PROGRESS), total=10)
    assert forecaster.with_eta(batch).eta == EARLY + timedelta(seconds=10)
    now[0] += 1.9
    assert forecaster.with_eta(batch).eta == EARLY + timedelta(seconds=10)
    now[0] += 0.2
    assert forecaster.with_eta(batch).eta == EARLY + timedelta(seconds=5)
    assert source.reads == 2


def test_finished_batch_reads_no_outlook() -> None:
    source = _Source()
    finished = example(BatchStatus.COMPLETED)
    assert Forecaster(source, prior=1.0).with_eta(finished) is finished
    assert source.reads == 0
