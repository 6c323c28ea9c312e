"""What a tenant may use: the bucket's figures, and room for one more batch."""

from __future__ import annotations

import pytest

from lowtide.core.errors import InvalidRequest, TooManyRequests
from lowtide.tenants.model import Allowance, BatchUse, TenantLimits, check_room


@pytest.mark.parametrize(
    ("per_minute", "used", "remaining", "reset"),
    [
        pytest.param(60, 1.0, 59, 1.0, id="one of sixty"),
        pytest.param(60, 60.0, 0, 60.0, id="all"),
        pytest.param(60, 59.5, 0, 59.5, id="half a request leaked away"),
        pytest.param(1, 1.0, 0, 60.0, id="one a minute"),
        pytest.param(7, 1.0, 6, 60 / 7, id="no whole seconds"),
        pytest.param(30, 60.0, 0, 120.0, id="the limit was halved meanwhile"),
    ],
)
def test_an_allowance(per_minute: int, used: float, remaining: int, reset: float) -> None:
    allowance = Allowance(per_minute, used, accepted=True)
    assert allowance.remaining == remaining
    assert allowance.reset == pytest.approx(reset)
    allowance.check()


@pytest.mark.parametrize(
    ("per_minute", "used", "wait"),
    [(60, 60.0, 1.0), (60, 59.5, 0.5), (1, 0.5, 30.0), (30, 60.0, 62.0)],
)
def test_a_refusal_says_when(per_minute: int, used: float, wait: float) -> None:
    with pytest.raises(TooManyRequests, match=f"{per_minute} requests per minute") as refused:
        Allowance(per_minute, used, accepted=False).check()
    assert refused.value.retry_after == pytest.approx(wait)
    assert (refused.value.code, refused.value.reason) == ("rate_limit_exceeded", "requests")


@pytest.mark.parametrize(
    ("limits", "use", "lines"),
    [
        pytest.param(TenantLimits(), BatchUse(10**6, 10**9), 10**6, id="no limits"),
        pytest.param(TenantLimits(active_batches=3), BatchUse(2, 10**9), 10**6, id="last batch"),
        pytest.param(TenantLimits(queued_lines=100), BatchUse(9, 60), 40, id="last lines"),
        pytest.param(TenantLimits(queued_lines=100), BatchUse(0, 0), 100, id="a file that fills"),
    ],
)
def test_there_is_room(limits: TenantLimits, use: BatchUse, lines: int) -> None:
    check_room(limits, use, lines)


@pytest.mark.parametrize(
    ("limits", "use", "lines", "reason", "figures"),
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
            id="the limit was lowered meanwhile",
        ),
        pytest.param(
            TenantLimits(active_batches=3, queued_lines=100),
            BatchUse(1, 61),
            40,
            "queued_lines",
            "61 requests are queued and the file has 40; the limit is 100",
            id="lines",
        ),
    ],
)
def test_there_is_no_room(
    limits: TenantLimits, use: BatchUse, lines: int, reason: str, figures: str
) -> None:
    with pytest.raises(TooManyRequests, match=figures) as refused:
        check_room(limits, use, lines)
    assert refused.value.reason == reason
    assert 1 <= refused.value.retry_after <= 60


def test_a_file_that_could_never_be_queued_is_not_worth_a_retry() -> None:
    with pytest.raises(InvalidRequest, match="split the file") as refused:
        check_room(TenantLimits(queued_lines=100), BatchUse(0, 0), 101)
    assert (refused.value.param, refused.value.code) == ("input_file_id", "too_many_lines")
