"""Rows of the table of batches."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from lowtide.batches.model import Batch, BatchStatus, Outcomes
from lowtide.batches.views import BatchOrder
from lowtide.core.ids import DEFAULT_TENANT, BatchId, FileId
from lowtide.core.pools import Cost
from portal.components.batch_table import columns_of, following, row_of
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
    cost=Cost("USD", 0.0, 0.0, 0.0),
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
    row = row_of(replace(RUNNING, eta=NOW + timedelta(minutes=12, seconds=5)), NOW, "globex")
    assert (row["done"], row["rest"], row["percent"]) == ("1,000 / 2,000", "10 failed", 50)
    assert row["parts"] == [
        {"tone": Tone.GOOD, "width": "49.50%"},
        {"tone": Tone.BAD, "width": "0.50%"},
    ]
    assert row["outcomes"] == "1,000 queued, 990 completed, 10 failed"
    assert (row["tenant"], row["age"], row["due"]) == ("globex", "1 h", "23 h left")
    assert (row["time"], row["time_at"]) == (
        "in 12 min",
        "Expected to finish at 2 Jan 2026, 12:12:05",
    )
    assert row["model"] == "/v1/embeddings", "the endpoint stands in for an unknown model"


@pytest.mark.parametrize(
    ("batch", "status", "sla", "due"),
    [
        pytest.param(
            replace(RUNNING, at_risk=True, deadline=NOW - HOUR),
            ("In progress", Tone.INFO),
            ("At risk", Tone.WARN),
            "1 h late",
            id="late and running",
        ),
        pytest.param(
            DONE,
            ("Completed", Tone.GOOD),
            ("Met", Tone.GOOD),
            "23 h to spare",
            id="met",
        ),
        pytest.param(
            replace(DONE, outcomes=Outcomes(completed=0, failed=2000)),
            ("Completed", Tone.GOOD),
            ("Met", Tone.GOOD),
            "23 h to spare",
            id="all failed",
        ),
        pytest.param(
            replace(DONE, deadline=NOW - 2 * HOUR),
            ("Completed", Tone.GOOD),
            ("Missed", Tone.BAD),
            "2 h late",
            id="missed",
        ),
        pytest.param(
            replace(RUNNING, status=BatchStatus.EXPIRED, expired_at=NOW),
            ("Expired", Tone.BAD),
            ("Missed", Tone.BAD),
            "deadline missed",
            id="expired",
        ),
        pytest.param(
            replace(RUNNING, status=BatchStatus.CANCELLED, cancelled_at=NOW),
            ("Cancelled", Tone.NEUTRAL),
            ("Not applicable", Tone.NEUTRAL),
            "",
            id="cancelled",
        ),
    ],
)
def test_row_shows_status_sla_and_deadline(
    batch: Batch, status: tuple[str, Tone], sla: tuple[str, Tone], due: str
) -> None:
    row: Any = row_of(batch, NOW, "")
    assert (row["status"]["text"], row["status"]["tone"]) == status
    assert (row["sla"]["text"], row["sla"]["tone"]) == sla
    assert row["due_at"].partition(" UTC")[2].removeprefix(", ") == due


def test_row_of_active_batch_shows_its_priority() -> None:
    assert row_of(RUNNING, NOW, "")["due"] == "23 h left"
    assert row_of(replace(RUNNING, priority=5), NOW, "")["due"] == "23 h left, priority +5"
    assert row_of(replace(DONE, priority=5), NOW, "")["due"] == ""


def test_row_of_unsplit_batch_has_no_progress() -> None:
    row = row_of(
        replace(
            RUNNING,
            status=BatchStatus.VALIDATING,
            total=0,
            outcomes=Outcomes(completed=0, failed=0),
        ),
        NOW,
        "",
    )
    assert (row["done"], row["rest"], row["percent"]) == ("not counted yet", "", 0)
    assert (row["time"], row["cost"]) == ("—", "—")


def test_dropped_requests_are_not_done() -> None:
    outcomes = Outcomes(completed=500, expired=1400, cancelled=0, failed=100, dead_lettered=60)
    batch = replace(RUNNING, status=BatchStatus.EXPIRED, expired_at=NOW, outcomes=outcomes)
    row = row_of(batch, NOW, "")
    assert (row["done"], row["rest"]) == ("600 / 2,000", "100 failed, 1,400 expired")
    assert [part["tone"] for part in row["parts"]] == [Tone.GOOD, Tone.BAD, Tone.WARN]


def test_ended_batch_shows_duration_and_cost() -> None:
    row = row_of(replace(DONE, cost=Cost("USD", 2.0, 0.0, 6.0)), NOW + HOUR, "")
    assert (row["time"], row["cost"]) == ("1 h", "2.00 USD")
    assert row["time_at"] == "Ended 2 Jan 2026, 12:00:00 · 2 Jan 2026, 12:00:00 UTC"


@pytest.mark.parametrize(
    ("order", "column", "expected"),
    [
        (BatchOrder.NEWEST, "age", BatchOrder.OLDEST),
        (BatchOrder.OLDEST, "age", BatchOrder.NEWEST),
        (BatchOrder.NEWEST, "sla", BatchOrder.DEADLINE),
        (BatchOrder.DEADLINE, "sla", BatchOrder.NEWEST),
        (BatchOrder.DEADLINE, "status", BatchOrder.ACTIVE),
        (BatchOrder.ACTIVE, "nonsense", BatchOrder.NEWEST),
    ],
)
def test_headings_choose_orders_in_turn(
    order: BatchOrder, column: str, expected: BatchOrder
) -> None:
    assert following(order, column) is expected


def test_only_sorted_column_states_direction() -> None:
    columns = columns_of(["user", "sla", "age"], BatchOrder.DEADLINE)
    assert [column["sorted"] for column in columns] == ["", "ascending", ""]
