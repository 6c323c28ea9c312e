"""Reads of a batch and its requests: details, search, tenant isolation, query plans."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from bench.portal_volume import fill
from lowtide.batches.detail_store import (
    BATCH,
    DEAD_LETTERS,
    ERRORS,
    LINE,
    LINE_NOTES,
    LINES,
    NOTES,
    BatchDetailStore,
)
from lowtide.batches.list_store import COUNT, PAGES, BatchListStore
from lowtide.batches.model import BatchStatus, RequestStatus, SlaState
from lowtide.batches.views import MAX_ERRORS, MAX_NOTES, BatchFilter, BatchMark, BatchOrder
from lowtide.core.errors import NotFound
from lowtide.core.ids import DEFAULT_TENANT, BatchId, TenantId
from tests.plans import plan_nodes
from tests.worlds import emptied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tests.conftest import Database

STRANGER = TenantId(uuid4())
MAX_SECONDS = 0.2


def _filled(database: Database, *, batches: int, requests: int, largest: int) -> BatchId:
    return fill(
        database.engine("worker"),
        database.engine("owner"),
        batches=batches,
        requests=requests,
        largest=largest,
    )


@pytest.fixture(scope="module")
def small(shared_database: Database) -> BatchId:
    """A running batch of 100 requests, among others."""
    return _filled(emptied(shared_database), batches=100, requests=2080, largest=100)


@pytest.fixture
def store(shared_database: Database) -> BatchDetailStore:
    """The store as an operator."""
    return BatchDetailStore(shared_database.engine("operator"))


def test_details_of_running_batch(store: BatchDetailStore, small: BatchId) -> None:
    details = store.details(None, small)
    assert (details.batch.total, details.batch.completed, details.batch.failed) == (100, 81, 9)
    assert (details.batch.outcomes.queued, details.batch.outcomes.running) == (10, 0)
    assert details.tenant_name == "default"
    assert len(details.notes) == MAX_NOTES
    assert details.notes[0].line == 99, "the newest is first"
    assert {note.kind for note in details.notes} == {"interrupted"}
    assert [(error.lines, error.first_line) for error in details.errors] == [
        (3, 10),
        (3, 20),
        (3, 30),
    ]
    assert [(file.role, file.bytes) for file in details.files] == [("input", None)]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param(None, range(1, 101), id="all"),
        pytest.param(RequestStatus.QUEUED, range(91, 101), id="queued"),
        pytest.param(RequestStatus.RUNNING, (), id="running"),
        pytest.param(RequestStatus.FAILED, range(10, 91, 10), id="failed"),
        pytest.param(RequestStatus.EXPIRED, (), id="expired"),
        pytest.param(RequestStatus.CANCELLED, (), id="cancelled"),
        pytest.param(RequestStatus.COMPLETED, [n for n in range(1, 91) if n % 10], id="completed"),
    ],
)
def test_requests_are_filtered_by_status(
    store: BatchDetailStore, small: BatchId, status: RequestStatus | None, expected: range
) -> None:
    lines: list[int] = []
    while page := store.lines(None, small, status, after=lines[-1] if lines else 0, limit=7):
        assert status is None or {state.status for state in page} == {status}
        lines += [state.line for state in page]
    assert lines == list(expected)


@pytest.mark.parametrize(
    ("status", "custom_id", "expected"),
    [
        pytest.param(None, "request-9", [9, *range(90, 100)], id="prefix"),
        pytest.param(None, "request-77", [77], id="whole id"),
        pytest.param(None, "77", [], id="infix"),
        pytest.param(None, "request-_", [], id="wildcard"),
        pytest.param(None, "REQUEST-7", [], id="other case"),
        pytest.param(RequestStatus.QUEUED, "request-9", range(91, 100), id="queued"),
        pytest.param(RequestStatus.RUNNING, "request", [], id="running"),
        pytest.param(RequestStatus.FAILED, "request-7", [70], id="failed"),
        pytest.param(RequestStatus.COMPLETED, "request-8", [8, *range(81, 90)], id="completed"),
    ],
)
def test_requests_are_found_by_custom_id_prefix(
    store: BatchDetailStore,
    small: BatchId,
    status: RequestStatus | None,
    custom_id: str,
    expected: Iterable[int],
) -> None:
    lines: list[int] = []
    while page := store.lines(
        None, small, status, custom_id, after=lines[-1] if lines else 0, limit=3
    ):
        lines += [state.line for state in page]
    assert lines == list(expected)


@pytest.mark.usefixtures("small")
def test_requests_dropped_by_cancellation_are_cancelled(
    store: BatchDetailStore, shared_database: Database
) -> None:
    with shared_database.engine("owner").begin() as connection:
        batch = connection.execute(
            text("SELECT id FROM batches WHERE status = 'cancelled' LIMIT 1")
        ).scalar_one()
    page = store.lines(None, batch, RequestStatus.CANCELLED, after=0, limit=100)
    assert [state.line for state in page] == [19, 20]
    assert (page[0].pool, page[0].error_code) == (None, "batch_cancelled")
    (request,) = store.lines(None, batch, RequestStatus.CANCELLED, "request-19", after=0, limit=9)
    assert request.line == 19


def test_request_includes_its_answer(store: BatchDetailStore, small: BatchId) -> None:
    request = store.line(None, small, 11)
    assert (request.start, request.length, request.body) == (6000, 599, b'{"choices": []}')
    assert (request.input_tokens, request.output_tokens) == (100, 200)
    assert request.worker == "worker 00000000"
    assert [note.kind for note in request.notes] == ["retried"]
    queued = store.line(None, small, 95)
    assert (queued.state.status, queued.body, queued.worker) == (
        RequestStatus.QUEUED,
        None,
        None,
    )


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda store, batch: store.details(STRANGER, batch), id="details"),
        pytest.param(lambda store, batch: store.line(STRANGER, batch, 1), id="line"),
        pytest.param(lambda store, batch: store.file(STRANGER, batch, "input", "x"), id="file"),
        pytest.param(
            lambda store, _: store.details(DEFAULT_TENANT, BatchId(uuid4())), id="unknown"
        ),
        pytest.param(lambda store, batch: store.line(DEFAULT_TENANT, batch, 101), id="no line"),
    ],
)
def test_missing_and_foreign_batches_raise_not_found(
    small: BatchId,
    shared_database: Database,
    read: Callable[[BatchDetailStore, BatchId], object],
) -> None:
    tenant_store = BatchDetailStore(shared_database.engine("api"))
    assert tenant_store.details(DEFAULT_TENANT, small).tenant_name is None
    assert tenant_store.lines(STRANGER, small, None, after=0, limit=9) == []
    with pytest.raises(NotFound):
        read(tenant_store, small)


@pytest.mark.slow
def test_million_requests_are_read_by_index_and_fast(database: Database) -> None:
    batch = _filled(database, batches=10_000, requests=1_000_000, largest=50_000)
    _check_plans(database, batch)
    _check_times(database, batch)


def _check_plans(database: Database, batch: BatchId) -> None:
    filters: dict[str, Any] = dict.fromkeys(("tenant", "statuses", "sla", "user"))
    filters |= {"all_failed": False, "ended_lately": False}
    page = filters | {"after": batch, "limit": 51}
    lines = {"batch": batch, "after": 100, "limit": 101}
    statements: list[tuple[str, Mapping[str, Any], str]] = [
        (PAGES[BatchOrder.NEWEST], page, "batches_pkey"),
        (PAGES[BatchOrder.OLDEST], page, "batches_pkey"),
        (PAGES[BatchOrder.ACTIVE], page | {"rank": 1}, "batches_active_first"),
        (
            PAGES[BatchOrder.DEADLINE],
            page | {"rank": 1, "deadline": datetime.now(UTC)},
            "batches_urgent_first",
        ),
        (BATCH, {"batch": batch}, "batches_pkey"),
        (NOTES, {"batch": batch, "limit": MAX_NOTES}, "request_events_notes"),
        (ERRORS, {"batch": batch, "most": 10_000, "limit": MAX_ERRORS}, "results_failed"),
        (LINE, {"batch": batch, "line": 77}, "requests_pkey"),
        (LINE_NOTES, {"batch": batch, "line": 77}, "request_events_of_batch"),
    ]
    search = lines | {"custom_id": "request-49"}
    for status, index in (
        (None, "requests_pkey"),
        (RequestStatus.QUEUED, "queued_runs_pkey"),
        (RequestStatus.RUNNING, "claimed_runs_pkey"),
        (RequestStatus.COMPLETED, "results_pkey"),
        (RequestStatus.FAILED, "results_failed"),
    ):
        statements += [
            (LINES[status, False], lines, index),
            (LINES[status, True], search, index),
            (LINES[status, True], search, "requests_pkey"),
        ]
    statements += [
        (DEAD_LETTERS[False], lines, "results_failed"),
        (DEAD_LETTERS[True], search, "results_failed"),
    ]
    for sql, parameters, index in statements:
        nodes = plan_nodes(database.engine("operator"), sql, **parameters)
        assert index in {node.get("Index Name") for node in nodes}, sql
        scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
        # Claims are empty here, and workers are few.
        assert scanned <= {"claimed_runs", "workers"}, sql
    nodes = plan_nodes(database.engine("operator"), COUNT, **filters, most=1001)
    assert "Limit" in {node["Node Type"] for node in nodes}


def _check_times(database: Database, batch: BatchId) -> None:
    operator = database.engine("operator")
    lists, store = BatchListStore(operator), BatchDetailStore(operator)
    rare = BatchFilter(frozenset({BatchStatus.EXPIRED}), user="user-9")
    nothing = BatchFilter(user="nobody")
    late = BatchFilter(sla=frozenset({SlaState.MISSED}))
    middle = BatchMark(_middle(database), active=False, deadline=datetime.now(UTC))
    reads: dict[str, Callable[[], object]] = {
        "details": partial(store.details, None, batch),
        "line": partial(store.line, None, batch, 77),
    }
    for batch_filter in (BatchFilter(), rare, nothing, late):
        reads[f"count {batch_filter}"] = partial(lists.count, None, batch_filter, limit=1001)
        for order in BatchOrder:
            reads[f"{order} {batch_filter}"] = partial(
                lists.page, None, batch_filter, order, after=middle, limit=51
            )
    for status in (None, *RequestStatus):
        lines = partial(store.lines, None, batch, status, after=0, limit=101)
        reads[f"lines {status}"] = lines
        for custom_id in ("request-4999", "nothing like it"):
            reads[f"lines {status} {custom_id}"] = partial(lines, custom_id)
    slow = {name: seconds for name, read in reads.items() if (seconds := _best(read)) > MAX_SECONDS}
    assert slow == {}


def _middle(database: Database) -> BatchId:
    with database.engine("owner").begin() as connection:
        row = connection.execute(text("SELECT id FROM batches ORDER BY id OFFSET 5000 LIMIT 1"))
        return BatchId(row.scalar_one())


def _best(read: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
