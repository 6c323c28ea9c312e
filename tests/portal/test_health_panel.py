"""Labels of probe results and workers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from lowtide.core.pools import Depth
from lowtide.status.watch import Reachability
from portal.components.health_panel import judge, judge_workers
from tests.status.test_watch import load, snapshot

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("result", "text"),
    [
        pytest.param(None, "Not checked yet", id="never"),
        pytest.param(Reachability(NOW, 0.1), "Reachable", id="good"),
        pytest.param(Reachability(NOW, 0.1, "down"), "Unreachable", id="bad"),
        pytest.param(Reachability(NOW - timedelta(minutes=1), 0.1), "Stale", id="stale"),
    ],
)
def test_probe_result_has_label(result: Reachability | None, text: str) -> None:
    assert judge(result, NOW)["text"] == text


@pytest.mark.parametrize(
    ("queued", "workers", "text"),
    [(0, 0, "Scaled to zero"), (5, 0, "No workers yet"), (5, 1, "1 worker"), (0, 2, "2 workers")],
)
def test_worker_count_has_label(queued: int, workers: int, text: str) -> None:
    health = snapshot(workers=workers, tenants=(load(spot=Depth(queued, 0)),))
    assert judge_workers(health)["text"] == text
