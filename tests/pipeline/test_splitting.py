"""Splitting a stored file into queued requests, or failing its batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lowtide.core.errors import Unavailable
from lowtide.files.lines import Limits, checksum_of
from lowtide.objects.store import ObstoreObjects
from lowtide.pipeline.split import Splitter
from tests.fleets.single import SINGLE
from tests.http.forms import line
from tests.worker.workers import Sink, WaitingPublisher

if TYPE_CHECKING:
    from lowtide.core.ids import BatchId
    from tests.worlds import World


def _splitter(
    world: World, batch: BatchId, content: bytes | None
) -> tuple[Splitter, ObstoreObjects]:
    store = ObstoreObjects("memory://")
    if content is not None:
        with store.open_writer(world.row(batch).input_key) as writer:
            writer.write(content)
    publisher = WaitingPublisher(Sink(), world.outbox)
    return Splitter(world.splits, store, Limits(), SINGLE, publisher), store


def test_valid_file_is_queued_once(world: World) -> None:
    batch = world.new_batch()
    content = b"".join(line(str(number)) for number in range(100))
    splitter, store = _splitter(world, batch, content)
    splitter.split(batch)
    splitter.split(batch)
    row = world.row(batch)
    assert (row.status, row.total, row.model) == ("in_progress", 100, "m")
    requests = world.rows("SELECT * FROM requests ORDER BY line")
    ranges = [(request.start, request.length) for request in requests]
    assert [bytes(part) + b"\n" for part in store.read_ranges(row.input_key, ranges)] == (
        content.splitlines(keepends=True)
    )
    checksums = [checksum_of(each) for each in content.splitlines()]
    assert [request.checksum for request in requests] == checksums


@pytest.mark.parametrize(
    ("content", "codes"),
    [
        pytest.param(b"", ["empty_file"], id="empty"),
        pytest.param(
            line("a") + b"{}\n",
            ["missing_custom_id", "invalid_method", "invalid_url", "missing_body"],
            id="invalid line",
        ),
        pytest.param(line("a", url="/v1/responses"), ["invalid_url"], id="wrong endpoint"),
        pytest.param(line("a") * 2, ["duplicate_custom_id"], id="duplicate in the last line"),
        pytest.param(None, ["input_missing"], id="missing from the store"),
    ],
)
def test_invalid_file_fails_batch_and_queues_nothing(
    world: World, content: bytes | None, codes: list[str]
) -> None:
    batch = world.new_batch()
    splitter, _ = _splitter(world, batch, content)
    splitter.split(batch)
    row = world.row(batch)
    assert row.status == "failed"
    assert [problem["code"] for problem in row.errors] == codes
    assert world.lines("requests", batch) == world.lines("queue", batch) == []


def test_unavailable_store_leaves_batch_validating(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = world.new_batch()
    content = b"".join(line(str(number)) for number in range(1000))
    splitter, store = _splitter(world, batch, content)
    real = store.stream

    def broken(key: str, *arguments: Any) -> Any:
        whole = b"".join(real(key, *arguments))
        yield whole[: len(whole) // 2]
        raise Unavailable("The store went away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "stream", broken)
        with pytest.raises(Unavailable):
            splitter.split(batch)
    assert world.row(batch).status == "validating"
    assert world.lines("requests", batch) == []
    splitter.split(batch)
    assert len(world.lines("queue", batch)) == 1000
