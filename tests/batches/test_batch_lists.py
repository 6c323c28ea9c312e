"""Lists of batches: filters, order, pages, tenant isolation."""

from __future__ import annotations

from datetime import timedelta
from itertools import product
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from lowtide.batches.list_store import BatchListStore
from lowtide.batches.model import CANCELLABLE_STATUSES, FINAL_STATUSES, BatchStatus, SlaState
from lowtide.batches.views import BatchFilter, BatchOrder, mark_of
from lowtide.core.ids import DEFAULT_TENANT, BatchId, TenantId
from tests.portal.seeds import SeedBatch, add_batch
from tests.worlds import emptied

if TYPE_CHECKING:
    from lowtide.batches.model import Batch
    from tests.conftest import Database

HOUR = timedelta(hours=1)
EVERYTHING = BatchFilter()
SEEDS = [
    SeedBatch(
        user=f"User {status} {at_risk}_%",
        status=status,
        age=timedelta(minutes=3 * number + 2 * late),
        window=HOUR * (24 - number % 3),
        took=HOUR * 30 if late else HOUR,
        at_risk=at_risk and status not in FINAL_STATUSES,
        completed=int(late),
    )
    for number, (status, at_risk) in enumerate(product(BatchStatus, (False, True)))
    for late in (False, True)
]


@pytest.fixture(scope="module")
def lists(shared_database: Database) -> BatchListStore:
    """An operator's lists, with batches in every state."""
    database = emptied(shared_database)
    for seed in SEEDS:
        add_batch(database.engine("worker"), seed)
    return BatchListStore(database.engine("operator"))


def _all(
    lists: BatchListStore,
    batch_filter: BatchFilter = EVERYTHING,
    order: BatchOrder = BatchOrder.NEWEST,
    scope: TenantId | None = None,
) -> list[Batch]:
    batches: list[Batch] = []
    after = None
    while page := lists.page(scope, batch_filter, order, after=after, limit=5):
        batches += page
        after = mark_of(page[-1])
    return batches


@pytest.mark.parametrize("order", BatchOrder)
def test_pages_hold_every_batch_once_in_order(lists: BatchListStore, order: BatchOrder) -> None:
    batches = _all(lists, order=order)
    keys = {
        BatchOrder.NEWEST: lambda batch: -batch.id.int,
        BatchOrder.OLDEST: lambda batch: batch.id.int,
        BatchOrder.ACTIVE: lambda batch: (batch.status in FINAL_STATUSES, -batch.id.int),
        BatchOrder.DEADLINE: lambda batch: (batch.status in FINAL_STATUSES, batch.deadline),
    }
    assert len({batch.id for batch in batches}) == len(batches) == len(SEEDS)
    assert batches == sorted(batches, key=keys[order])


@pytest.mark.parametrize("state", SlaState)
def test_sla_filter_agrees_with_model(lists: BatchListStore, state: SlaState) -> None:
    batch_filter = BatchFilter(sla=frozenset({state}))
    expected = [batch.id for batch in _all(lists) if batch.sla_state is state]
    assert expected
    assert [batch.id for batch in _all(lists, batch_filter)] == expected
    assert lists.count(None, batch_filter, limit=100) == len(expected)


@pytest.mark.parametrize(
    ("batch_filter", "count"),
    [
        pytest.param(EVERYTHING, 32, id="everything"),
        pytest.param(
            BatchFilter(frozenset({BatchStatus.EXPIRED, BatchStatus.FAILED})), 8, id="statuses"
        ),
        pytest.param(BatchFilter(user="user EXPIRED"), 4, id="part of a user, in any case"),
        pytest.param(BatchFilter(user="TRUE_%"), 16, id="literal wildcards"),
        pytest.param(BatchFilter(user="_%_"), 0, id="only wildcards"),
        pytest.param(BatchFilter(tenant=DEFAULT_TENANT), 32, id="tenant"),
        pytest.param(BatchFilter(tenant=TenantId(uuid4())), 0, id="another tenant"),
        pytest.param(BatchFilter(all_failed=True), 2, id="all requests failed"),
    ],
)
def test_filter_selects_batches(
    lists: BatchListStore, batch_filter: BatchFilter, count: int
) -> None:
    assert len(_all(lists, batch_filter)) == lists.count(None, batch_filter, limit=100) == count


def test_count_stops_at_limit(lists: BatchListStore) -> None:
    assert lists.count(None, EVERYTHING, limit=7) == 7


def test_cancellable_lists_active_batches(lists: BatchListStore) -> None:
    batches = _all(lists, order=BatchOrder.OLDEST)
    expected = [batch.id for batch in batches if batch.status in CANCELLABLE_STATUSES]
    assert [batch for _, batch in lists.cancellable(None, EVERYTHING, limit=100)] == expected
    ids = [*expected[:2], BatchId(uuid4())]
    assert [batch for _, batch in lists.cancellable(None, ids, limit=100)] == ids[:2]
    assert lists.cancellable(None, [], limit=100) == []
    assert len(lists.cancellable(None, EVERYTHING, limit=3)) == 3


def test_tenant_reads_only_its_own_batches(
    lists: BatchListStore, shared_database: Database
) -> None:
    tenant_lists = BatchListStore(shared_database.engine("api"))
    stranger = TenantId(uuid4())
    assert len(_all(tenant_lists, scope=DEFAULT_TENANT)) == len(SEEDS)
    assert _all(tenant_lists, scope=stranger) == []
    assert tenant_lists.count(stranger, EVERYTHING, limit=9) == 0
    assert tenant_lists.count(stranger, BatchFilter(tenant=DEFAULT_TENANT), limit=9) == 0
    assert tenant_lists.cancellable(stranger, EVERYTHING, limit=9) == []
    assert tenant_lists.tenants(DEFAULT_TENANT) == {}
    assert lists.tenants(None) == {DEFAULT_TENANT: "default"}
