"""What tables hold of closed batches and deleted files goes in bounded, resumable sets."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from lowtide.batches import erasure
from lowtide.batches.detail_store import BatchDetailStore
from lowtide.batches.erasure import Eraser
from lowtide.batches.model import RequestStatus
from lowtide.core.ids import DEFAULT_TENANT, derived_file_id, new_id
from lowtide.core.pools import Pool
from lowtide.objects.joined import JoinedObjects
from lowtide.objects.store import ObstoreObjects
from lowtide.pipeline.final_store import BODIES_KEPT_SECONDS
from lowtide.pipeline.finalize import Finalizer
from lowtide.search.indexing import SearchIndexer
from tests.dead_letters.letters import dead
from tests.worker.workers import Sink, WaitingPublisher
from tests.worlds import Running, done, gate, together

if TYPE_CHECKING:
    from pathlib import Path

    from lowtide.core.ids import BatchId
    from tests.worlds import World


class Closed:
    """A closed batch; of ten requests, 3 and 6 failed and 9 is a dead letter."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.objects = JoinedObjects(ObstoreObjects(f"file://{folder}"))
        self.batch: BatchId = world.batch(10)
        lease = world.queue.open_lease(Pool.SPOT, "w")
        for claim in world.queue.claim(lease, Pool.SPOT, 10):
            result = done(claim, succeeded=claim.line % 3 > 0, body=b'{"n":%d}' % claim.line)
            if claim.line == 9:
                result = dead(claim)
            world.queue.settle(lease, [result], [])
        SearchIndexer(world.worker).index(limit=1000)
        publisher = WaitingPublisher(Sink(), world.outbox)
        Finalizer(world.finals, self.objects, publisher, new_id=new_id).finalize(self.batch)

    def delete(self, role: str) -> None:
        """Delete a file's record, without the erasure that follows."""
        row = self.world.row(self.batch)
        files = {
            "input": row.input_file_id,
            "output": row.output_file_id,
            "error": row.error_file_id,
        }
        self.world.files.remove(DEFAULT_TENANT, files[role], "me")

    def make_bodies_due(self) -> None:
        self.world.run("UPDATE erasures SET due_at = now()")

    def bodies(self) -> list[int]:
        sql = "SELECT line FROM results WHERE body IS NOT NULL ORDER BY line"
        return [row.line for row in self.world.rows(sql)]

    def parts(self) -> set[str]:
        return {row.part for row in self.world.rows("SELECT part FROM erasures")}


@pytest.fixture
def closed(world: World, tmp_path: Path) -> Closed:
    return Closed(world, tmp_path)


@pytest.fixture
def eraser(world: World) -> Eraser:
    return Eraser(world.worker)


