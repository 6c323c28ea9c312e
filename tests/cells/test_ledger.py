"""The ledger of a cell: records of unfinished batches, fences at every end, and what a tick repairs."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import obstore
import pytest
from sqlalchemy import text

from lowtide.batches.ledger import Fence, Ledger
from lowtide.batches.model import BatchStatus
from lowtide.core.errors import IdempotencyKeyReused, NotFound, Unavailable
from lowtide.core.ids import DEFAULT_TENANT, BatchId, new_id
from lowtide.dead_letters.model import LetterFilter
from lowtide.dead_letters.requeue import RequeueRequest
from lowtide.files.lines import Problem
from lowtide.objects.store import ObstoreObjects
from lowtide.reruns.service import RerunRequest
from tests.cells.hosts import Host
from tests.worlds import together

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def ledger_of(host: Host, cell: int | None = None) -> Ledger:
    """Return the ledger in a cell's bucket, as another cell uses it if `cell` is given."""
    number = cell or host.number
    assert number is not None
    return Ledger(ObstoreObjects(host.bucket), number)


def recorded(host: Host) -> set[BatchId]:
    return {each.batch for each in ledger_of(host).records()}


def _completed(host: Host) -> BatchId:
    batch = host.create()
    host.finish()
    return batch


def _cancelled(host: Host) -> BatchId:
    batch = host.create()
    host.split(batch)
    host.cancel(batch)
    host.finalize(batch)
    return batch


def _expired(host: Host) -> BatchId:
    batch = host.create()
    host.split(batch)
    with host.app("worker").database.begin() as connection:
        connection.execute(text("UPDATE batches SET deadline = now() - interval '1 s'"))
    host.app("worker").scheduler.tick()
    host.finalize(batch)
    return batch


def _rejected(host: Host) -> BatchId:
    batch = host.create(source=b"{}\n", endpoint="/v1/chat/completions")
    host.split(batch)
    return batch


ENDS: dict[BatchStatus, Callable[[Host], BatchId]] = {
    BatchStatus.COMPLETED: _completed,
    BatchStatus.CANCELLED: _cancelled,
    BatchStatus.EXPIRED: _expired,
    BatchStatus.FAILED: _rejected,
}


@pytest.mark.parametrize("status", ENDS, ids=str)
def test_every_end_is_fenced_and_removes_the_record(hosts: list[Host], status: BatchStatus) -> None:
    host, *_ = hosts
    batch = ENDS[status](host)
    record = host.get(batch)
    assert record is not None
    assert record.status is status
    assert ledger_of(host).fence(batch) == Fence(1)
    assert recorded(host) == set()


@pytest.mark.parametrize("status", ENDS, ids=str)
def test_batch_that_another_cell_ends_does_not_end(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch, status: BatchStatus
) -> None:
    host, *_ = hosts
    claims = []
    claim = Ledger.claim

    def overtaken(ledger: Ledger, batch: BatchId) -> Fence:
        claims.append(
            ledger_of(host, 2)._objects.create(f"cells/ended/batch_{batch.hex}.json", b'{"cell":2}')
        )
        return claim(ledger, batch)

    monkeypatch.setattr(Ledger, "claim", overtaken)
    batch = ENDS[status](host)
    assert claims == [True]
    record = host.get(batch)
    assert record is not None
    assert record.ended_at is None
    assert (record.output_file, record.error_file) == (None, None)
    assert recorded(host) == {batch}


def test_import_that_fails_is_fenced(hosts: list[Host]) -> None:
    host, *_ = hosts
    batch = host.create()
    with host.app("worker").database.begin() as connection:
        connection.execute(text("UPDATE batches SET input_url = 's3://bucket/in.jsonl'"))
    ledger_of(host, 2).claim(batch)
    imports = host.app("worker").importer._imports
    imports.fail(batch, Problem("code", "message"))
    record = host.get(batch)
    assert record is not None
    assert record.status is BatchStatus.VALIDATING
    ledger_of(host).forget_fence(batch)
    imports.fail(batch, Problem("code", "message"))
    record = host.get(batch)
    assert record is not None
    assert record.status is BatchStatus.FAILED
    assert ledger_of(host).fence(batch) == Fence(1)


def test_reruns_and_requeues_are_recorded(hosts: list[Host]) -> None:
    host, *_ = hosts
    source = _cancelled(host)
    rerun = host.app("api").services.reruns.rerun(DEFAULT_TENANT, RerunRequest(source, "me"))
    letters = host.create(1)
    host.split(letters)
    host.work(succeeded=False)
    host.finalize(letters)
    request = RequeueRequest(LetterFilter(letters), "me")
    (requeued,) = host.app("api").services.requeuer.requeue(DEFAULT_TENANT, request).batches
    assert recorded(host) == {rerun.batch, requeued.batch}


def test_refused_creation_leaves_no_record(hosts: list[Host]) -> None:
    host, *_ = hosts
    first = host.create(idempotency_key="k", idempotency_digest=b"a")
    with pytest.raises(IdempotencyKeyReused):
        host.create(idempotency_key="k", idempotency_digest=b"b")
    assert recorded(host) == {first}


