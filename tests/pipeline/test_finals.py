"""Drained batches: reading their results, and closing them once."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import pytest

from lowtide.batches.model import BatchStatus
from lowtide.batches.results import FinishedLine
from lowtide.core.ids import DEFAULT_TENANT, derived_file_id, new_id
from lowtide.core.pools import Pool
from lowtide.events.model import EventType, batch_event
from lowtide.files.model import FileStatus, Purpose, StoredFile, object_key
from tests.worlds import World, done, together

if TYPE_CHECKING:
    from lowtide.core.ids import BatchId
    from lowtide.pipeline.final_store import FinalJob


def _finish(world: World, batch: BatchId, requests: int) -> None:
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = [each for each in world.queue.claim(lease, Pool.SPOT, requests) if each.batch == batch]
    world.queue.settle(lease, [done(claim, succeeded=claim.line % 2 == 1) for claim in claims], [])


def _job(world: World, batch: BatchId) -> FinalJob:
    job = world.finals.job(batch)
    assert job is not None
    return job


def _file(batch: BatchId, role: str) -> StoredFile:
    id_ = derived_file_id(batch, role)
    return StoredFile(
        id_, DEFAULT_TENANT, Purpose.BATCH_OUTPUT, f"{role}.jsonl", 5, 1, b"h", object_key(id_),
        FileStatus.PROCESSED, None, datetime.now(UTC),
    )  # fmt: skip


def _close(world: World, job: FinalJob) -> bool:
    return world.finals.close(
        job,
        completed=2,
        failed=1,
        output=_file(job.batch, "output"),
        error=None,
        event=batch_event(new_id(), EventType.BATCH_COMPLETED, job.tenant, job.batch),
    )


@pytest.mark.parametrize(
    ("path", "ending", "stamp"),
    [
        ("finished", BatchStatus.COMPLETED, "completed_at"),
        ("cancelled", BatchStatus.CANCELLED, "cancelled_at"),
        ("expired", BatchStatus.EXPIRED, "expired_at"),
    ],
)
def test_drained_batch_is_closed_once(
    world: World, path: str, ending: BatchStatus, stamp: str
) -> None:
    batch = world.batch(3, due_in=-1 if path == "expired" else 60)
    assert world.finals.job(batch) is None
    if path == "finished":
        _finish(world, batch, 3)
    elif path == "cancelled":
        world.cancel(batch)
    else:
        world.sweep()
    world.run("UPDATE batches SET at_risk = true")
    job = _job(world, batch)
    assert (job.tenant, job.final_status) == (DEFAULT_TENANT, ending)
    assert job.drained_at == world.row(batch).drained_at
    assert _close(world, job) is True
    row = world.row(batch)
    assert (row.status, row.at_risk, row.completed, row.failed) == (ending.value, False, 2, 1)
    assert (row.output_file_id, row.error_file_id) == (derived_file_id(batch, "output"), None)
    stamps = {name: getattr(row, name) for name in ("completed_at", "cancelled_at", "expired_at")}
    assert [name for name, value in stamps.items() if value is not None] == [stamp]
    before = world.contents()
    assert _close(world, job) is False
    assert world.finals.job(batch) is None
    assert world.contents() == before


def test_concurrent_closes_succeed_once(world: World) -> None:
    for _ in range(5):
        batch = world.batch(1)
        _finish(world, batch, 1)
        job = _job(world, batch)
        assert sorted(together(*[partial(_close, world, job)] * 3)) == [False, False, True]
        assert world.events(batch)[EventType.BATCH_COMPLETED.value] == 1


def test_batch_cancelled_before_close_is_not_completed(world: World) -> None:
    batch = world.batch(1)
    _finish(world, batch, 1)
    job = _job(world, batch)
    world.cancel(batch)
    assert _close(world, job) is False
    assert world.rows("SELECT 1 FROM files WHERE purpose = 'batch_output'") == []
    again = _job(world, batch)
    assert again.final_status is BatchStatus.CANCELLED
    assert _close(world, again) is True
    assert world.row(batch).status == "cancelled"


@pytest.mark.parametrize("requests", [1, 1999, 2000, 2001, 4000])
def test_results_are_in_input_order_across_pages(world: World, requests: int) -> None:
    batch, other = world.batch(requests), world.batch(5)
    world.run(
        "INSERT INTO results SELECT batch_id, tenant_id, batch_id, now(), now(), line, 1, 1, 200, 1,"
        " 0, true, false, false, 'spot', 'r', line::text FROM queue WHERE batch_id = :b AND mod(line, 3) = 0",
        b=batch,
    )
    world.cancel(batch)
    world.cancel(other)
    job = _job(world, batch)
    results = list(world.finals.lines(job, ("cancelled", "It was cancelled.")))
    assert results == [
        FinishedLine(n, str(n), 200, "r", str(n))
        if n % 3 == 0
        else FinishedLine(n, str(n), error_code="cancelled", error_message="It was cancelled.")
        for n in range(1, requests + 1)
    ]


def test_batch_cancelled_before_split_has_no_results(world: World) -> None:
    batch = world.new_batch()
    assert world.cancel(batch) is True
    assert list(world.finals.lines(_job(world, batch), ("c", "m"))) == []
