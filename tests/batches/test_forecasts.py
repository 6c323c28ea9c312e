"""When batches will be done: one look serves many questions."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from lowtide.batches.forecast import Forecaster, OpenWork, Outlook, OutlookStore
from lowtide.batches.model import BatchStatus
from lowtide.core.pools import Pool
from tests.batches.test_batches import DEADLINE, EARLY, example


class _Source(OutlookStore):
    def __init__(self) -> None:
        self.looks = 0

    def look(self) -> Outlook:
        self.looks += 1
        return Outlook(EARLY, (OpenWork(DEADLINE, "m", 10),), {Pool.SPOT: self.looks})


def test_a_look_serves_for_a_while() -> None:
    source = _Source()
    now = [100.0]
    forecaster = Forecaster(source, prior=1.0, timer=lambda: now[0])
    running = replace(example(BatchStatus.IN_PROGRESS), total=10)
    assert forecaster.with_eta(running).eta == EARLY + timedelta(seconds=10)
    now[0] += 1.9
    assert forecaster.with_eta(running).eta == EARLY + timedelta(seconds=10)
    now[0] += 0.2
    assert forecaster.with_eta(running).eta == EARLY + timedelta(seconds=5)
    assert source.looks == 2


def test_nobody_looks_for_a_batch_that_is_over() -> None:
    source = _Source()
    over = example(BatchStatus.COMPLETED)
    assert Forecaster(source, prior=1.0).with_eta(over) is over
    assert source.looks == 0