def test_creation_is_not_acknowledged_without_its_record(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, *_ = hosts

    def fail(*_: Any, **__: Any) -> None:
        raise OSError

    monkeypatch.setattr(obstore, "put", fail)
    with pytest.raises(Unavailable):
        host.create()
    assert host.unfinished() == []


def test_lone_installation_has_no_ledger(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same calls as before there were cells: none to a ledger, in the bucket or the database."""
    lone = Host(None, hosts[0].database, hosts[0].bucket)
    calls: Counter[str] = Counter()
    keys = []
    for name in (
        "put",
        "get",
        "get_ranges",
        "head",
        "list",
        "list_with_delimiter",
        "delete",
        "open_writer",
    ):
        original = getattr(obstore, name)

        def counted(
            *arguments: Any, name: str = name, original: Any = original, **options: Any
        ) -> Any:
            calls[name] += 1
            keys.append(str(arguments[1:]))
            return original(*arguments, **options)

        monkeypatch.setattr(obstore, name, counted)
    try:
        batch = lone.create()
        lone.cancel(lone.create())
        lone.finish()
        lone.app("worker").scheduler.tick()
        assert lone.get(batch) is not None
    finally:
        lone.close()
    # Two uploads with their indexes, a split, three reads of a worker, and a batch's files and index.
    assert calls == CALLS
    assert not any("cells" in key for key in keys)


CALLS = Counter({"open_writer": 6, "head": 1, "get": 1, "get_ranges": 4})


def test_tick_records_batches_of_before_the_cell_had_a_number(hosts: list[Host]) -> None:
    host, *_ = hosts
    lone = Host(None, host.database, host.bucket)
    batch = lone.create()
    lone.close()
    assert recorded(host) == set()
    host.app("worker").scheduler.tick()
    assert recorded(host) == {batch}


def test_tick_keeps_a_young_record_without_a_batch_and_ends_an_old_one(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, *_ = hosts
    real = host.create()
    record = ledger_of(host).record(real)
    assert record is not None
    phantom = BatchId(new_id())
    ledger_of(host).put(type(record)(**{**_fields(record), "batch": phantom}))
    host.check()
    assert recorded(host) == {real, phantom}
    monkeypatch.setattr("lowtide.scheduler.ledger_check.CREATION", timedelta(0))
    host.check()
    assert recorded(host) == {real}
    # An evacuation that has read the record does not create the batch.
    assert ledger_of(host, 2).claim(phantom) == Fence(1)


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def test_tick_removes_the_record_that_a_crash_left_of_an_ended_batch(hosts: list[Host]) -> None:
    host, *_ = hosts
    batch = host.create()
    record = ledger_of(host).record(batch)
    assert record is not None
    host.finish()
    ledger_of(host).put(record)
    host.check()
    assert recorded(host) == set()


def test_fences_of_ended_batches_go_after_an_hour(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, *_ = hosts
    batch = _completed(host)
    host.check()
    assert ledger_of(host).fence(batch) == Fence(1)
    monkeypatch.setattr("lowtide.scheduler.ledger_check.FENCE_KEPT", timedelta(0))
    host.check()
    assert ledger_of(host).fence(batch) is None
    assert host.get(batch) is not None


def test_batch_that_is_being_moved_stays_until_it_has_moved(hosts: list[Host]) -> None:
    host, *_ = hosts
    batch = host.create()
    ledger_of(host, 2).claim(batch)
    host.check()
    assert host.get(batch) is not None
    ledger_of(host, 2).note_moved(batch)
    host.check()
    assert host.get(batch) is None
    assert (recorded(host), ledger_of(host).fence(batch)) == (set(), None)


def test_objects_of_a_batch_that_has_moved_are_deleted(hosts: list[Host]) -> None:
    host, *_ = hosts
    batch = host.create()
    host.split(batch)
    host.work()
    ledger_of(host, 2).claim(batch)
    host.finalize(batch)
    written = {each.key for each in ObstoreObjects(host.bucket).objects_in("answers")}
    assert len(written) == 1
    ledger_of(host, 2).note_moved(batch)
    host.app("worker").scheduler.tick()
    objects = ObstoreObjects(host.bucket)
    assert [each.key for each in objects.objects_in("answers")] == []
    # The user's input file stays.
    assert len(list(objects.objects_in("files"))) == 1


def test_bucket_of_another_cell_is_refused(
    hosts: list[Host], caplog: pytest.LogCaptureFixture
) -> None:
    first, second, _ = hosts
    first.check()
    intruder = Host(2, second.database, first.bucket)
    try:
        with pytest.raises(Unavailable, match="bucket is that of cell 1"):
            intruder.check()
    finally:
        intruder.close()
    assert "ledger.of_another_cell" in caplog.text


def test_moved_batch_cannot_be_cancelled_in_its_old_cell(hosts: list[Host]) -> None:
    host, *_ = hosts
    batch = host.create()
    ledger_of(host, 2).claim(batch)
    with pytest.raises(NotFound, match="moved to another cell"):
        host.cancel(batch)
    record = host.get(batch)
    assert record is not None
    assert record.cancelling_at is None


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_one_of_many_claims_wins(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    if kind == "s3":
        request.getfixturevalue("s3_environment")
    url = tmp_path.as_uri() if kind == "folder" else f"s3://bucket/{tmp_path.name}"
    for _ in range(5):
        batch = BatchId(new_id())
        ledgers = [Ledger(ObstoreObjects(url), cell) for cell in range(1, 9)]
        fences = together(*(partial(ledger.claim, batch) for ledger in ledgers))
        assert len(set(fences)) == 1
        assert fences[0] in [Fence(cell) for cell in range(1, 9)]
