"""Readers of a batch whose data has ended, while its rows are still there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from lowtide.batches.answers import AnswerReader
from lowtide.batches.api import batch_object
from lowtide.batches.detail_store import BatchDetailStore
from lowtide.batches.forecast import Forecaster, WorkloadStore
from lowtide.batches.request_store import RequestStore
from lowtide.batches.results import ResultCursor
from lowtide.batches.service import Requests
from lowtide.core.errors import NotFound
from lowtide.core.ids import DEFAULT_TENANT, new_id
from lowtide.core.pools import DEFAULT_FLEET
from lowtide.dead_letters.model import LetterFilter, LetterId
from lowtide.dead_letters.requeue_store import RequeueStore
from lowtide.dead_letters.store import DeadLetterStore
from lowtide.explain.store import FactStore
from lowtide.objects.joined import JoinedObjects
from lowtide.objects.store import ObstoreObjects
from lowtide.reruns.store import RerunStore
from lowtide.search.model import Kind, parse_query
from lowtide.search.store import SearchStore
from lowtide.status.snapshot_store import SnapshotStore
from tests.batches.test_forecasts import FLEET
from tests.retention.days import DAY, KEPT, ended, retention, rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.core.ids import BatchId
    from tests.worlds import World

NO_FILTER = LetterFilter()
READERS: dict[str, Callable[[World, BatchId], Any]] = {
    "requests": lambda world, batch: _requests(world).page(DEFAULT_TENANT, batch, after=0, limit=9),
    "results": lambda world, batch: _requests(world).results(
        DEFAULT_TENANT, batch, ResultCursor(), 9, actor="a"
    ),
    "request drawer": lambda world, batch: BatchDetailStore(world.api).line(
        DEFAULT_TENANT, batch, 1
    ),
    "explanation": lambda world, batch: FactStore(world.api, {DEFAULT_FLEET: FLEET}).read(
        DEFAULT_TENANT, batch
    ),
    "rerun": lambda world, batch: RerunStore(world.api).count(DEFAULT_TENANT, batch),
    "dead letter": lambda world, batch: DeadLetterStore(world.api).get(
        DEFAULT_TENANT, LetterId(batch, 3)
    ),
    "requeue": lambda world, batch: RequeueStore(world.api).named(
        DEFAULT_TENANT, [LetterId(batch, 3)]
    ),
}


def _requests(world: World) -> Requests:
    reader = AnswerReader(JoinedObjects(ObstoreObjects("memory:///")))
    return Requests(world.batches, RequestStore(world.api), reader)


def _ended(world: World, lines: int = 3) -> BatchId:
    batch = ended(world, KEPT / DAY + 1, lines=lines)
    retention(world).end_data()
    assert rows(world, batch)["requests"] == lines
    return batch


def _add_files(world: World, batch: BatchId) -> None:
    output, error = new_id(), new_id()
    for file in (output, error):
        world.run(
            "INSERT INTO files (id, tenant_id, purpose, filename, bytes, lines, object_key, status, "
            "created_at) VALUES (:file, :tenant, 'batch_output', 'f', 1, 1, 'k', 'processed', now())",
            file=file,
            tenant=DEFAULT_TENANT,
        )
    world.run(
        "UPDATE batches SET output_file_id = :output, error_file_id = :error WHERE id = :batch",
        output=output,
        error=error,
        batch=batch,
    )


@pytest.mark.parametrize("reader", READERS)
def test_reader_is_told_when_and_why(world: World, reader: str) -> None:
    batch = ended(world, KEPT / DAY + 1)
    _add_files(world, batch)
    READERS[reader](world, batch)
    retention(world).end_data()
    with pytest.raises(
        NotFound, match=f"{datetime.now(UTC):%Y-%m-%d}.*retention|retention.*UTC"
    ) as told:
        READERS[reader](world, batch)
    assert told.value.code == "data_ended"


def test_lists_leave_out_what_has_ended(world: World) -> None:
    batch, other = _ended(world, lines=12), ended(world, 1, lines=12)
    letters = DeadLetterStore(world.api).page(DEFAULT_TENANT, NO_FILTER, after=None, limit=9)
    assert [letter.batch for letter in letters] == [other]
    found = RequeueStore(world.api).matching(DEFAULT_TENANT, NO_FILTER, limit=9)
    assert [place.batch for place in found.open] == [other]
    for text in ("11", f"batch_req_{batch.hex}", f"batch_req_{other.hex}"):
        matches = SearchStore(world.api).find(DEFAULT_TENANT, parse_query(text), limit=9)
        requests = [
            match.batch.id for match in matches if match.kind is Kind.REQUEST and match.batch
        ]
        assert set(requests) == (set() if batch.hex in text else {other})
    assert SnapshotStore(world.database.engine("operator")).read(for_metrics=False).letters == 1
    assert BatchDetailStore(world.api).lines(DEFAULT_TENANT, batch, None, after=0, limit=9) == []


def test_batch_itself_is_readable_and_says_when(world: World) -> None:
    batch, other = _ended(world), ended(world, 1)
    forecaster = Forecaster(WorkloadStore(world.api), {DEFAULT_FLEET: FLEET}, data_kept=KEPT)
    details = BatchDetailStore(world.api).details(DEFAULT_TENANT, batch)
    assert (details.notes, details.errors) == ((), ())
    gone = forecaster.with_eta(details.batch)
    assert (gone.completed, gone.failed, gone.input_tokens) == (2, 1, 9)
    assert gone.data_ends_at == gone.data_ended_at
    kept = forecaster.with_eta(world.batches.get(DEFAULT_TENANT, other))
    assert kept.ended_at is not None
    assert kept.data_ends_at == kept.ended_at + timedelta(seconds=KEPT)
    shown = batch_object(kept).x_lowtide.data_ends_at
    assert shown == int(kept.data_ends_at.timestamp())
    active = forecaster.with_eta(world.batches.get(DEFAULT_TENANT, world.batch(1)))
    assert active.data_ends_at is None
