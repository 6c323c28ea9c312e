"""The batch store: idempotent creation, pages, counts, cancellation."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from lowtide.batches.model import NewBatch
from lowtide.core.errors import Conflict, IdempotencyKeyReused, NotFound
from lowtide.core.ids import DEFAULT_TENANT, BatchId, FileId, new_id
from lowtide.core.pools import Pool
from lowtide.events.model import EventType, batch_event
from lowtide.files.model import Purpose
from tests.worlds import PRICES, World, done, together


def _new_batch(file: FileId, key: str | None = None) -> NewBatch:
    now = datetime.now(UTC)
    return NewBatch(
        id=BatchId(new_id()), tenant=DEFAULT_TENANT, user="me", input_file=file,
        endpoint="/v1/embeddings", completion_window="1h", created_at=now,
        deadline=now + timedelta(hours=1), metadata={"a": "é"}, output_expires_after=None,
        prices=PRICES,
        idempotency_key=key,
    )  # fmt: skip


def _create(world: World, new: NewBatch) -> tuple[BatchId, bool]:
    event = batch_event(new_id(), EventType.BATCH_CREATED, new.tenant, new.id)
    batch, created = world.batches.create(new, event)
    return batch.id, created


def test_new_batch_has_given_fields(world: World) -> None:
    file = world.file()
    new = _new_batch(file.id)
    assert _create(world, new) == (new.id, True)
    batch = world.batches.get(DEFAULT_TENANT, new.id)
    assert (batch.user, batch.input_file, batch.input_key) == ("me", file.id, file.object_key)
    assert (batch.created_at, batch.deadline, batch.metadata) == (
        new.created_at,
        new.deadline,
        {"a": "é"},
    )
    assert (batch.status, batch.total, batch.completed, batch.failed, batch.model) == (
        "validating",
        0,
        0,
        0,
        None,
    )
    assert world.events(new.id) == {EventType.BATCH_CREATED.value: 1}


def test_idempotency_key_creates_one_batch(world: World) -> None:
    file = world.file()
    first = _new_batch(file.id, "key")
    assert _create(world, first) == (first.id, True)
    assert _create(world, _new_batch(file.id, "key")) == (first.id, False)
    other = _new_batch(file.id, "another")
    assert _create(world, other) == (other.id, True)
    assert world.value("SELECT count(*) FROM outbox") == 2


def test_idempotency_keys_are_scoped_to_tenant(world: World) -> None:
    mine = world.new_batch(idempotency_key="key")
    theirs = world.new_batch(world.tenant("other"), idempotency_key="key")
    assert mine != theirs
    assert world.value("SELECT count(*) FROM batches") == 2


def test_concurrent_bodies_with_same_key_create_one_batch(world: World) -> None:
    file = world.file().id

    def create(key: str, digest: bytes) -> bool:
        new = replace(_new_batch(file, key), idempotency_digest=digest)
        try:
            return _create(world, new)[1]
        except IdempotencyKeyReused:
            return False

    for key in "abcde":
        created = together(partial(create, key, b"one"), partial(create, key, b"other"))
        assert sorted(created) == [False, True]
        with pytest.raises(IdempotencyKeyReused):
            _create(world, replace(_new_batch(file, key), idempotency_digest=b"third"))
    assert world.value("SELECT count(*) FROM batches") == 5


def test_concurrent_retries_with_same_key_create_one_batch(world: World) -> None:
    file = world.file().id
    for round_ in range(5):
        results = together(
            *[partial(_create, world, _new_batch(file, str(round_))) for _ in range(4)]
        )
        assert len({id_ for id_, _ in results}) == 1
        assert sorted(new for _, new in results) == [False, False, False, True]
    assert world.value("SELECT count(*) FROM outbox") == 5


@pytest.mark.parametrize("file", ["unknown", "another tenant's", "an output"])
def test_batch_needs_input_file_of_its_tenant(world: World, file: str) -> None:
    if file == "unknown":
        id_ = FileId(uuid.uuid4())
    elif file == "an output":
        id_ = world.file(purpose=Purpose.BATCH_OUTPUT).id
    else:
        id_ = world.file(world.tenant("other")).id
    with pytest.raises(NotFound) as caught:
        _create(world, _new_batch(id_))
    assert caught.value.param == "input_file_id"
    assert world.value("SELECT count(*) FROM batches") == 0
    assert world.value("SELECT count(*) FROM outbox") == 0


def test_pages_are_complete_and_newest_first(world: World) -> None:
    mine = [world.new_batch() for _ in range(7)]
    for _ in range(3):
        world.new_batch(world.tenant(str(uuid.uuid4())))
    ids: list[BatchId] = []
    after = None
    while page := world.batches.page(DEFAULT_TENANT, after=after, limit=3):
        ids += [batch.id for batch in page]
        after = ids[-1]
    assert ids == sorted(mine, reverse=True)


def test_counts_add_up_after_every_settlement(world: World) -> None:
    batch = world.batch(6)
    leases = [world.queue.open_lease(Pool.SPOT, "w") for _ in range(2)]
    for step in range(6):
        lease = leases[step % 2]
        (claim,) = world.queue.claim(lease, Pool.SPOT, 1)
        world.queue.settle(lease, [done(claim, succeeded=step % 3 != 0)], [])
        stored = world.batches.get(DEFAULT_TENANT, batch)
        assert (stored.total, stored.completed + stored.failed) == (6, step + 1)
        assert stored.failed == step // 3 + 1
        assert (stored.input_tokens, stored.output_tokens) == (3 * (step + 1), 5 * (step + 1))


@pytest.mark.parametrize("call", ["get", "cancel"])
@pytest.mark.parametrize("owner", ["nobody's", "another tenant's"], ids=["unknown", "foreign"])
def test_unknown_and_foreign_batches_raise_same_error(world: World, call: str, owner: str) -> None:
    batch = (
        BatchId(uuid.uuid4()) if owner == "nobody's" else world.batch(1, tenant=world.tenant("t"))
    )
    before = world.contents()
    with pytest.raises(NotFound, match="check the id"):
        world.batches.get(DEFAULT_TENANT, batch) if call == "get" else world.cancel(batch)
    assert world.contents() == before


@pytest.mark.parametrize("status", ["completed", "failed", "expired"])
def test_finished_batch_cannot_be_cancelled(world: World, status: str) -> None:
    batch = world.batch(1)
    world.run("UPDATE batches SET status = :status", status=status)
    before = world.contents()
    with pytest.raises(Conflict) as caught:
        world.cancel(batch)
    assert caught.value.code == "batch_not_cancellable"
    assert world.contents() == before


def test_cancelling_cancelled_batch_changes_nothing(world: World) -> None:
    batch = world.batch(1)
    world.run("UPDATE batches SET status = 'cancelled'")
    before = world.contents()
    assert not world.cancel(batch)
    assert world.contents() == before
