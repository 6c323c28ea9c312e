"""One batch and its lines: what a page is told, whose it is, and how it is found."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from bench.portal_volume import fill
from lowtide.batches.detail_store import (
    BATCH,
    ERRORS,
    LINE,
    LINE_NOTES,
    LINES,
    NOTES,
    BatchDetailStore,
)
from lowtide.batches.list_store import COUNT, PAGES, BatchListStore
from lowtide.batches.model import BatchStatus, RequestStatus, SlaState
from lowtide.batches.views import MOST_ERRORS, MOST_NOTES, BatchFilter, BatchMark, BatchOrder
from lowtide.core.errors import NotFound
from lowtide.core.ids import DEFAULT_TENANT, BatchId, TenantId
from tests.plans import plan_nodes
from tests.worlds import emptied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tests.conftest import Database

STRANGER = TenantId(uuid4())
MOST_SECONDS = 0.2


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
    """A batch of 100 lines that runs, among others."""
    return _filled(emptied(shared_database), batches=100, requests=2080, largest=100)


@pytest.fixture
def reading(shared_database: Database) -> BatchDetailStore:
    """What an operator reads."""
    return BatchDetailStore(shared_database.engine("operator"))


def test_all_of_a_batch(reading: BatchDetailStore, small: BatchId) -> None:
    found = reading.details(None, small)
    assert (found.batch.total, found.batch.completed, found.batch.failed) == (100, 88, 8)
    assert (found.queued, found.running) == (10, 0)
    assert found.tenant_name == "default"
    assert len(found.notes) == MOST_NOTES
    assert found.notes[0].line == 99, "the newest comes first"
    assert {note.kind for note in found.notes} == {"interrupted"}
    assert [(error.lines, error.first_line) for error in found.errors] == [
        (3, 10),
        (3, 20),
        (3, 30),
    ]
    assert [(file.role, file.bytes) for file in found.files] == [("input", None)]


@pytest.mark.parametrize(
    ("status", "lines"),
    [
        pytest.param(None, range(1, 101), id="all"),
        pytest.param(RequestStatus.QUEUED, range(91, 101), id="queued"),
        pytest.param(RequestStatus.RUNNING, (), id="running"),
        pytest.param(RequestStatus.FAILED, range(10, 91, 20), id="failed"),
        pytest.param(RequestStatus.DEAD_LETTERED, range(20, 91, 20), id="dead-lettered"),
        pytest.param(RequestStatus.COMPLETED, [n for n in range(1, 91) if n % 10], id="completed"),
    ],
)
def test_lines_of_a_status(
    reading: BatchDetailStore, small: BatchId, status: RequestStatus | None, lines: range
) -> None:
    found: list[int] = []
    while page := reading.lines(None, small, status, after=found[-1] if found else 0, limit=7):
        assert status is None or {state.status for state in page} == {status}
        found += [state.line for state in page]
    assert found == list(lines)


@pytest.mark.parametrize(
    ("status", "custom_id", "lines"),
    [
        pytest.param(None, "request-9", [9, *range(90, 100)], id="a beginning"),
        pytest.param(None, "request-77", [77], id="all of it"),
        pytest.param(None, "77", [], id="not a middle"),
        pytest.param(None, "request-_", [], id="no pattern"),
        pytest.param(None, "REQUEST-7", [], id="as it is written"),
        pytest.param(RequestStatus.QUEUED, "request-9", range(91, 100), id="queued"),
        pytest.param(RequestStatus.RUNNING, "request", [], id="running"),
        pytest.param(RequestStatus.FAILED, "request-7", [70], id="failed"),
        pytest.param(RequestStatus.DEAD_LETTERED, "request-", range(20, 91, 20), id="dead"),
        pytest.param(RequestStatus.COMPLETED, "request-8", [8, *range(81, 90)], id="completed"),
    ],
)
def test_lines_are_found_by_how_their_custom_id_begins(
    reading: BatchDetailStore,
    small: BatchId,
    status: RequestStatus | None,
    custom_id: str,
    lines: Iterable[int],
) -> None:
    found: list[int] = []
    while page := reading.lines(
        None, small, status, custom_id, after=found[-1] if found else 0, limit=3
    ):
        found += [state.line for state in page]
    assert found == list(lines)


@pytest.mark.usefixtures("small")
def test_lines_that_a_cancellation_dropped_are_failed(
    reading: BatchDetailStore, shared_database: Database
) -> None:
    with shared_database.engine("owner").begin() as connection:
        batch = connection.execute(
            text("SELECT id FROM batches WHERE status = 'cancelled' LIMIT 1")
        ).scalar_one()
    found = reading.lines(None, batch, RequestStatus.FAILED, after=0, limit=100)
    assert [state.line for state in found] == [10, 19, 20]
    assert found[1].pool is None
    (named,) = reading.lines(None, batch, RequestStatus.FAILED, "request-19", after=0, limit=9)
    assert named.line == 19


def test_a_line_with_its_answer(reading: BatchDetailStore, small: BatchId) -> None:
    found = reading.line(None, small, 11)
    assert (found.start, found.length, found.body) == (6000, 599, '{"choices": []}')
    assert (found.input_tokens, found.output_tokens) == (100, 200)
    assert found.worker == "worker 00000000"
    assert [note.kind for note in found.notes] == ["retried"]
    waiting = reading.line(None, small, 95)
    assert (waiting.state.status, waiting.body, waiting.worker) == (
        RequestStatus.QUEUED,
        None,
        None,
    )


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda reading, batch: reading.details(STRANGER, batch), id="details"),
        pytest.param(lambda reading, batch: reading.line(STRANGER, batch, 1), id="line"),
        pytest.param(lambda reading, batch: reading.file(STRANGER, batch, "input", "x"), id="file"),
        pytest.param(
            lambda reading, _: reading.details(DEFAULT_TENANT, BatchId(uuid4())), id="unknown"
        ),
        pytest.param(lambda reading, batch: reading.line(DEFAULT_TENANT, batch, 101), id="no line"),
    ],
)
def test_what_is_not_there_or_not_yours_is_not_found(
    small: BatchId,
    shared_database: Database,
    read: Callable[[BatchDetailStore, BatchId], object],
) -> None:
    of_tenant = BatchDetailStore(shared_database.engine("api"))
    assert of_tenant.details(DEFAULT_TENANT, small).tenant_name is None
    assert of_tenant.lines(STRANGER, small, None, after=0, limit=9) == []
    with pytest.raises(NotFound):
        read(of_tenant, small)


@pytest.mark.slow
def test_a_million_requests_are_read_by_index_and_fast(database: Database) -> None:
    batch = _filled(database, batches=10_000, requests=1_000_000, largest=50_000)
    _check_plans(database, batch)
    _check_times(database, batch)


def _check_plans(database: Database, batch: BatchId) -> None:
    filters = dict.fromkeys(("tenant", "statuses", "sla", "user"))
    page = filters | {"after": batch, "limit": 51}
    lines = {"batch": batch, "after": 100, "limit": 101}
    statements: list[tuple[str, Mapping[str, Any], str]] = [
        (PAGES[BatchOrder.NEWEST], page, "batches_pkey"),
        (PAGES[BatchOrder.OLDEST], page, "batches_pkey"),
        (PAGES[BatchOrder.ACTIVE], page | {"rank": 1}, "batches_active_first"),
        (BATCH, {"batch": batch}, "batches_pkey"),
        (NOTES, {"batch": batch, "limit": MOST_NOTES}, "request_events_notes"),
        (ERRORS, {"batch": batch, "most": 10_000, "limit": MOST_ERRORS}, "results_failed"),
        (LINE, {"batch": batch, "line": 77}, "requests_pkey"),
        (LINE_NOTES, {"batch": batch, "line": 77}, "request_events_of_batch"),
    ]
    named = lines | {"custom_id": "request-49"}
    for status, index in (
        (None, "requests_pkey"),
        (RequestStatus.QUEUED, "queue_pkey"),
        (RequestStatus.RUNNING, "claims_pkey"),
        (RequestStatus.COMPLETED, "results_pkey"),
        (RequestStatus.FAILED, "results_failed"),
        (RequestStatus.DEAD_LETTERED, "results_failed"),
    ):
        statements += [
            (LINES[status, False], lines, index),
            (LINES[status, True], named, index),
            (LINES[status, True], named, "requests_pkey"),
        ]
    for sql, parameters, index in statements:
        nodes = plan_nodes(database.engine("operator"), sql, **parameters)
        assert index in {node.get("Index Name") for node in nodes}, sql
        scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"}
        # Claims are empty here, and workers are few.
        assert scanned <= {"claims", "workers"}, sql
    nodes = plan_nodes(database.engine("operator"), COUNT, **filters, most=1001)
    assert "Limit" in {node["Node Type"] for node in nodes}


def _check_times(database: Database, batch: BatchId) -> None:
    operator = database.engine("operator")
    lists, reading = BatchListStore(operator), BatchDetailStore(operator)
    rare = BatchFilter(frozenset({BatchStatus.EXPIRED}), user="user-9")
    nothing = BatchFilter(user="nobody")
    late = BatchFilter(sla=frozenset({SlaState.BREACHED}))
    middle = BatchMark(_middle(database))
    looks: dict[str, Callable[[], object]] = {
        "details": partial(reading.details, None, batch),
        "line": partial(reading.line, None, batch, 77),
    }
    for wanted in (BatchFilter(), rare, nothing, late):
        looks[f"count {wanted}"] = partial(lists.count, None, wanted, limit=1001)
        for order in BatchOrder:
            looks[f"{order} {wanted}"] = partial(
                lists.page, None, wanted, order, after=middle, limit=51
            )
    for status in (None, *RequestStatus):
        lines = partial(reading.lines, None, batch, status, after=0, limit=101)
        looks[f"lines {status}"] = lines
        for custom_id in ("request-4999", "nothing like it"):
            looks[f"lines {status} {custom_id}"] = partial(lines, custom_id)
    slow = {
        name: seconds for name, look in looks.items() if (seconds := _best(look)) > MOST_SECONDS
    }
    assert slow == {}


def _middle(database: Database) -> BatchId:
    with database.engine("owner").begin() as connection:
        found = connection.execute(text("SELECT id FROM batches ORDER BY id OFFSET 5000 LIMIT 1"))
        return BatchId(found.scalar_one())


def _best(look: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        look()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
