"""Search on a database: what matches, in which order, and whose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lowtide.core.ids import (
    DEFAULT_TENANT,
    format_batch_id,
    format_file_id,
    format_request_id,
    new_id,
)
from lowtide.files.index import FileSegment, render_rows
from lowtide.files.lines import InputLine
from lowtide.fleets.placement import DEFAULT_PLACEMENT
from lowtide.pipeline.split_store import Index
from lowtide.search.indexing import SearchIndexer
from lowtide.search.model import Kind
from lowtide.search.service import Search
from lowtide.search.store import SearchStore
from tests.worlds import PRICES, Running, World, gate, together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.core.ids import BatchId, TenantId


@pytest.fixture
def search(world: World) -> Search:
    """The search of tenants."""
    return Search(SearchStore(world.api))


@pytest.fixture
def everywhere(world: World) -> Search:
    """The search of operators."""
    return Search(SearchStore(world.database.engine("operator")))


def split(world: World, batch: BatchId, custom_ids: Sequence[str]) -> None:
    rows = render_rows([InputLine(n, name, n * 100, 90) for n, name in enumerate(custom_ids, 1)])
    index = Index((("m", len(custom_ids)),), [FileSegment(len(custom_ids), 0, len(rows))])
    with world.opened(batch, index) as transaction:
        assert transaction is not None
        transaction.copy([rows])
        assert transaction.start(index, DEFAULT_PLACEMENT, PRICES) == ()


def batch_of(world: World, *custom_ids: str, **changes: Any) -> BatchId:
    batch = world.new_batch(**changes)
    split(world, batch, custom_ids)
    return batch


def found(search: Search, text: str, scope: TenantId | None = DEFAULT_TENANT) -> list[str]:
    """Return kind, field and value of each match; an asterisk marks exact ones."""
    return [
        f"{match.kind} {match.field} {match.value}{'*' if match.is_exact else ''}"
        for match in search.find(scope, text).matches
    ]


@pytest.mark.parametrize("indexed", [True, False], ids=["indexed", "in the backlog"])
def test_requests_are_found_by_custom_id(world: World, search: Search, *, indexed: bool) -> None:
    older = batch_of(world, "doc-1", "doc-10", "doc-2", "Doc-1")
    newer = batch_of(world, "doc-1", "x")
    if indexed:
        assert SearchIndexer(world.worker).index(limit=100) == 6
    matches = search.find(DEFAULT_TENANT, "doc-1").matches
    assert [(match.id, match.name, match.line, match.is_exact) for match in matches] == [
        (format_request_id(newer, 1), "doc-1", 1, True),
        (format_request_id(older, 1), "doc-1", 1, True),
        (format_request_id(older, 2), "doc-10", 2, False),
    ]
    batch = matches[0].batch
    assert batch is not None
    assert (batch.id, batch.user, batch.status) == (newer, "u", "in_progress")


@pytest.mark.parametrize("name", ["a%b_c\\d", "日本語-17", "a\ud7ff", "😀😀", "it's"])
def test_any_custom_id_is_found_by_itself_and_by_its_start(
    world: World, search: Search, name: str
) -> None:
    batch_of(world, name, "other")
    for _ in range(2):
        assert found(search, name) == [f"request custom_id {name}*"]
        assert found(search, name[:2])[0].startswith(f"request custom_id {name}")
        SearchIndexer(world.worker).index(limit=1)


def test_batches_are_found_by_user_and_metadata(world: World, search: Search) -> None:
    metadata = {"team": "tide", "user": "ana", "empty": ""}
    batch = world.new_batch(user="ana", metadata=metadata)
    other = world.new_batch(user="anatol", metadata={"user": "tides"})
    assert found(search, "ana") == ["batch user ana*", "batch user anatol"]
    assert found(search, "tide") == ["batch metadata.team tide*", "batch metadata.user tides"]
    ids = [match.id for match in search.find(DEFAULT_TENANT, "tide").matches]
    assert ids == [format_batch_id(batch), format_batch_id(other)]


def test_every_id_is_found_with_and_without_its_prefix(world: World, search: Search) -> None:
    file = world.file(filename="in.jsonl")
    batch = batch_of(world, "a", "b", input_file=file.id)
    ids = {
        Kind.BATCH: format_batch_id(batch),
        Kind.FILE: format_file_id(file.id),
        Kind.REQUEST: format_request_id(batch, 2),
    }
    for kind, id_ in ids.items():
        digits = id_.replace("file-", "").rpartition("_")[2]
        for text in (id_, digits):
            exact = search.find(DEFAULT_TENANT, text).only_exact
            assert exact is not None
            assert (exact.kind, exact.id, exact.field) == (kind, id_, "id")
            assert exact.batch is not None
            assert exact.batch.id == batch
        cut = search.find(DEFAULT_TENANT, id_[:-1])
        assert id_ in [match.id for match in cut.matches]
        assert cut.only_exact is None


def test_requests_are_found_by_the_start_of_their_id(world: World, search: Search) -> None:
    batch = batch_of(world, "a", "b")
    world.new_batch()  # has no requests
    matches = search.find(DEFAULT_TENANT, f"batch_req_{batch.hex[:4]}").matches
    assert [match.line for match in matches] == [1, 2]


def test_file_comes_with_the_newest_batch_that_reads_or_wrote_it(
    world: World, search: Search
) -> None:
    read, written, unused = world.file(), world.file(), world.file()
    world.new_batch(input_file=read.id)
    newest = world.new_batch(input_file=read.id)
    world.run("UPDATE batches SET error_file_id = :f WHERE id = :b", f=written.id, b=newest)
    batches = {}
    for file in (read, written, unused):
        match = search.find(DEFAULT_TENANT, format_file_id(file.id)).only_exact
        assert match is not None
        batches[file.id] = None if match.batch is None else match.batch.id
    assert batches == {read.id: newest, written.id: newest, unused.id: None}


def test_tenant_finds_nothing_of_another(world: World, search: Search, everywhere: Search) -> None:
    theirs = world.tenant("theirs")
    file = world.file(theirs)
    batch = batch_of(
        world, "secret-1", tenant=theirs, user="eve", metadata={"k": "value"}, input_file=file.id
    )
    texts = [
        "secret-1", "secret", "eve", "value", format_batch_id(batch), batch.hex,
        format_file_id(file.id), format_request_id(batch, 1), f"batch_req_{batch.hex[:8]}",
    ]  # fmt: skip
    for _ in range(2):
        for text in texts:
            assert found(search, text) == found(everywhere, text, DEFAULT_TENANT) == []
            assert found(search, text, theirs) == found(everywhere, text, None) != []
        SearchIndexer(world.worker).index(limit=1)


def test_operator_sees_whose_matches_they_are(world: World, everywhere: Search) -> None:
    theirs = world.tenant("theirs")
    for tenant in (DEFAULT_TENANT, theirs):
        batch_of(world, "same", tenant=tenant, user="same")
    SearchIndexer(world.worker).index(limit=1)
    result = everywhere.find(None, "same")
    names = [(match.kind.value, match.tenant_name) for match in result.matches]
    assert names == [
        ("batch", "theirs"), ("batch", "default"), ("request", "theirs"), ("request", "default"),
    ]  # fmt: skip
    only = everywhere.find(theirs, "same").matches
    assert [match.batch and match.batch.user for match in only] == ["same", "same"]
    assert len(only) == 2


def test_each_kind_has_a_limit(world: World, search: Search) -> None:
    for _ in range(3):
        batch_of(world, *(f"nightly-{n}" for n in range(10)), user="nightly")
    SearchIndexer(world.worker).index(limit=20)
    result = search.find(DEFAULT_TENANT, "nightly")
    assert [match.kind for match in result.matches].count(Kind.REQUEST) == 20
    assert result.more == {Kind.REQUEST}
    few = search.find(DEFAULT_TENANT, "nightly", limit=2)
    assert [match.kind for match in few.matches] == [Kind.BATCH] * 2 + [Kind.REQUEST] * 2
    assert few.more == {Kind.BATCH, Kind.REQUEST}


def test_indexer_takes_each_batch_once(world: World) -> None:
    for _ in range(4):
        batch_of(world, "a", "b", "c")
    indexer = SearchIndexer(world.worker)
    assert indexer.index(limit=4) == 6
    assert together(*(lambda: indexer.index(limit=100),) * 3).count(0) >= 1
    assert indexer.index(limit=100) == 0
    assert world.value("SELECT count(*) FROM custom_ids") == 12
    assert (
        world.value("SELECT count(*) FROM (SELECT DISTINCT batch_id, line FROM custom_ids) c") == 12
    )


def test_request_is_found_once_while_it_is_indexed(world: World, search: Search) -> None:
    batch_of(world, "moving")
    engine = world.own_engine("worker")
    indexer = SearchIndexer(engine)
    with gate(engine, before="COMMIT") as held:
        running = Running(lambda: indexer.index(limit=1))
        held.wait()
        assert found(search, "moving") == ["request custom_id moving*"]
        held.opened.set()
        assert running.result() == 1
    assert found(search, "moving") == ["request custom_id moving*"]


def test_each_value_of_a_batch_is_stored_once(world: World) -> None:
    file = world.file()
    fields: dict[str, Any] = {"idempotency_key": "k", "user": "once", "metadata": {"user": "once"}}
    first = world.new_batch(input_file=file.id, **fields)
    assert world.value("SELECT count(*) FROM search_backlog") == 0
    world.new_batch(input_file=file.id, **fields)
    with world.database.engine("operator").begin() as connection:
        rows = connection.exec_driver_sql("SELECT batch_id, field, value FROM batch_terms").all()
    assert [tuple(row) for row in rows] == [(first, "user", "once")]


def test_exact_match_precedes_the_start_of_an_id(world: World, search: Search) -> None:
    older = world.new_batch()
    start = older.hex[:6]
    newer = world.new_batch(user=start)
    matches = search.find(DEFAULT_TENANT, start).matches
    assert [(match.id, match.field, match.is_exact) for match in matches[:2]] == [
        (format_batch_id(newer), "user", True),
        (format_batch_id(older), "id", False),
    ]


def test_new_id_alone_finds_nothing(search: Search) -> None:
    assert found(search, new_id().hex) == []
