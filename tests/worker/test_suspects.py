"""Requests that are blamed for a proxy's 502."""

from __future__ import annotations

from uuid import UUID

from lowtide.core.ids import BatchId
from lowtide.worker.engine_state import BLAMED, Suspects

ONE, OTHER = (BatchId(UUID(int=1)), 1), (BatchId(UUID(int=1)), 2)


def test_faults_between_successes_of_others_blame_request() -> None:
    suspects = Suspects()
    verdicts = [suspects.blames(ONE, float(n), n - 0.5) for n in range(BLAMED + 1)]
    assert verdicts == [False] * (BLAMED - 1) + [True, True]
    assert not suspects.blames(OTHER, 99.0, 98.0)


def test_engine_without_successes_blames_no_request() -> None:
    suspects = Suspects()
    assert not any(suspects.blames(ONE, float(n), 0.0) for n in range(1, 100))
