"""The file store, and deletions that race with new batches."""

from __future__ import annotations

import uuid

import pytest

from lowtide.core.errors import NotFound
from lowtide.core.ids import DEFAULT_TENANT, FileId
from lowtide.files.model import FileStatus, Purpose
from tests.worlds import Running, World, gate


def test_stored_file_is_returned_unchanged(world: World) -> None:
    file = world.file(
        filename="ü\u2028.jsonl", size=2**40, sha256=bytes(range(32)), status=FileStatus.ERROR,
        status_details="line 1: bad", endpoint=None,
    )  # fmt: skip
    assert world.files.get(DEFAULT_TENANT, file.id) == file
    world.files.add(file)
    assert world.value("SELECT count(*) FROM files") == 1


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("purpose", [None, "batch", "batch_output", "no such"])
def test_pages_are_complete_and_in_order(
    world: World,
    newest_first: bool,
    purpose: str | None,
) -> None:
    files = [
        world.file(purpose=Purpose.BATCH if number % 2 else Purpose.BATCH_OUTPUT)
        for number in range(9)
    ]
    world.file(world.tenant("other"))
    expected = [file.id for file in files if purpose in (None, file.purpose.value)]
    ids: list[FileId] = []
    after = None
    while page := world.files.page(
        DEFAULT_TENANT, after=after, limit=2, newest_first=newest_first, purpose=purpose
    ):
        ids += [file.id for file in page]
        after = ids[-1]
    assert ids == sorted(expected, reverse=newest_first)


@pytest.mark.parametrize("call", ["get", "remove"])
@pytest.mark.parametrize("owner", ["nobody's", "another tenant's"], ids=["unknown", "foreign"])
def test_unknown_and_foreign_files_raise_same_error(world: World, call: str, owner: str) -> None:
    file = FileId(uuid.uuid4()) if owner == "nobody's" else world.file(world.tenant("t")).id
    before = world.contents()
    with pytest.raises(NotFound, match="check the id"):
        getattr(world.files, call)(DEFAULT_TENANT, file)
    assert world.contents() == before


@pytest.mark.parametrize(
    ("status", "kept"),
    [
        *((status, True) for status in ("validating", "in_progress", "finalizing", "cancelling")),
        *((status, False) for status in ("completed", "failed", "expired", "cancelled")),
    ],
)
@pytest.mark.parametrize("removal", ["deleted", "expired"])
def test_active_batch_keeps_its_input_object(
    world: World, status: str, removal: str, *, kept: bool
) -> None:
    file = world.file()
    for batch in (world.new_batch(input_file=file.id), world.new_batch(input_file=file.id)):
        world.run("UPDATE batches SET status = :status WHERE id = :id", status=status, id=batch)
    if removal == "deleted":
        removed = world.files.remove(DEFAULT_TENANT, file.id)
        assert removed == ([] if kept else [file.object_key])
    else:
        world.run("UPDATE files SET expires_at = now()")
    assert world.ticks.orphans(10).keys == ([] if kept else [file.object_key])
    with pytest.raises(NotFound):
        world.files.get(DEFAULT_TENANT, file.id)
    world.run("UPDATE batches SET status = 'completed' WHERE id = :id", id=batch)
    assert world.ticks.orphans(10).keys == ([] if kept else [file.object_key])
    world.run("UPDATE batches SET status = 'cancelled'")
    assert world.ticks.orphans(10).keys == [file.object_key]


def test_deleted_output_file_leaves_its_batch(world: World) -> None:
    batch, output = world.new_batch(), world.file(purpose=Purpose.BATCH_OUTPUT)
    world.run("UPDATE batches SET status = 'completed', output_file_id = :file", file=output.id)
    world.files.remove(DEFAULT_TENANT, output.id)
    assert world.batches.get(DEFAULT_TENANT, batch).output_file is None


def test_deletion_waits_for_concurrent_batch_creation(world: World) -> None:
    file = world.file()
    engine = world.own_engine("api")
    creator = World(world.database)
    creator.batches._engine = engine
    with gate(engine, before="INSERT INTO batches") as checkpoint:
        creation: Running = Running(lambda: creator.new_batch(input_file=file.id))
        checkpoint.wait()
        deletion = Running(lambda: world.files.remove(DEFAULT_TENANT, file.id))
        world.blocked()
        checkpoint.opened.set()
        creation.result()
        assert deletion.result() == []


def test_batch_creation_waits_for_concurrent_deletion(world: World) -> None:
    file = world.file()
    engine = world.own_engine("api")
    remover = World(world.database)
    remover.files._engine = engine
    with gate(engine, before="DELETE FROM files") as checkpoint:
        deletion = Running(lambda: remover.files.remove(DEFAULT_TENANT, file.id))
        checkpoint.wait()
        creation = Running(lambda: world.new_batch(input_file=file.id))
        world.blocked()
        checkpoint.opened.set()
        deletion.result()
        with pytest.raises(NotFound):
            creation.result()
    assert world.value("SELECT count(*) FROM batches") == 0
