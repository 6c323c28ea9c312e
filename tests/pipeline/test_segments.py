"""Splits of large batches, a segment at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowtide.events.model import EventType
from lowtide.files.lines import checksum_of
from tests.http.forms import line
from tests.pipeline.segmented import LINES, SIZE, Installation
from tests.worlds import World, together

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
