"""Batches of several segments: each is finalized by itself, and the last one closes the batch."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from lowtide.batches.answer_store import answer_files
from lowtide.batches.answers import AnswerReader
from lowtide.batches.results import FinishedLine, render
from lowtide.core.ids import DEFAULT_TENANT, FileId, derived_file_id, format_batch_id, new_id
from lowtide.core.pools import Pool
from lowtide.events.model import EventType
from lowtide.objects.joined import JoinedObjects
from lowtide.objects.store import ObstoreObjects
from lowtide.pipeline.finalize import Finalizer
from lowtide.queue.claims import Returned
from lowtide.queue.store import QueueStore
from tests.worker.workers import Sink, WaitingPublisher
from tests.worlds import Running, done, gate, together

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from lowtide.core.ids import BatchId
    from lowtide.events.model import Event
    from tests.worlds import World


REVISION = 'v2"},"body":{'


class Drained:
    """A drained batch of segments in a folder of objects; odd requests succeeded.

    A worker with a model revision answered every third.
    """

    def __init__(
        self, world: World, folder: Path, sizes: Sequence[int], *, apart: bool = False
    ) -> None:
        self.world, self.folder, self.sink = world, folder, Sink()
        self.objects = JoinedObjects(ObstoreObjects(f"file://{folder}"))
        self.count = sum(sizes)
        self.batch: BatchId = world.batch(self.count)
        if apart:
            world.split_runs()
        self.lease = world.queue.open_lease(Pool.SPOT, "w")
        claims = world.queue.claim(self.lease, Pool.SPOT, self.count)
        self.results = [
            done(claim, succeeded=claim.line % 2 == 1, body=_body(claim.line)) for claim in claims
        ]
        self.begin()
        self._cut(sizes)

    def begin(self) -> None:
        """Run all requests."""
        self.settle(range(1, self.count + 1))

    def settle(self, lines: Iterable[int]) -> list[Event]:
        """Settle requests; return the events of it."""
        events: list[Event] = []
        chosen = set(lines)
        for queue, revised in ((self.world.queue, False), (_queue_of_revision(self.world), True)):
            answers = [
                result
                for result in self.results
                if result.line in chosen and (result.line % 3 == 0) is revised
            ]
            events += queue.settle(self.lease, answers, []).drained
        return events

    def _cut(self, sizes: Sequence[int]) -> None:
        world = self.world
        world.run("DELETE FROM segments WHERE batch_id = :batch", batch=self.batch)
        for number, size in enumerate(sizes, 1):
            first = sum(sizes[: number - 1]) + 1
            world.run(
                "INSERT INTO segments (batch_id, number, tenant_id, first_line, lines, index_start,"
                " index_end, split_at) VALUES (:batch, :number, :tenant, :first, :lines, 0, 0, now())",
                batch=self.batch,
                number=number,
                tenant=DEFAULT_TENANT,
                first=first,
                lines=size,
            )

    def finalizer(self) -> Finalizer:
        publisher = WaitingPublisher(self.sink, self.world.outbox)
        return Finalizer(self.world.finals, self.objects, publisher, new_id=new_id)

    def finalize(self, segment: int | None = None) -> None:
        self.finalizer().finalize(self.batch, segment)

    def deliver(self) -> None:
        """Finalize as the events that were sent say, until none is left."""
        self.finalize()
        while self.sink.sent:
            event = self.sink.sent.pop(0)
            if event.type is EventType.SEGMENT_DRAINED:
                assert event.subject == event.data["batch_id"] == format_batch_id(self.batch)
                self.finalize(int(str(event.data["segment"])))

    def expected(self, role: str) -> bytes:
        lines = range(1, self.count + 1)
        return b"".join(
            _rendered(self.batch, line) for line in lines if line % 2 == (role == "output")
        )

    def content(self, role: str) -> bytes:
        row = self.world.row(self.batch)
        id_ = row.output_file_id if role == "output" else row.error_file_id
        if id_ is None:
            return b""
        file = self.world.files.get(DEFAULT_TENANT, FileId(id_))
        content = b"".join(self.objects.stream(file.object_key))
        assert (file.size, file.lines) == (len(content), content.count(b"\n"))
        return content

    def keys(self) -> set[str]:
        return {
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if path.is_file() and "#" not in path.name
        }

    def check(self) -> None:
        assert self.world.row(self.batch).status == "completed"
        assert [self.content(role) for role in ("output", "error")] == [
            self.expected(role) for role in ("output", "error")
        ]


def _queue_of_revision(world: World) -> QueueStore:
    return QueueStore(world.worker, new_id=new_id, lease_duration=30.0, model_revision=REVISION)


def _body(line: int) -> bytes:
    return json.dumps({"é": "x" * (line % 50)}).encode()


def _rendered(batch: BatchId, line: int) -> bytes:
    status = 200 if line % 2 else 400
    revision = None if line % 3 else REVISION
    answer = FinishedLine(
        line, str(line), status, "r", _body(line).decode(), model_revision=revision
    )
    return render(batch, answer)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([7], id="one"),
        pytest.param([5, 5, 5], id="several"),
        pytest.param([1, 1, 1, 4], id="with one file each"),
        pytest.param([2, 1], id="a short last one"),
    ],
)
def test_output_is_in_input_order_across_segments(
    world: World, tmp_path: Path, sizes: list[int]
) -> None:
    drained = Drained(world, tmp_path, sizes)
    drained.deliver()
    drained.check()
    output = derived_file_id(drained.batch, "output")
    pieces = {f"files/{output.hex}/{n:05d}" for n in range(1, len(sizes) + 1)} & drained.keys()
    file = world.files.get(DEFAULT_TENANT, output)
    if len(sizes) == 1:
        assert not pieces
        assert file.object_key == f"files/{output.hex}"
        assert file.sha256 == hashlib.sha256(drained.content("output")).digest()
    else:
        assert file.object_key == f"joined/{output.hex}"
        hashes = [hashlib.sha256((tmp_path / key).read_bytes()).digest() for key in sorted(pieces)]
        assert file.sha256 == hashlib.sha256(b"".join(hashes)).digest()
    # Even a tick that looks at few orphans deletes no object that a file owns.
    world.run("UPDATE orphan_objects SET due_at = now()")
    assert [world.ticks.orphans(1).keys for _ in range(3)] == [[], [], []]
    assert world.orphans() == []
    drained.check()


def test_first_call_writes_one_segment_and_announces_others(world: World, tmp_path: Path) -> None:
    drained = Drained(world, tmp_path, [2, 2, 2])
    drained.finalize()
    assert [event.data["segment"] for event in drained.sink.sent] == [2, 3]
    rows = world.rows("SELECT number FROM segments WHERE finalized_at IS NOT NULL")
    assert [row.number for row in rows] == [1]
    assert world.row(drained.batch).status == "finalizing"
    drained.finalize(3)
    assert world.row(drained.batch).status == "finalizing"
    drained.finalize(2)
    drained.check()


def test_doubled_and_concurrent_calls_write_the_same_and_close_once(
    world: World, tmp_path: Path
) -> None:
    drained = Drained(world, tmp_path, [20, 20, 20])
    together(*[partial(drained.finalize, number) for number in (None, 1, 2, 3, None, 2, 3)])
    drained.check()
    assert [event.type for event in drained.sink.sent].count(EventType.BATCH_COMPLETED) == 1
    before = world.contents()
    drained.finalize()
    drained.finalize(2)
    assert world.contents() == before


class _KilledError(BaseException):
    """Death of the process."""


STEPS = ["segments", "expect", "lines", "finish_segment", "close", "open_writer", "join"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
def test_death_at_any_step_loses_nothing_and_leaves_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, *, is_after: bool
) -> None:
    drained = Drained(world, tmp_path, [3, 3])
    target: Any = drained.objects if hasattr(drained.objects, step) else world.finals
    work = getattr(target, step)
    calls, deaths = 0, 0
    while world.row(drained.batch).status != "completed":
        calls += 1
        assert calls < 20

        left = calls  # dies at the first call, then at the second one, …

        def dies(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left > 0:
                return work(*arguments, **named)
            if is_after:
                work(*arguments, **named)
            raise _KilledError

        with monkeypatch.context() as patch:
            patch.setattr(target, step, dies)
            try:
                drained.finalize()
                drained.finalize(2)
            except _KilledError:
                deaths += 1
                # The scheduler may run meanwhile: it deletes no object of an open batch.
                drained.objects.delete(world.ticks.orphans(100).keys)
    assert deaths > 0
    drained.check()
    drained.objects.delete(world.orphans())
    drained.check()
    hexes = [derived_file_id(drained.batch, role).hex for role in ("output", "error")]
    assert drained.keys() == (
        {f"joined/{hex_}" for hex_ in hexes}
        | {f"files/{hex_}/{n:05d}" for hex_ in hexes for n in (1, 2)}
        | {f"answers/{drained.batch.hex}/{n:05d}" for n in (1, 2)}
    )


def test_late_call_leaves_no_object_of_deleted_file(world: World, tmp_path: Path) -> None:
    drained = Drained(world, tmp_path, [3])
    slow = Drained.finalizer(drained)
    slow._finals = type(world.finals)(world.own_engine("worker"), data_kept=30 * 86_400)
    with gate(slow._finals._engine, before="json_agg") as stopped:
        late = Running(lambda: slow.finalize(drained.batch))
        stopped.wait()
        drained.finalize()
        for role in ("output", "error"):
            keys = world.files.remove(DEFAULT_TENANT, derived_file_id(drained.batch, role))
            drained.objects.delete(keys)
            for key in keys:
                world.files.removed(DEFAULT_TENANT, key)
        stopped.opened.set()
        late.result()
    assert len(drained.keys()) == 3
    drained.objects.delete(world.ticks.orphans(100).keys)
    assert drained.keys() == set()


def test_stalled_segments_are_announced_again(world: World, tmp_path: Path) -> None:
    drained = Drained(world, tmp_path, [2, 2])
    drained.finalize()
    world.sweep(stalled_after=3600)
    assert world.events(drained.batch)[EventType.BATCH_DRAINED.value] == 1
    world.run("UPDATE batches SET nudged_at = now() - interval '1 h'")
    world.sweep(stalled_after=3600)
    events = world.events(drained.batch)
    assert events == {EventType.BATCH_DRAINED.value: 1}, "it replaces what waited in the outbox"
    drained.sink.sent.clear()
    drained.deliver()
    drained.check()


def test_progress_of_a_segment_keeps_its_batch_from_stalling(world: World, tmp_path: Path) -> None:
    drained = Drained(world, tmp_path, [2, 2])
    world.run("UPDATE batches SET nudged_at = now() - interval '1 h'")
    drained.finalize()
    world.run("DELETE FROM outbox")
    world.sweep(stalled_after=3600)
    assert world.events(drained.batch) == {}


def test_cancellation_between_segments_is_the_final_status(world: World, tmp_path: Path) -> None:
    drained = Drained(world, tmp_path, [2, 2])
    drained.finalize()
    world.cancel(drained.batch)
    drained.finalize(2)
    row = world.row(drained.batch)
    assert (row.status, row.completed, row.failed) == ("cancelled", 2, 2)
    assert drained.content("output") == drained.expected("output")


@pytest.mark.parametrize("sizes", [[9], [4, 1, 4]])
def test_index_finds_every_line(world: World, tmp_path: Path, sizes: list[int]) -> None:
    drained = Drained(world, tmp_path, sizes)
    drained.deliver()
    with world.worker.begin() as connection:
        files = answer_files(connection, drained.batch)
    assert files is not None
    reader = AnswerReader(drained.objects)
    for lines in ([5], [9, 1, 4, 5], list(range(9, 0, -1))):
        places = reader.places(files, lines)
        expected = b"".join(_rendered(drained.batch, line) for line in lines)
        assert b"".join(reader.blocks(files, places)) == expected
        for line, place in zip(lines, places, strict=True):
            found = reader.body(files, place)
            assert found is not None
            pieces, size = found
            body = b"".join(pieces)
            assert (body, size) == (_body(line), len(body))


class Running3(Drained):
    """A batch of three segments of four requests, all of which one worker has claimed."""

    def __init__(self, world: World, folder: Path, *, apart: bool = False) -> None:
        super().__init__(world, folder, [4, 4, 4], apart=apart)

    def begin(self) -> None:
        """Run nothing yet."""


def _announced(events: Sequence[Event]) -> list[object]:
    return [event.data.get("segment", event.type) for event in events]


def test_segments_are_announced_by_their_last_request(world: World, tmp_path: Path) -> None:
    running = Running3(world, tmp_path)
    assert _announced(running.settle([5, 6, 8])) == []
    assert _announced(running.settle([7, 1])) == [2]
    assert _announced(running.settle([2, 3, 4, 9])) == [1]
    # The end of the batch announces the last segment with all others that are not written.
    assert _announced(running.settle([10, 11, 12])) == [EventType.BATCH_DRAINED]
    rows = world.rows("SELECT data FROM outbox WHERE type = 'dev.lowtide.segment.drained'")
    assert len(rows) == 2


def test_segment_is_written_while_others_run(world: World, tmp_path: Path) -> None:
    running = Running3(world, tmp_path)
    running.finalize(2)
    assert running.keys() == set()
    running.settle([5, 6, 7, 8])
    running.finalize(1)
    assert running.keys() == set()
    running.finalize(2)
    assert world.row(running.batch).status == "in_progress"
    written = running.keys()
    assert len(written) == 3
    # Its pieces belong to the batch, however long it takes.
    world.run("UPDATE orphan_objects SET due_at = now() WHERE due_at < 'infinity'")
    assert world.ticks.orphans(100).keys == []
    running.settle([1, 2, 3, 4, 9, 10, 11, 12])
    running.deliver()
    running.check()
    assert written < running.keys()


def test_batch_that_drains_during_a_segment_is_closed_by_it(world: World, tmp_path: Path) -> None:
    running = Running3(world, tmp_path)
    running.settle([1, 2, 3, 4])
    running.finalize(1)
    running.settle([5, 6, 7, 8])
    slow = running.finalizer()
    slow._finals = type(world.finals)(world.own_engine("worker"), data_kept=30 * 86_400)
    with gate(slow._finals._engine, before="UPDATE segments") as stopped:
        writing = Running(lambda: slow.finalize(running.batch, 2))
        stopped.wait()
        running.settle([9, 10, 11, 12])
        running.deliver()
        assert world.row(running.batch).status == "finalizing"
        stopped.opened.set()
        writing.result()
    running.check()


def test_lost_event_of_a_segment_is_made_up_for(world: World, tmp_path: Path) -> None:
    running = Running3(world, tmp_path)
    running.settle([5, 6, 7, 8])
    running.settle([1, 2, 3, 4, 9, 10, 11, 12])
    running.deliver()
    assert world.row(running.batch).status == "finalizing"
    world.run("UPDATE segments SET drained_at = now() - interval '1 minute' WHERE number = 2")
    running.deliver()
    running.check()


def test_two_workers_that_end_a_segment_announce_it_once(world: World, tmp_path: Path) -> None:
    running = Running3(world, tmp_path, apart=True)
    running.settle([1, 2])
    # With nothing queued, the lock of the batch would be enough.
    released = [Returned(running.batch, 4, ""), Returned(running.batch, 12, "", delay=3600)]
    world.queue.settle(running.lease, [], released)
    slow = QueueStore(world.own_engine("worker"), new_id=new_id, lease_duration=30.0)
    other = slow.open_lease(Pool.SPOT, "other")
    last = [done(claim) for claim in slow.claim(other, Pool.SPOT, 1)]
    with gate(slow._engine, before="COMMIT") as stopped:
        first = Running(lambda: slow.settle(other, last, []))
        stopped.wait()
        second = Running(lambda: running.settle([3]))
        world.blocked()
        stopped.opened.set()
        assert _announced([*first.result().drained, *second.result()]) == [1]


def test_segment_of_an_ending_batch_is_not_announced(world: World, tmp_path: Path) -> None:
    running = Running3(world, tmp_path)
    assert not world.cancel(running.batch)
    assert _announced(running.settle([1, 2, 3, 4])) == []
    running.finalize(1)
    assert running.keys() == set()
    assert _announced(running.settle(range(5, 13))) == [EventType.BATCH_DRAINED]
