"""Rows of the table of batches."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from lowtide.batches.model import Batch, BatchStatus, Outcomes
from lowtide.core.ids import DEFAULT_TENANT, BatchId, FileId
from lowtide.core.pools import Prices
from portal.components.batch_table import row_of
from portal.theme import Tone

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
RUNNING = Batch(
    id=BatchId(UUID(int=1)),
    tenant=DEFAULT_TENANT,
    user="ana",
    input_file=FileId(UUID(int=2)),
    input_key="input",
    endpoint="/v1/embeddings",
    model=None,
    completion_window="24h",
    status=BatchStatus.IN_PROGRESS,
    created_at=NOW - HOUR,
    deadline=NOW + 23 * HOUR,
    in_progress_at=NOW,
    finalizing_at=None,
    completed_at=None,
    failed_at=None,
    expired_at=None,
    cancelling_at=None,
    cancelled_at=None,
    at_risk=False,
    total=2000,
    outcomes=Outcomes(queued=1000, completed=990, failed=10),
    prices=Prices(1.0, 3.0, "USD"),
    output_file=None,
    error_file=None,
    errors=(),
    metadata=None,
    input_tokens=0,
    output_tokens=0,
    interruptions=1200,
    retries=0,
    escalations=0,
    finished_on_dedicated=0,
)
DONE = replace(
    RUNNING,
    status=BatchStatus.COMPLETED,
    completed_at=NOW,
    outcomes=Outcomes(completed=2000, failed=0),
)


def test_row_of_running_batch_shows_progress() -> None:
    row = row_of(RUNNING, NOW)
    assert (row["done"], row["failures"], row["percent"]) == ("1,000 / 2,000", "10 failed", 50)
    assert (row["completed_width"], row["failed_width"]) == ("49.50%", "0.50%")
    assert (row["created"], row["due"]) == ("1 h ago", "23 h left")
    assert row["notes"] == "1,200 interrupted"
    assert row["model"] == "/v1/embeddings", "the endpoint stands in for an unknown model"


@pytest.mark.parametrize(
    ("batch", "status", "exact", "sla", "due"),
    [
        pytest.param(
            replace(RUNNING, at_risk=True, deadline=NOW - HOUR),
            ("In progress", Tone.INFO),
            "in progress",
            ("At risk", Tone.WARN),
            "1 h late",
            id="late and running",
        ),
        pytest.param(
            DONE,
            ("Completed", Tone.GOOD),
            "completed",
            ("Met", Tone.GOOD),
            "23 h to spare",
            id="met",
        ),
        pytest.param(
            replace(DONE, outcomes=Outcomes(completed=0, failed=2000)),
            ("Completed", Tone.GOOD),
            "completed, all failed",
            ("Met", Tone.GOOD),
            "23 h to spare",
            id="all failed",
        ),
        pytest.param(
            replace(DONE, deadline=NOW - 2 * HOUR),
            ("Completed", Tone.GOOD),
            "completed",
            ("Missed", Tone.BAD),
            "2 h late",
            id="missed",
        ),
        pytest.param(
            replace(RUNNING, status=BatchStatus.EXPIRED, expired_at=NOW),
            ("Expired", Tone.BAD),
            "expired",
            ("Missed", Tone.BAD),
            "deadline missed",
            id="expired",
        ),
        pytest.param(
            replace(RUNNING, status=BatchStatus.CANCELLED, cancelled_at=NOW),
            ("Cancelled", Tone.NEUTRAL),
            "cancelled",
            ("Not applicable", Tone.NEUTRAL),
            "",
            id="cancelled",
        ),
    ],
)
def test_row_shows_status_sla_and_deadline(
    batch: Batch, status: tuple[str, Tone], exact: str, sla: tuple[str, Tone], due: str
) -> None:
    row: Any = row_of(batch, NOW)
    assert (row["status"]["text"], row["status"]["tone"]) == status
    assert (row["sla"]["text"], row["sla"]["tone"]) == sla
    assert (row["exact"], row["due"]) == (exact, due)


def test_row_of_unsplit_batch_has_no_progress() -> None:
    row = row_of(
        replace(
            RUNNING,
            status=BatchStatus.VALIDATING,
            total=0,
            outcomes=Outcomes(completed=0, failed=0),
        ),
        NOW,
    )
    assert (row["done"], row["share"], row["percent"]) == ("not counted yet", "", 0)
