"""Splits of large batches, a segment at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.event import listen

from lowtide.core.errors import NotFound
from lowtide.core.ids import DEFAULT_TENANT, new_id
from lowtide.core.pools import Pool
from lowtide.events.model import EventType
from lowtide.files.index import SegmentSize, index_key
from lowtide.files.lines import checksum_of
from lowtide.pipeline.split_store import QUEUED_CHANNEL, SplitStore
from lowtide.queue.claims import Returned
from tests.http.forms import line
from tests.pipeline.segmented import LINES, SIZE, Installation
from tests.worlds import Running, World, done, gate, together

if TYPE_CHECKING:
    from lowtide.core.ids import BatchId
    from lowtide.events.model import Event

SEGMENTS = -(-LINES // SIZE.max_lines)


@pytest.fixture
def installation(world: World) -> Installation:
    return Installation.of(world)


def _announced(installation: Installation) -> list[Event]:
    sent = [event for event in installation.sink.sent if event.type == EventType.SEGMENT_CREATED]
    installation.sink.sent.clear()
    return sent


def _drained(installation: Installation, batch: BatchId) -> int:
    """Return how often the batch was announced as drained by a split."""
    assert installation.world.drained(batch) == 0  # sent, and so no longer in the outbox
    return sum(event.type == EventType.BATCH_DRAINED for event in installation.sink.sent)


def _assert_whole(world: World, batch: BatchId) -> None:
    """Assert that every request of the batch is there once, in `requests`."""
    assert world.lines("requests", batch) == list(range(1, LINES + 1))
    unsplit = world.value("SELECT count(*) FROM segments WHERE split_at IS NULL")
    assert unsplit == 0


def test_first_segment_is_queued_at_once_and_the_others_are_announced(
    installation: Installation, world: World
) -> None:
    batch = installation.batch()
    installation.splitter().split(batch)
    row = world.row(batch)
    assert (row.status, row.total, row.model) == ("in_progress", LINES, "m")
    first = list(range(1, SIZE.max_lines + 1))
    assert world.lines("queue", batch) == world.lines("requests", batch) == first
    announced = _announced(installation)
    assert [event.data["segment"] for event in announced] == list(range(2, SEGMENTS + 1))
    assert {event.subject for event in announced} == {f"batch_{batch.hex}"}


@pytest.mark.parametrize("order", ["as announced", "reversed", "twice", "at once"])
def test_segments_in_any_order_make_the_whole_batch(
    installation: Installation, world: World, order: str
) -> None:
    batch = installation.batch()
    splitter = installation.splitter()
    splitter.split(batch)
    announced = _announced(installation)
    if order == "at once":
        together(*[lambda e=event: installation.deliver(splitter, [e]) for event in announced])
    else:
        times = {"as announced": announced, "reversed": announced[::-1], "twice": announced * 2}
        installation.deliver(splitter, times[order])
    splitter.split(batch)
    _assert_whole(world, batch)
    assert world.lines("queue", batch) == list(range(1, LINES + 1))
    requests = world.rows("SELECT * FROM requests ORDER BY line")
    content = b"".join(line(str(number)) for number in range(1, LINES + 1))
    for request, text in zip(requests, content.splitlines(), strict=True):
        assert content[request.start : request.start + request.length] == text
        assert request.checksum == checksum_of(text)
    assert [request.custom_id for request in requests] == [str(n) for n in range(1, LINES + 1)]


def _drain_queue(world: World) -> int:
    """Claim and settle everything that is queued."""
    lease = world.queue.open_lease(Pool.SPOT, "w")
    settled = 0
    while claims := world.queue.claim(lease, Pool.SPOT, 50):
        world.queue.settle(lease, [done(claim) for claim in claims], [])
        settled += len(claims)
    return settled


def test_batch_is_not_drained_between_segments(installation: Installation, world: World) -> None:
    batch = installation.batch()
    splitter = installation.splitter()
    splitter.split(batch)
    *middle, last = _announced(installation)
    assert _drain_queue(world) == SIZE.max_lines
    world.sweep()
    assert world.drained(batch) == 0
    installation.deliver(splitter, middle)
    _drain_queue(world)
    world.sweep()
    assert (world.row(batch).status, world.drained(batch)) == ("in_progress", 0)
    installation.deliver(splitter, [last])
    assert _drain_queue(world) == 1
    assert (world.row(batch).status, world.drained(batch)) == ("finalizing", 1)


def test_each_queued_segment_notifies_the_autoscaler(
    installation: Installation, world: World
) -> None:
    engine = world.own_engine("autoscaler")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"LISTEN {QUEUED_CHANNEL}")
        driver: Any = connection.connection.driver_connection

        def notified() -> list[str]:
            connection.exec_driver_sql("SELECT 1")  # reads what the server has sent
            channels = [channel for _, channel, _ in driver.notifications]
            driver.notifications.clear()
            return channels

        batch, splitter = installation.batch(), installation.splitter()
        assert notified() == []
        splitter.split(batch)
        assert notified() == [QUEUED_CHANNEL]
        splitter.split_segment(batch, 2)
        assert notified() == [QUEUED_CHANNEL]
        world.cancel(batch)
        splitter.split_segment(batch, 3)
        assert notified() == [], "this segment is only stored"


@pytest.mark.parametrize("end", ["cancelled", "expired"])
def test_requests_of_segments_after_the_end_are_stored_but_not_queued(
    installation: Installation, world: World, end: str
) -> None:
    batch = installation.batch()
    splitter = installation.splitter()
    splitter.split(batch)
    announced = _announced(installation)
    installation.deliver(splitter, announced[:3])
    if end == "cancelled":
        assert world.cancel(batch) is False
    else:
        world.run("UPDATE batches SET deadline = now() - interval '1 s'")
        world.sweep()
    assert (world.lines("queue", batch), world.drained(batch)) == ([], 0)
    installation.deliver(splitter, announced)
    _assert_whole(world, batch)
    assert world.lines("queue", batch) == []
    assert _drained(installation, batch) == 1
    outcomes = world.batches.get(DEFAULT_TENANT, batch).outcomes
    assert (outcomes.cancelled, outcomes.expired) == (
        (LINES, 0) if end == "cancelled" else (0, LINES)
    )


def test_segments_that_end_at_once_after_a_cancellation_drain_it(
    installation: Installation, world: World
) -> None:
    batch = installation.batch()
    splitter = installation.splitter()
    splitter.split(batch)
    announced = _announced(installation)
    world.cancel(batch)
    together(*[lambda e=event: installation.deliver(splitter, [e]) for event in announced])
    _assert_whole(world, batch)
    assert _drained(installation, batch) == 1


def test_cancellation_waits_for_a_segment_that_is_being_queued(
    installation: Installation, world: World
) -> None:
    batch = installation.batch(20)
    installation.splitter().split(batch)
    (second, third) = _announced(installation)
    slow = world.own_engine("worker")
    splitter = installation.splitter(SplitStore(slow, new_id=new_id))
    with gate(slow, before="UPDATE segments") as stopped:
        split = Running(lambda: installation.deliver(splitter, [second]))
        stopped.wait()
        cancelled = Running(lambda: world.cancel(batch))
        world.blocked()
        stopped.opened.set()
        split.result()
        assert cancelled.result() is False
    assert world.lines("queue", batch) == []
    installation.deliver(splitter, [third])
    assert _drained(installation, batch) == 1
    assert world.lines("requests", batch) == list(range(1, 21))


class _Killed(BaseException):
    """A process that dies."""


@pytest.mark.parametrize(
    "before",
    [
        "CREATE TEMPORARY",
        "INSERT INTO requests",
        "INSERT INTO queued_runs",
        "UPDATE segments",
        "COMMIT",
    ],
)
def test_killed_segment_leaves_nothing_and_is_split_again(
    installation: Installation, world: World, before: str
) -> None:
    batch = installation.batch()
    installation.splitter().split(batch)
    announced = _announced(installation)
    doomed = world.own_engine("worker")

    def die(*arguments: Any) -> None:
        if before == "COMMIT" or before in arguments[2]:
            raise _Killed

    kind = "commit" if before == "COMMIT" else "before_cursor_execute"
    listen(doomed, kind, die)
    found = world.contents()
    with pytest.raises(_Killed):
        installation.deliver(
            installation.splitter(SplitStore(doomed, new_id=new_id)), announced[:1]
        )
    assert world.contents() == found
    installation.deliver(installation.splitter(), announced)
    _assert_whole(world, batch)
    assert world.lines("queue", batch) == list(range(1, LINES + 1))


def test_tick_announces_segments_again_only_without_progress(
    installation: Installation, world: World
) -> None:
    batch = installation.batch()
    splitter = installation.splitter()
    splitter.split(batch)
    lost = _announced(installation)
    world.run("DELETE FROM outbox")
    world.run("UPDATE batches SET nudged_at = now() - interval '1 h'")
    world.sweep(stalled_after=60)
    assert world.events(batch) == {}
    world.run("UPDATE segments SET split_at = split_at - interval '1 h'")
    world.sweep(stalled_after=60)
    world.sweep(stalled_after=60)
    assert world.events(batch) == {EventType.SEGMENT_CREATED.value: SEGMENTS - 1}
    world.run("UPDATE batches SET nudged_at = now() - interval '1 h'")
    world.sweep(stalled_after=60)
    # An announcement replaces the one before.
    assert world.events(batch) == {EventType.SEGMENT_CREATED.value: SEGMENTS - 1}
    installation.deliver(splitter, world.outbox.due(100))
    installation.deliver(splitter, lost)
    _assert_whole(world, batch)
    world.run("UPDATE batches SET nudged_at = now() - interval '1 h'")
    world.run("UPDATE segments SET split_at = split_at - interval '1 h'")
    world.run("DELETE FROM outbox")
    world.sweep(stalled_after=60)
    assert world.events(batch) == {}


def test_tick_announces_segments_of_cancelled_batch(
    installation: Installation, world: World
) -> None:
    batch = installation.batch()
    installation.splitter().split(batch)
    world.cancel(batch)
    world.run("DELETE FROM outbox")
    world.run("UPDATE batches SET nudged_at = now() - interval '1 h'")
    world.run("UPDATE segments SET split_at = split_at - interval '1 h'")
    world.sweep(stalled_after=60, cancel_grace=0)
    assert world.events(batch) == {EventType.SEGMENT_CREATED.value: SEGMENTS - 1}


# Files without a usable index


def _indexed(world: World) -> list[Any]:
    return world.rows("SELECT status, index_key, segments, lines, model, endpoint FROM files")


def test_file_without_index_is_validated_and_indexed_by_the_split(
    installation: Installation, world: World
) -> None:
    batch = installation.batch()
    (before,) = _indexed(world)
    bytes_before = b"".join(installation.objects.stream(before.index_key))
    installation.objects.delete([before.index_key])
    world.run(
        "UPDATE files SET status = 'uploaded', index_key = NULL, segments = NULL, lines = 0, "
        "model = NULL, endpoint = NULL"
    )
    splitter = installation.splitter()
    splitter.split(batch)
    installation.deliver(splitter, _announced(installation))
    _assert_whole(world, batch)
    assert _indexed(world) == [before]
    assert b"".join(installation.objects.stream(before.index_key)) == bytes_before
    assert world.rows("SELECT * FROM orphan_objects") == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE files SET endpoint = '/v1/completions'",
        "UPDATE files SET lines = 1000000",
        "DELETE FROM files",
    ],
    ids=["another endpoint", "a higher limit", "deleted file"],
)
def test_index_of_other_checks_is_not_trusted(
    installation: Installation, world: World, statement: str
) -> None:
    batch = installation.batch()
    with installation.objects.open_writer(index_key(world.row(batch).input_key)) as writer:
        writer.write(b"rubbish")
    world.run(statement)
    splitter = installation.splitter()
    splitter.split(batch)
    installation.deliver(splitter, _announced(installation))
    _assert_whole(world, batch)


def test_concurrent_validations_of_one_file_leave_one_index(
    installation: Installation, world: World
) -> None:
    first = installation.batch()
    file = world.batches.get(DEFAULT_TENANT, first).input_file
    others = [world.new_batch(input_file=file) for _ in range(3)]
    world.run("UPDATE files SET index_key = NULL, segments = NULL, status = 'uploaded'")
    splitter = installation.splitter()
    batches = [first, *others, first]
    together(*[lambda b=batch: splitter.split(b) for batch in batches])
    installation.deliver(splitter, _announced(installation))
    for batch in batches:
        assert world.lines("queue", batch) == list(range(1, LINES + 1))
    assert world.rows("SELECT * FROM orphan_objects") == []


@pytest.mark.parametrize("before", ["UPDATE files", "INSERT INTO segments"])
def test_killed_validation_leaks_nothing_and_is_repeated(
    installation: Installation, world: World, before: str
) -> None:
    batch = installation.batch()
    world.run("UPDATE files SET index_key = NULL, segments = NULL, status = 'uploaded'")
    doomed = world.own_engine("worker")

    def die(*arguments: Any) -> None:
        if before in arguments[2]:
            raise _Killed

    listen(doomed, "before_cursor_execute", die)
    with pytest.raises(_Killed):
        installation.splitter(SplitStore(doomed, new_id=new_id)).split(batch)
    key = index_key(world.row(batch).input_key)
    recorded = world.value("SELECT count(*) FROM files WHERE index_key IS NOT NULL")
    orphans = [row.object_key for row in world.rows("SELECT object_key FROM orphan_objects")]
    assert orphans == ([] if recorded else [key])
    splitter = installation.splitter()
    splitter.split(batch)
    installation.deliver(splitter, _announced(installation))
    _assert_whole(world, batch)
    assert world.rows("SELECT * FROM orphan_objects") == []


def test_file_with_problems_fails_its_batch_and_has_no_index(
    installation: Installation, world: World
) -> None:
    lines = [line(str(number)) for number in range(1, 51)]
    lines[30] = b"{}\n"
    file = installation.upload(lines)
    assert (file.status, file.index_key, file.segments) == ("error", None, None)
    batch = world.new_batch(input_file=file.id)
    installation.splitter().split(batch)
    row = world.row(batch)
    assert (row.status, {problem["line"] for problem in row.errors}) == ("failed", {31})
    with pytest.raises(NotFound):
        list(installation.objects.stream(index_key(file.object_key)))
    assert world.value("SELECT count(*) FROM segments") == 0


def test_missing_input_fails_the_batch_although_its_index_exists(
    installation: Installation, world: World
) -> None:
    batch = installation.batch()
    installation.objects.delete([world.row(batch).input_key])
    installation.splitter().split(batch)
    row = world.row(batch)
    assert (row.status, [problem["code"] for problem in row.errors]) == (
        "failed",
        ["input_missing"],
    )


# Lost indexes and deleted files


@pytest.mark.parametrize("damage", ["lost", "cut", "rubbish", "lacks a row"])
@pytest.mark.parametrize("when", ["before the split", "between segments"])
def test_damaged_index_is_written_again(
    installation: Installation, world: World, damage: str, when: str
) -> None:
    batch = installation.batch()
    splitter = installation.splitter()
    announced: list[Event] = []
    if when == "between segments":
        splitter.split(batch)
        announced = _announced(installation)
    key = index_key(world.row(batch).input_key)
    whole = b"".join(installation.objects.stream(key))
    rows = whole.splitlines(keepends=True)
    installation.objects.delete([key])
    changed = {
        "cut": whole[:-7],
        "rubbish": b"\xff\x00 rubbish" * 300,
        "lacks a row": b"".join(rows[:5] + rows[6:30] + rows[31:]),
    }
    if damage != "lost":
        with installation.objects.open_writer(key) as writer:
            writer.write(changed[damage])
    splitter.split(batch)
    installation.deliver(splitter, announced or _announced(installation))
    _assert_whole(world, batch)
    assert world.lines("queue", batch) == list(range(1, LINES + 1))
    assert b"".join(installation.objects.stream(key)) == whole


def test_requests_whose_index_and_input_are_lost_are_queued_to_fail(
    installation: Installation, world: World
) -> None:
    batch = installation.batch()
    splitter = installation.splitter()
    splitter.split(batch)
    key = world.row(batch).input_key
    installation.objects.delete([key, index_key(key)])
    installation.deliver(splitter, _announced(installation))
    _assert_whole(world, batch)
    assert world.lines("queue", batch) == list(range(1, LINES + 1))
    assert world.row(batch).errors is None


@pytest.mark.parametrize("removal", ["deleted", "expired"])
def test_index_of_a_deleted_file_stays_until_its_batch_is_split(
    installation: Installation, world: World, removal: str
) -> None:
    batch = installation.batch()
    splitter = installation.splitter()
    splitter.split(batch)
    file = world.batches.get(DEFAULT_TENANT, batch).input_file
    if removal == "deleted":
        assert world.files.remove(DEFAULT_TENANT, file) == []
    else:
        world.run("UPDATE files SET expires_at = now() - interval '1 s'")
    assert world.ticks.orphans(10).keys == []
    installation.deliver(splitter, _announced(installation))
    _assert_whole(world, batch)
    world.run("UPDATE batches SET status = 'completed', completed_at = now()")
    key = world.row(batch).input_key
    assert sorted(world.ticks.orphans(10).keys) == sorted([key, index_key(key)])


def test_index_of_an_older_version_is_written_again(
    installation: Installation, world: World
) -> None:
    batch = installation.batch()
    splitter = installation.splitter()
    splitter.split(batch)
    key = index_key(world.row(batch).input_key)
    # Without the places of requests, its rows are at other positions.
    old = [
        b"\t".join(columns[:4] + columns[5:])
        for columns in (
            row.split(b"\t") for row in b"".join(installation.objects.stream(key)).splitlines()
        )
    ]
    ends = list(accumulate((len(row) + 1 for row in old), initial=0))
    with installation.objects.open_writer(key) as writer:
        writer.write(b"\n".join(old) + b"\n")
    for segment in world.rows("SELECT number, first_line - 1 AS first, lines FROM segments"):
        world.run(
            "UPDATE segments SET index_start = :start, index_end = :end WHERE number = :number",
            number=segment.number,
            start=ends[segment.first],
            end=ends[segment.first + segment.lines],
        )
    installation.deliver(splitter, _announced(installation))
    _assert_whole(world, batch)
    assert world.lines("queue", batch) == list(range(1, LINES + 1))
    starts = world.rows("SELECT start FROM requests ORDER BY line")
    assert len({row.start for row in starts}) == LINES


# The order by prefix


def test_claims_follow_the_order_by_prefix_and_retries_come_last(
    installation: Installation, world: World
) -> None:
    url, prompts = "/v1/chat/completions", [f"prompt {number} " * 100 for number in range(4)]
    asked = [[{"role": "user", "content": prompts[n % 4]}] for n in range(LINES)]
    lines = (line(str(n), url, messages=messages) for n, messages in enumerate(asked))
    file = installation.upload(lines, SegmentSize())
    batch = world.new_batch(input_file=file.id, endpoint=url)
    urgent = world.new_batch(deadline=datetime.now(UTC) + timedelta(minutes=5))
    world.split(urgent, 2)
    installation.splitter().split(batch)
    lease = world.queue.open_lease(Pool.SPOT, "w")
    claims = list(world.queue.claim(lease, Pool.SPOT, 30))
    assert [claim.batch for claim in claims[:3]] == [urgent, urgent, batch]
    claims = claims[2:]
    retried = claims[0]
    world.queue.settle(lease, [], [Returned(batch, retried.line, "again")])
    while more := world.queue.claim(lease, Pool.SPOT, 30):
        claims += more
    order = [claim.line for claim in claims]
    assert sorted(order[:-1]) == list(range(1, LINES + 1))
    assert order[-1] == retried.line
    assert sum((a - b) % 4 != 0 for a, b in pairwise(order[:-1])) == len(prompts) - 1
