"""Concerns: the conditions that need an operator."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from lowtide.core.pools import Depth, Pool, PoolPause
from lowtide.status.concerns import concerns
from lowtide.status.snapshot import MAX_COUNTED, Backlog, SystemSnapshot, Totals
from tests.status.test_watch import NOW, load, snapshot

MINUTE = timedelta(minutes=1)
WAITING = load(spot=Depth(4, 0), waits=10 * MINUTE)
CALM = replace(snapshot(workers=1, tenants=(WAITING,)), ticked_at=NOW - timedelta(seconds=11))


def test_healthy_installation_has_no_concerns() -> None:
    assert concerns(snapshot()) == concerns(CALM) == ()


@pytest.mark.parametrize(
    ("snapshot", "text", "path"),
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
            replace(CALM, events=Backlog(1, NOW - 3 * MINUTE)),
            "1 event is waiting for the broker",
            "/health",
            id="outbox",
        ),
        pytest.param(
            replace(CALM, events=Backlog(MAX_COUNTED, NOW - 3 * MINUTE)),
            "10,000+ events are waiting for the broker",
            "/health",
            id="more than the max count",
        ),
        pytest.param(
            replace(CALM, live_workers={}),
            "Requests are queued in spot, but no worker is running",
            "/queues",
            id="no workers",
        ),
        pytest.param(
            replace(CALM, totals=Totals(at_risk=1)),
            "1 batch is at risk of missing the deadline",
            "/batches",
            id="one at risk",
        ),
        pytest.param(
            replace(CALM, totals=Totals(at_risk=2)),
            "2 batches are at risk of missing the deadline",
            "/batches",
            id="two at risk",
        ),
    ],
)
def test_condition_raises_concern(snapshot: SystemSnapshot, text: str, path: str) -> None:
    (concern,) = concerns(snapshot)
    assert (concern.text, concern.path) == (text, path)


def test_paused_pool_without_workers_raises_no_concern() -> None:
    paused = replace(CALM, live_workers={}, pauses=(PoolPause(Pool.SPOT, NOW, "ana"),))
    assert concerns(paused) == ()
