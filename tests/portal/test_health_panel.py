"""What a probe's result is called."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from lowtide.core.pools import Depth
from lowtide.status.watch import Reachability
from portal.components.health_panel import judge, judge_workers
from tests.status.test_watch import load, snapshot

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        pytest.param(None, "Not checked yet", id="never"),
        pytest.param(Reachability(NOW, 0.1), "Reachable", id="good"),
        pytest.param(Reachability(NOW, 0.1, "down"), "Unreachable", id="bad"),
        pytest.param(Reachability(NOW - timedelta(minutes=1), 0.1), "Stale", id="good but old"),
    ],
)
def test_probes(found: Reachability | None, text: str) -> None:
    assert judge(found, NOW)["text"] == text


@pytest.mark.parametrize(
    ("queued", "workers", "text"),
    [(0, 0, "Scaled to zero"), (5, 0, "No workers yet"), (5, 1, "1 worker"), (0, 2, "2 workers")],
)
def test_workers(queued: int, workers: int, text: str) -> None:
    found = snapshot(workers=workers, tenants=(load(spot=Depth(queued, 0)),))
    assert judge_workers(found)["text"] == text
