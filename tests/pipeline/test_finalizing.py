"""Output and error files: every request once, however often a batch is finalized."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from lowtide.core.errors import Unavailable
from lowtide.core.ids import DEFAULT_TENANT, FileId, format_request_id, new_id
from lowtide.core.pools import Pool
from lowtide.objects.joined import JoinedObjects
from lowtide.objects.store import ObstoreObjects
from lowtide.pipeline.finalize import Finalizer
from tests.worker.workers import Sink, WaitingPublisher
from tests.worlds import done, together

if TYPE_CHECKING:
    from lowtide.core.ids import BatchId
    from tests.worlds import World


def _finalizer(world: World, store: JoinedObjects, sink: Sink | None = None) -> Finalizer:
    publisher = WaitingPublisher(sink or Sink(), world.outbox)
    return Finalizer(world.finals, store, publisher, new_id=new_id)


def _run(world: World, batch: BatchId, requests: int, succeeded: set[int]) -> None:
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = world.queue.claim(lease, Pool.SPOT, requests)
    results = [
        done(c, succeeded=c.line in succeeded, body=json.dumps({"é": c.line}).encode())
        for c in claims
    ]
    world.queue.settle(lease, results, [])
    assert all(claim.batch == batch for claim in claims)


def _content(world: World, store: JoinedObjects, file: Any) -> list[Any]:
    if file is None:
        return []
    stored = world.files.get(DEFAULT_TENANT, FileId(file))
    content = b"".join(store.stream(stored.object_key))
    assert len(content) == stored.size
    assert content.count(b"\n") == stored.lines
    return [json.loads(line) for line in content.splitlines()]


@pytest.mark.parametrize(
    ("succeeded", "outputs", "errors"),
    [
        pytest.param({1, 2, 3}, [1, 2, 3], [], id="all succeeded"),
        pytest.param({2}, [2], [1, 3], id="some succeeded"),
        pytest.param(set(), [], [1, 2, 3], id="none succeeded"),
    ],
)
def test_each_request_is_in_one_file(
    world: World, succeeded: set[int], outputs: list[int], errors: list[int]
) -> None:
    batch, store, sink = world.batch(3), JoinedObjects(ObstoreObjects("memory://")), Sink()
    _run(world, batch, 3, succeeded)
    _finalizer(world, store, sink).finalize(batch)
    row = world.row(batch)
    assert (row.status, row.completed, row.failed) == ("completed", len(outputs), len(errors))
    output = _content(world, store, row.output_file_id)
    error = _content(world, store, row.error_file_id)
    assert [int(line["custom_id"]) for line in output] == outputs
    assert [int(line["custom_id"]) for line in error] == errors
    assert [line["id"] for line in output] == [format_request_id(batch, n) for n in outputs]
    assert all(line["response"]["body"] == {"é": int(line["custom_id"])} for line in output)
    assert {line["response"]["status_code"] for line in error} <= {400}
    assert [event.type for event in sink.sent] == ["dev.lowtide.batch.completed"]


@pytest.mark.parametrize(
    ("how", "code"), [("cancelled", "batch_cancelled"), ("expired", "batch_expired")]
)
def test_requests_that_never_ran_carry_error_code(world: World, how: str, code: str) -> None:
    batch, store = world.batch(3, due_in=-1), JoinedObjects(ObstoreObjects("memory://"))
    _run(world, batch, 1, {1})
    world.cancel(batch) if how == "cancelled" else world.sweep()
    _finalizer(world, store).finalize(batch)
    row = world.row(batch)
    assert (row.status, row.total, row.completed, row.failed) == (how, 3, 1, 2)
    assert len(_content(world, store, row.output_file_id)) == 1
    errors = _content(world, store, row.error_file_id)
    assert [(line["custom_id"], line["response"], line["error"]["code"]) for line in errors] == [
        ("2", None, code),
        ("3", None, code),
    ]


def test_undrained_batch_is_not_finalized(world: World) -> None:
    batch, store = world.batch(1), JoinedObjects(ObstoreObjects("memory://"))
    before = world.contents()
    _finalizer(world, store).finalize(batch)
    assert world.contents() == before


def test_concurrent_and_repeated_runs_finalize_once(world: World) -> None:
    store, sink = JoinedObjects(ObstoreObjects("memory://")), Sink()
    for _ in range(4):
        batch = world.batch(50)
        _run(world, batch, 50, set(range(1, 30)))
        finalize = partial(_finalizer(world, store, sink).finalize, batch)
        together(finalize, finalize, finalize)
        before = world.contents()
        finalize()
        assert world.contents() == before
        row = world.row(batch)
        assert len(_content(world, store, row.output_file_id)) == 29
        assert len(_content(world, store, row.error_file_id)) == 21
    assert len(sink.sent) == 4


def test_unavailable_store_leaves_batch_unchanged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowtide.objects.store import ObstoreWriter

    batch, store = world.batch(2), JoinedObjects(ObstoreObjects("memory://"))
    _run(world, batch, 2, {1})
    before = world.contents()

    def unavailable(*_: Any) -> None:
        raise Unavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(ObstoreWriter, "write", unavailable)
        with pytest.raises(Unavailable):
            _finalizer(world, store).finalize(batch)
    # Only the segment and the objects that it may have begun are recorded.
    recorded = {"segments", "orphan_objects"}
    after = {name: rows for name, rows in world.contents().items() if name not in recorded}
    assert after == {name: rows for name, rows in before.items() if name not in recorded}
    _finalizer(world, store).finalize(batch)
    assert world.row(batch).status == "completed"
