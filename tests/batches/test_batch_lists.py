"""Lists of batches: what a filter finds, in which order, page by page."""

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
        took=HOUR * 30 if late else HOUR,
        at_risk=at_risk and status not in FINAL_STATUSES,
    )
    for number, (status, at_risk) in enumerate(product(BatchStatus, (False, True)))
    for late in (False, True)
]


@pytest.fixture(scope="module")
def lists(shared_database: Database) -> BatchListStore:
    """Batches in every state."""
    database = emptied(shared_database)
    for seed in SEEDS:
        add_batch(database.engine("worker"), seed)
    return BatchListStore(database.engine("operator"))


def _all(
    lists: BatchListStore,
    wanted: BatchFilter = EVERYTHING,
    order: BatchOrder = BatchOrder.NEWEST,
    scope: TenantId | None = None,
) -> list[Batch]:
    found: list[Batch] = []
    after = None
    while page := lists.page(scope, wanted, order, after=after, limit=5):
        found += page
        after = mark_of(page[-1])
    return found


@pytest.mark.parametrize("order", BatchOrder)
def test_pages_in_order_have_every_batch_once(lists: BatchListStore, order: BatchOrder) -> None:
    found = _all(lists, order=order)
    keys = {
        BatchOrder.NEWEST: lambda batch: -batch.id.int,
        BatchOrder.OLDEST: lambda batch: batch.id.int,
        BatchOrder.ACTIVE: lambda batch: (batch.status in FINAL_STATUSES, -batch.id.int),
    }
    assert len({batch.id for batch in found}) == len(found) == len(SEEDS)
    assert found == sorted(found, key=keys[order])


@pytest.mark.parametrize("state", SlaState)
def test_sla_states_are_those_of_the_domain(lists: BatchListStore, state: SlaState) -> None:
    wanted = BatchFilter(sla=frozenset({state}))
    expected = [batch.id for batch in _all(lists) if batch.sla_state is state]
    assert expected
    assert [batch.id for batch in _all(lists, wanted)] == expected
    assert lists.count(None, wanted, limit=100) == len(expected)


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        pytest.param(EVERYTHING, 32, id="everything"),
        pytest.param(
            BatchFilter(frozenset({BatchStatus.EXPIRED, BatchStatus.FAILED})), 8, id="statuses"
        ),
        pytest.param(BatchFilter(user="user EXPIRED"), 4, id="part of a user, in any case"),
        pytest.param(BatchFilter(user="TRUE_%"), 16, id="no wildcards"),
        pytest.param(BatchFilter(user="_%_"), 0, id="no wildcards either"),
        pytest.param(BatchFilter(tenant=DEFAULT_TENANT), 32, id="tenant"),
        pytest.param(BatchFilter(tenant=TenantId(uuid4())), 0, id="another tenant"),
    ],
)
def test_filters(lists: BatchListStore, wanted: BatchFilter, count: int) -> None:
    assert len(_all(lists, wanted)) == lists.count(None, wanted, limit=100) == count


def test_counting_ends(lists: BatchListStore) -> None:
    assert lists.count(None, EVERYTHING, limit=7) == 7


def test_what_can_be_cancelled(lists: BatchListStore) -> None:
    batches = _all(lists, order=BatchOrder.OLDEST)
    expected = [batch.id for batch in batches if batch.status in CANCELLABLE_STATUSES]
    assert [batch for _, batch in lists.cancellable(None, EVERYTHING, limit=100)] == expected
    ids = [*expected[:2], BatchId(uuid4())]
    assert [batch for _, batch in lists.cancellable(None, ids, limit=100)] == ids[:2]
    assert lists.cancellable(None, [], limit=100) == []
    assert len(lists.cancellable(None, EVERYTHING, limit=3)) == 3


def test_a_tenant_sees_its_own_alone(lists: BatchListStore, shared_database: Database) -> None:
    of_tenant = BatchListStore(shared_database.engine("api"))
    stranger = TenantId(uuid4())
    assert len(_all(of_tenant, scope=DEFAULT_TENANT)) == len(SEEDS)
    assert _all(of_tenant, scope=stranger) == []
    assert of_tenant.count(stranger, EVERYTHING, limit=9) == 0
    assert of_tenant.count(stranger, BatchFilter(tenant=DEFAULT_TENANT), limit=9) == 0
    assert of_tenant.cancellable(stranger, EVERYTHING, limit=9) == []
    assert of_tenant.tenants(DEFAULT_TENANT) == {}
    assert lists.tenants(None) == {DEFAULT_TENANT: "default"}
