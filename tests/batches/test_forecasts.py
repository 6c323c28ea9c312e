"""Forecasts of completion: one read of the workload serves many batches."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from lowtide.batches.forecast import Forecaster, WorkloadStore
from lowtide.batches.model import BatchStatus
from lowtide.batches.workload import FleetCapacity, OpenWork, PoolWorkers, Workload, Workloads
from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.planning.demand import Capacity
from tests.batches.test_batches import DEADLINE, EARLY, example

# One request a second.
FLEET = FleetCapacity(Capacity(1.0, 0, 0.0, 0.0, 10.0, in_flight=1))


class _Source(WorkloadStore):
    def __init__(self) -> None:
        self.reads = 0

    def read(self) -> Workloads:
        self.reads += 1
        workers = {Pool.SPOT: PoolWorkers(self.reads)}
        workload = Workload(EARLY, (OpenWork(DEADLINE, "m", 10),), workers)
        return Workloads(EARLY, {DEFAULT_FLEET: workload})


def test_outlook_is_cached_for_two_seconds() -> None:
    source = _Source()
    now = [100.0]
    forecaster = Forecaster(source, {DEFAULT_FLEET: FLEET}, data_kept=60, timer=lambda: now[0])
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
    assert Forecaster(source, {DEFAULT_FLEET: FLEET}, data_kept=60).with_eta(finished).eta is None
    assert source.reads == 0
