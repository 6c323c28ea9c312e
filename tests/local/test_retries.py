from __future__ import annotations

import pytest

from lowtide.local.dispatcher import is_retried, retry_policy
from lowtide.local.manifests import Delivery


@pytest.mark.parametrize(
    ("kind", "waits"),
    [("exponential", [0.5, 1, 2, None]), ("linear", [0, 0.5, 1, None])],
)
def test_waits_follow_backoff_policy(kind: str, waits: list[float | None]) -> None:
    policy = retry_policy(Delivery(retry=3, backoff_policy=kind, backoff_delay="PT0.5S"))
    assert [policy.wait(attempt) for attempt in range(4)] == waits


@pytest.mark.parametrize(
    ("status", "retried"),
    [
        (None, True),
        (500, True),
        (503, True),
        (404, True),
        (408, True),
        (409, True),
        (429, True),
        (400, False),
        (401, False),
        (413, False),
        (302, False),
    ],
)
def test_status_decides_about_retry(status: int | None, retried: bool) -> None:
    assert is_retried(status) is retried
