"""Every kind of batch: the API, the stores and the metrics agree with facts written by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from lowtide.batches.detail_store import BatchDetailStore
from lowtide.batches.list_store import BatchListStore
from lowtide.batches.model import OPENAI_COUNTS, RequestStatus, SlaState
from lowtide.batches.views import BatchFilter, BatchOrder
from lowtide.core.ids import DEFAULT_TENANT, BatchId, format_batch_id
from lowtide.core.pools import Pool
from lowtide.planning.reasons import Reason, describe
from lowtide.status.snapshot_store import SnapshotStore
from tests.kinds import BOUND, KINDS, Builder

if TYPE_CHECKING:
    from lowtide.status.snapshot import SystemSnapshot
    from tests.conftest import Database
    from tests.http.conftest import Api
    from tests.worlds import World


@pytest.fixture
def batches(world: World) -> dict[str, BatchId]:
    return Builder(world).build()


@pytest.fixture
def operator_lists(shared_database: Database) -> BatchListStore:
    return BatchListStore(shared_database.engine("operator"))


@pytest.fixture
def snapshot(batches: dict[str, BatchId], shared_database: Database) -> SystemSnapshot:  # noqa: ARG001
    return SnapshotStore(shared_database.engine("operator")).read(for_metrics=True)


def test_batch_object_shows_the_facts(api: Api, batches: dict[str, BatchId]) -> None:
    listed = {batch["id"]: batch for batch in api("GET", "/v1/batches?limit=100").json["data"]}
    assert len(listed) == len(KINDS)
    for name, kind in KINDS.items():
        shown = api("GET", f"/v1/batches/{format_batch_id(batches[name])}").json
        extension = shown["x_lowtide"]
        # The time between the two calls moves it.
        eta = {"eta": extension["eta"]}
        assert listed[shown["id"]]["x_lowtide"] | eta == extension
        assert listed[shown["id"]] == shown | {"x_lowtide": listed[shown["id"]]["x_lowtide"]}
        assert (name, shown["status"], extension["sla_state"]) == (name, kind.status, kind.sla)
        assert (name, extension["outcomes"]) == (name, asdict(kind.outcomes))
        counts = {"total": kind.total, "completed": 0, "failed": 0}
        for status, count in OPENAI_COUNTS.items():
            if count is not None:
                counts[count] += kind.outcomes.of(status)
        assert (name, shown["request_counts"]) == (name, counts)
        assert (extension["risk"] is not None) is kind.at_risk


def test_batch_at_risk_says_why(api: Api, batches: dict[str, BatchId]) -> None:
    risk = api("GET", f"/v1/batches/{format_batch_id(batches['at risk'])}").json["x_lowtide"][
        "risk"
    ]
    assert (risk["reason"], risk["bound"]) == ("deadline_bound", asdict(BOUND))
    assert risk["text"] == describe(Reason.DEADLINE_BOUND, BOUND)


def test_requests_of_each_outcome_are_counted_and_listed_alike(
    api: Api, batches: dict[str, BatchId], shared_database: Database
) -> None:
    details = BatchDetailStore(shared_database.engine("operator"))
    for name, kind in KINDS.items():
        path = f"/v1/batches/{format_batch_id(batches[name])}/requests"
        everything = api("GET", path).json["data"]
        counted = Counter(request["status"] for request in everything)
        dead_lettered = [request for request in everything if request["dead_lettered"]]
        assert len(dead_lettered) == kind.outcomes.dead_lettered
        assert api("GET", f"{path}?dead_lettered=true").json["data"] == dead_lettered
        for status in RequestStatus:
            expected = kind.outcomes.of(status)
            requests = api("GET", f"{path}?status={status}").json["data"]
            rows = details.lines(None, batches[name], status, after=0, limit=100)
            assert (name, status, counted[status], len(requests), len(rows)) == (
                name, status, expected, expected, expected,
            )  # fmt: skip


def test_request_without_a_result_has_an_error(api: Api, batches: dict[str, BatchId]) -> None:
    for name, status, code in (
        ("expired", "Expired", "batch_expired"),
        ("expiring", "Expired", "batch_expired"),
        ("cancelled", "Cancelled", "batch_cancelled"),
    ):
        path = f"/v1/batches/{format_batch_id(batches[name])}/requests?status={status}"
        requests = api("GET", path).json["data"]
        assert {request["error_code"] for request in requests} == {code}
        assert all(request["error_message"] for request in requests)


@pytest.mark.parametrize("state", SlaState)
def test_sla_filter_finds_the_kinds(
    operator_lists: BatchListStore, batches: dict[str, BatchId], state: SlaState
) -> None:
    found = operator_lists.page(
        None, BatchFilter(sla=frozenset({state})), BatchOrder.OLDEST, after=None, limit=100
    )
    names = {batch: name for name, batch in batches.items()}
    assert {names[batch.id] for batch in found} == {
        name for name, kind in KINDS.items() if kind.sla is state
    }


def test_metrics_count_what_the_batches_do(snapshot: SystemSnapshot) -> None:
    (tenant,) = snapshot.tenants
    assert tenant.tenant == DEFAULT_TENANT
    depth = tenant.depths[Pool.SPOT]
    assert depth.queued == sum(kind.outcomes.queued for kind in KINDS.values())
    assert depth.running == sum(kind.outcomes.running for kind in KINDS.values())
    assert tenant.at_risk == sum(kind.at_risk for kind in KINDS.values())
    dead_letters = sum(kind.outcomes.dead_lettered for kind in KINDS.values())
    assert snapshot.open_letters == {"default": dead_letters}
