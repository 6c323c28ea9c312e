"""When a batch will probably be done."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from lowtide.domain.demand import Demand
from lowtide.domain.estimates import Crew
from lowtide.domain.outlook import Outlook
from lowtide.domain.statuses import BatchStatus
from tests.domain.test_batches import DEADLINE, example

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW = DEADLINE - timedelta(hours=2)
ONE_A_SECOND = (Crew(replicas=2, rate=0.25), Crew(replicas=1, rate=0.5))


def _due(hours: float, lines: int) -> Demand:
    return Demand(NOW + timedelta(hours=hours), lines)


@pytest.mark.parametrize(
    ("others", "crews", "attempts", "seconds"),
    [
        pytest.param([], ONE_A_SECOND, 1.0, 60, id="alone"),
        pytest.param([], ONE_A_SECOND, 2.0, 120, id="every line twice"),
        pytest.param([_due(1, 30)], ONE_A_SECOND, 1.0, 90, id="behind one"),
        pytest.param([_due(3, 30)], ONE_A_SECOND, 1.0, 60, id="ahead of one"),
        pytest.param([], (), 1.0, None, id="no worker"),
    ],
)
def test_eta(
    others: Sequence[Demand], crews: tuple[Crew, ...], attempts: float, seconds: float | None
) -> None:
    running = replace(example(BatchStatus.IN_PROGRESS), total=100, completed=35, failed=5)
    outlook = Outlook(NOW, (*others, _due(2, 60)), crews, attempts)
    wanted = None if seconds is None else NOW + timedelta(seconds=seconds)
    assert outlook.eta(running) == wanted


@pytest.mark.parametrize("status", set(BatchStatus) - {BatchStatus.IN_PROGRESS})
def test_only_a_batch_in_progress_has_one(status: BatchStatus) -> None:
    assert Outlook(NOW, (), ONE_A_SECOND).eta(replace(example(status), total=10)) is None
