"""What deserves somebody's attention, and what does not."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from lowtide.core.ids import DEFAULT_TENANT
from lowtide.core.pools import Pool, PoolPause
from lowtide.status.operations import Operations, TenantLoad
from lowtide.status.overview import Overview, Totals, concerns
from tests.status.test_operations import NOW, reading

MINUTE = timedelta(minutes=1)
WAITING = TenantLoad(DEFAULT_TENANT, "a", Pool.SPOT, 4, 0, NOW - 10 * MINUTE)
CALM = replace(reading(workers=1, loads=(WAITING,)), ticked_at=NOW - timedelta(seconds=11))


def test_nothing_while_all_goes_well() -> None:
    assert concerns(None, None) == concerns(None, reading()) == concerns(None, CALM) == ()


@pytest.mark.parametrize(
    ("operations", "text", "path"),
    [
        pytest.param(
            replace(CALM, ticked_at=NOW - 7 * MINUTE),
            "No scheduler tick for 7 min",
            "/health",
            id="silent",
        ),
        pytest.param(
            replace(CALM, ticked_at=None), "The scheduler has not ticked yet", "/health", id="never"
        ),
        pytest.param(
            replace(CALM, events_waiting=1, oldest_event=NOW - 3 * MINUTE),
            "1 event is waiting for the broker",
            "/health",
            id="outbox",
        ),
        pytest.param(
            replace(CALM, workers={}),
            "Requests are queued in spot, but no worker is running",
            "/queues",
            id="no workers",
        ),
    ],
)
def test_what_does_not_mend_itself(operations: Operations, text: str, path: str) -> None:
    (found,) = concerns(None, operations)
    assert (found.text, found.path) == (text, path)


def test_nobody_wonders_why_a_paused_pool_has_no_workers() -> None:
    paused = replace(CALM, workers={}, pauses=(PoolPause(Pool.SPOT, NOW, "ana"),))
    assert concerns(None, paused) == ()


@pytest.mark.parametrize(("count", "text"), [(1, "1 batch is"), (2, "2 batches are")])
def test_batches_at_risk(count: int, text: str) -> None:
    overview = Overview(NOW, Totals(9, 9, count, 0, 0, 0), (), ())
    (found,) = concerns(overview, CALM)
    assert found.text == f"{text} at risk of missing the deadline"
