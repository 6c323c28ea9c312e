"""The SLA state of a batch."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from lowtide.batches.model import Batch, BatchStatus, Outcomes, SlaState
from lowtide.core.ids import DEFAULT_TENANT, BatchId, FileId
from lowtide.core.pools import Cost

DEADLINE = datetime(2026, 1, 2, tzinfo=UTC)
EARLY, LATE = DEADLINE - timedelta(seconds=1), DEADLINE + timedelta(seconds=1)


def example(
    status: BatchStatus, *, at_risk: bool = False, ended_at: datetime | None = None
) -> Batch:
    """Return a batch with the deadline DEADLINE."""
    names = ("completed", "failed", "expired", "cancelled")
    ends = {name: ended_at if name == status else None for name in names}
    return Batch(
        id=BatchId(uuid.UUID(int=1)), tenant=DEFAULT_TENANT, user="u",
        input_file=FileId(uuid.UUID(int=2)), input_key="k", endpoint="/v1/embeddings", model=None,
        completion_window="24h", status=status, created_at=EARLY - timedelta(days=1),
        deadline=DEADLINE, in_progress_at=None, finalizing_at=None,
        completed_at=ends["completed"], failed_at=ends["failed"], expired_at=ends["expired"],
        cancelling_at=None, cancelled_at=ends["cancelled"], at_risk=at_risk, total=0,
        outcomes=Outcomes(), cost=Cost("USD", 0.0, 0.0, 0.0), output_file=None, error_file=None, errors=(), metadata=None, input_tokens=0,
        output_tokens=0, interruptions=0, retries=0, escalations=0, finished_on_dedicated=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "state"),
    [
        *(
            pytest.param(example(status, at_risk=risk), state, id=f"{status} {state}")
            for status in (
                BatchStatus.VALIDATING,
                BatchStatus.IN_PROGRESS,
                BatchStatus.FINALIZING,
            )
            for risk, state in ((False, SlaState.ON_TRACK), (True, SlaState.AT_RISK))
        ),
        *(
            pytest.param(
                example(BatchStatus.COMPLETED, ended_at=ended_at), state, id=f"{ended_at} {state}"
            )
            for ended_at, state in (
                (EARLY, SlaState.MET),
                (DEADLINE, SlaState.MET),
                (LATE, SlaState.MISSED),
            )
        ),
        *(
            pytest.param(
                example(status, at_risk=risk, ended_at=ended_at),
                SlaState.NOT_APPLICABLE,
                id=f"{status} {risk} {ended_at}",
            )
            for status, ended_at in (
                (BatchStatus.CANCELLING, None),
                (BatchStatus.CANCELLED, EARLY),
                (BatchStatus.CANCELLED, LATE),
                (BatchStatus.FAILED, EARLY),
                (BatchStatus.FAILED, LATE),
            )
            for risk in (False, True)
        ),
        pytest.param(example(BatchStatus.EXPIRED, ended_at=EARLY), SlaState.MISSED, id="expired"),
        pytest.param(
            replace(example(BatchStatus.IN_PROGRESS), expiring=True),
            SlaState.MISSED,
            id="expiring",
        ),
        pytest.param(
            example(BatchStatus.COMPLETED, at_risk=True, ended_at=EARLY),
            SlaState.MET,
            id="was at risk",
        ),
    ],
)
def test_sla_state_follows_status_and_deadline(batch: Batch, state: SlaState) -> None:
    assert batch.sla_state is state