@pytest.fixture
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Erase four requests at a time."""
    monkeypatch.setattr(erasure, "_FIRST_SET", 4)
    monkeypatch.setattr(erasure, "_SET_SECONDS", 0.0)
    monkeypatch.setattr(erasure, "_SMALLEST_SET", 4)


def test_bodies_go_minutes_after_the_close(closed: Closed, eraser: Eraser) -> None:
    assert eraser.erase() == 0
    assert closed.bodies() == list(range(1, 11))
    closed.world.run(
        "UPDATE erasures SET due_at = due_at - make_interval(secs => :kept)",
        kept=BODIES_KEPT_SECONDS,
    )
    assert eraser.erase() == 1
    assert closed.bodies() == []
    assert closed.parts() == set()


def test_batch_without_index_keeps_its_bodies(world: World, eraser: Eraser) -> None:
    batch = world.batch(1)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    world.queue.settle(lease, [done(c) for c in world.queue.claim(lease, Pool.SPOT, 1)], [])
    world.run("UPDATE batches SET status = 'completed', completed_at = now()")
    world.run("DELETE FROM segments")
    assert eraser.erase() == 0
    assert world.lines("results", batch) == [1]
    assert world.rows("SELECT 1 FROM results WHERE body IS NULL") == []


@pytest.mark.usefixtures("small_sets")
def test_most_frequent_errors_stay_until_their_file_goes(closed: Closed, eraser: Eraser) -> None:
    store = BatchDetailStore(closed.world.database.engine("operator"))
    before = store.details(None, closed.batch).errors
    assert [(error.lines, error.first_line) for error in before] == [(1, 3), (1, 6), (1, 9)]
    closed.make_bodies_due()
    eraser.erase()
    assert store.details(None, closed.batch).errors == before
    closed.delete("error")
    eraser.erase()
    errors = store.details(None, closed.batch).errors
    assert [(error.code, error.message, error.lines) for error in errors] == [
        ("http_400", "", 2),
        ("http_500", "", 1),
    ]


@pytest.mark.parametrize(
    ("role", "remaining"),
    [
        pytest.param("output", [3, 6, 9], id="output"),
        pytest.param("error", [1, 2, 4, 5, 7, 8, 10], id="error"),
        pytest.param("input", list(range(1, 11)), id="input"),
    ],
)
@pytest.mark.usefixtures("small_sets")
def test_deletion_erases_what_the_file_held(
    closed: Closed, eraser: Eraser, role: str, remaining: list[int]
) -> None:
    world = closed.world
    events = "SELECT count(*) FROM request_events WHERE detail <> ''"
    assert world.value(events) == 1
    closed.delete(role)
    assert closed.parts() == {"bodies", role}
    assert eraser.erase() == 3
    assert closed.parts() == {"bodies"}
    assert closed.bodies() == remaining
    assert world.value(events) == (1 if role == "input" else 0)
    names = world.rows("SELECT 1 FROM requests WHERE custom_id <> ''")
    assert len(names) == len(world.rows("SELECT 1 FROM custom_ids")) == 10 * (role != "input")


def test_error_messages_go_with_the_error_file(
    world: World, tmp_path: Path, eraser: Eraser
) -> None:
    closed = Closed(world, tmp_path)
    world.run("UPDATE results SET error_message = 'm' WHERE NOT succeeded")
    world.run("UPDATE dead_letters SET error_message = 'm'")
    closed.delete("error")
    eraser.erase()
    for table in ("results", "dead_letters"):
        assert world.rows(f"SELECT 1 FROM {table} WHERE error_message IS NOT NULL") == []  # noqa: S608


@pytest.mark.usefixtures("small_sets")
def test_expiry_erases_what_a_deletion_does(closed: Closed, eraser: Eraser) -> None:
    world = closed.world
    world.run("UPDATE files SET expires_at = now()")
    keys = set(world.ticks.orphans(100).keys)
    row = world.row(closed.batch)
    assert (row.output_file_id, row.error_file_id) == (None, None)
    assert closed.parts() == {"bodies", "input", "output", "error"}
    files = [derived_file_id(closed.batch, role) for role in ("output", "error")]
    assert {f"files/{file.hex}" for file in files} <= keys
    eraser.erase()
    assert closed.bodies() == []
    assert f"answers/{closed.batch.hex}/00001" in world.ticks.orphans(100).keys


def test_index_stays_while_one_of_the_files_does(closed: Closed, eraser: Eraser) -> None:
    key = f"answers/{closed.batch.hex}/00001"
    closed.delete("output")
    eraser.erase()
    assert key not in closed.world.orphans()
    closed.delete("error")
    eraser.erase()
    assert key in closed.world.orphans()


def test_input_of_active_batch_is_erased_after_its_end(world: World, eraser: Eraser) -> None:
    batch = world.batch(3)
    world.files.remove(DEFAULT_TENANT, world.row(batch).input_file_id)
    SearchIndexer(world.worker).index(limit=10)
    assert eraser.erase() == 0
    world.run("UPDATE batches SET status = 'cancelled'")
    assert eraser.erase() == 1
    assert world.rows("SELECT 1 FROM requests WHERE custom_id <> ''") == []


def test_custom_ids_that_wait_for_the_index_are_erased_after_it(
    world: World, eraser: Eraser
) -> None:
    batch = world.batch(3)
    world.files.remove(DEFAULT_TENANT, world.row(batch).input_file_id)
    world.run("UPDATE batches SET status = 'cancelled'")
    engine = world.own_engine("worker")
    with gate(engine, before="COMMIT") as stopped:
        call = Running(lambda: SearchIndexer(engine).index(limit=10))
        stopped.wait()
        assert eraser.erase() == 0
        stopped.opened.set()
        call.result()
    assert len(world.rows("SELECT 1 FROM custom_ids")) == 3
    assert eraser.erase() == 1
    assert world.rows("SELECT 1 FROM custom_ids") == []


def test_duplicate_custom_id_of_rejected_batch_is_erased(world: World, eraser: Eraser) -> None:
    batch = world.new_batch()
    errors = [
        {"code": "duplicate_custom_id", "message": "custom_id 'secret' is …", "line": 2},
        {"code": "invalid_json", "message": "kept", "line": 3},
    ]
    world.run(
        "UPDATE batches SET status = 'failed', errors = cast(:errors AS jsonb)",
        errors=json.dumps(errors),
    )
    world.files.remove(DEFAULT_TENANT, world.row(batch).input_file_id)
    eraser.erase()
    first, second = world.row(batch).errors
    assert "secret" not in first["message"]
    assert (first["line"], second["message"]) == (2, "kept")


class _KilledError(BaseException):
    """Death of the process."""


@pytest.mark.usefixtures("small_sets")
def test_death_between_sets_is_resumed(
    closed: Closed, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed.make_bodies_due()
    step = Eraser._erase

    def dies(self: Eraser, connection: Any, row: Any) -> None:
        step(self, connection, row)
        if row.after_line == 4:
            raise _KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Eraser, "_erase", dies)
        with pytest.raises(_KilledError):
            Eraser(world.worker).erase()
    assert closed.bodies() == list(range(5, 11))
    assert Eraser(world.worker).erase() == 2
    assert closed.bodies() == []


@pytest.mark.usefixtures("small_sets")
def test_concurrent_erasures_end_with_nothing_left(closed: Closed, world: World) -> None:
    for role in ("input", "output", "error"):
        closed.delete(role)
    closed.make_bodies_due()
    together(*[partial(Eraser(world.worker).erase) for _ in range(4)])
    while Eraser(world.worker).erase():
        pass
    assert (closed.parts(), closed.bodies()) == (set(), [])


def test_request_without_custom_id_is_listed(closed: Closed, eraser: Eraser, world: World) -> None:
    closed.delete("input")
    eraser.erase()
    store = BatchDetailStore(world.database.engine("operator"))
    page = store.lines(None, closed.batch, RequestStatus.FAILED, after=0, limit=9)
    assert [(state.line, state.custom_id) for state in page] == [(3, ""), (6, ""), (9, "")]


def test_sets_are_bounded(closed: Closed, world: World) -> None:
    requests = 20_000
    for statement in (
        """INSERT INTO requests (batch_id, tenant_id, line, start, length, custom_id)
           SELECT :batch, :tenant, n, 0, 1, n::text FROM generate_series(11, :last) n""",
        """INSERT INTO results SELECT :batch, :tenant, :batch, now(), now(), n, 1, 1, 200, 1, 0, true,
             false, false, 'spot', 'r', repeat('x', 900) FROM generate_series(11, :last) n""",
    ):
        world.run(statement, batch=closed.batch, tenant=DEFAULT_TENANT, last=requests)
    closed.make_bodies_due()
    erased = Eraser(world.worker)
    largest, before = 0, requests
    while erased.erase(seconds=0):
        after = world.value("SELECT count(*) FROM results WHERE body IS NOT NULL")
        largest, before = max(largest, before - after), after
    assert before == 0
    assert 100 <= largest <= 5000
