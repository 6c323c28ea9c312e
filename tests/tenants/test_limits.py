"""Limits of a tenant: the allowance of calls, and room for another batch."""

from __future__ import annotations

import pytest

from lowtide.core.errors import InvalidRequest, TooManyRequests
from lowtide.tenants.model import Allowance, BatchSize, BatchUse, TenantLimits, check_room


@pytest.mark.parametrize(
    ("per_minute", "used", "remaining", "reset"),
    [
        pytest.param(60, 1.0, 59, 1.0, id="one of sixty"),
        pytest.param(60, 60.0, 0, 60.0, id="all"),
        pytest.param(60, 59.5, 0, 59.5, id="half a request leaked away"),
        pytest.param(1, 1.0, 0, 60.0, id="one a minute"),
        pytest.param(7, 1.0, 6, 60 / 7, id="fractional seconds"),
        pytest.param(30, 60.0, 0, 120.0, id="limit halved meanwhile"),
    ],
)
def test_allowance_reports_remaining_and_reset(
    per_minute: int, used: float, remaining: int, reset: float
) -> None:
    allowance = Allowance(per_minute, used, accepted=True)
    assert allowance.remaining == remaining
    assert allowance.reset == pytest.approx(reset)
    allowance.check()


@pytest.mark.parametrize(
    ("per_minute", "used", "wait"),
    [(60, 60.0, 1.0), (60, 59.5, 0.5), (1, 0.5, 30.0), (30, 60.0, 62.0)],
)
def test_exceeded_allowance_reports_retry_after(per_minute: int, used: float, wait: float) -> None:
    with pytest.raises(TooManyRequests, match=f"{per_minute} requests per minute") as refused:
        Allowance(per_minute, used, accepted=False).check()
    assert refused.value.retry_after == pytest.approx(wait)
    assert (refused.value.code, refused.value.reason) == ("rate_limit_exceeded", "requests")


@pytest.mark.parametrize(
    ("limits", "use", "requests"),
    [
        pytest.param(TenantLimits(), BatchUse(10**6, 10**9), 10**6, id="no limits"),
        pytest.param(TenantLimits(active_batches=3), BatchUse(2, 10**9), 10**6, id="last batch"),
        pytest.param(TenantLimits(queued_lines=100), BatchUse(9, 60), 40, id="last requests"),
        pytest.param(
            TenantLimits(queued_lines=100), BatchUse(0, 0), 100, id="file fills the queue"
        ),
    ],
)
def test_batch_within_limits_is_accepted(
    limits: TenantLimits, use: BatchUse, requests: int
) -> None:
    check_room(limits, use, BatchSize(requests))


@pytest.mark.parametrize(
    ("limits", "use", "requests", "reason", "message"),
    [
        pytest.param(
            TenantLimits(active_batches=3),
            BatchUse(3, 0),
            1,
            "active_batches",
            "3 batches are active; the limit is 3",
            id="batches",
        ),
        pytest.param(
            TenantLimits(active_batches=2),
            BatchUse(5, 0),
            1,
            "active_batches",
            "5 batches are active; the limit is 2",
            id="limit lowered meanwhile",
        ),
        pytest.param(
            TenantLimits(active_batches=3, queued_lines=100),
            BatchUse(1, 61),
            40,
            "queued_lines",
            "61 requests are queued and the file has 40; the limit is 100",
            id="requests",
        ),
    ],
)
def test_batch_over_limits_is_refused(
    limits: TenantLimits, use: BatchUse, requests: int, reason: str, message: str
) -> None:
    with pytest.raises(TooManyRequests, match=message) as refused:
        check_room(limits, use, BatchSize(requests))
    assert refused.value.reason == reason
    assert 1 <= refused.value.retry_after <= 60


def test_file_over_queue_limit_is_invalid_request() -> None:
    with pytest.raises(InvalidRequest, match="split the file") as refused:
        check_room(TenantLimits(queued_lines=100), BatchUse(0, 0), BatchSize(101))
    assert (refused.value.param, refused.value.code) == ("input_file_id", "too_many_lines")
