"""A portal with two fleets of different prices, in a real browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.core.ids import DEFAULT_TENANT, BatchId, format_batch_id, new_id
from lowtide.core.pools import Pool
from lowtide.scheduler.pauses import PauseStore
from tests.http.forms import line
from tests.portal.seeds import SeedBatch, add_batch, add_fleets, add_queued, empty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from uuid import UUID

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal, StubApi

FLEETS = """\
fleets:
  large: {models: [llama-70b], spot: {price: 5, rate: 2}, dedicated: {price: 10, rate: 2}}
  small: {models: [llama-8b], spot: {price: 1, rate: 10}, dedicated: {price: 3, rate: 10}}
"""
SPENT = """
INSERT INTO tallies (batch_id, fleet, pool, lease_id, tenant_id, completed, replica_seconds)
VALUES (:batch, 'large', 'spot', :first, :tenant, 20, 7200),
  (:batch, 'small', 'dedicated', :second, :tenant, 30, 3600)
"""
USED = """
INSERT INTO usage_days
SELECT :tenant, (now() AT TIME ZONE 'UTC')::date, 'EUR', pool, 1, requests, 0, 0, cost, dedicated
FROM (VALUES ('spot', 20, 10, 20), ('dedicated', 30, 3, 3)) AS u (pool, requests, cost, dedicated)
"""


@pytest.fixture(scope="module")
def fleets_portal(
    shared: Database,
    api: StubApi,
    start_portal: Callable[..., Portal],
    tmp_path_factory: pytest.TempPathFactory,
) -> Portal:
    """A portal of two fleets."""
    file = tmp_path_factory.mktemp("fleets") / "fleets.yaml"
    file.write_text(FLEETS)
    settings = {"LOWTIDE_FLEETS": str(file), "LOWTIDE_CURRENCY": "EUR"}
    return start_portal(shared.url("operator"), api.url, **settings)


@pytest.fixture
def mixed(shared: Database) -> Iterator[UUID]:
    """A batch of both fleets that has cost something, and waits for the paused spot of large."""
    worker, operator = shared.engine("worker"), shared.engine("operator")
    add_fleets(worker, "large", "small")
    batch = add_batch(worker, SeedBatch(parts={"large": 50, "small": 50}))
    add_queued(worker, batch, "spot", range(21, 51), fleet="large")
    add_queued(worker, batch, "spot", range(81, 101), fleet="small")
    with worker.begin() as connection:
        connection.execute(text("UPDATE batches SET currency = 'EUR'"))
        for fleet, spot, dedicated in (("large", 5, 10), ("small", 1, 3)):
            connection.execute(
                text(
                    "UPDATE batch_fleets SET spot_price = :spot, dedicated_price = :dedicated "
                    "WHERE fleet = :fleet"
                ),
                {"fleet": fleet, "spot": spot, "dedicated": dedicated},
            )
        leases = {"first": new_id(), "second": new_id()}
        connection.execute(text(SPENT), {"batch": batch, "tenant": DEFAULT_TENANT, **leases})
        connection.execute(text(USED), {"tenant": DEFAULT_TENANT})
    for pool in Pool:
        PauseStore(operator).pause(pool, "Ada (portal)", "large")
    yield batch
    empty(
        shared.engine("owner"),
        "batches, batch_fleets, tallies, usage_days, queued_runs, paused_pools, audit_log",
    )


def test_batch_of_two_fleets_shows_its_cost_and_the_fleet_that_limits_it(
    fleets_portal: Portal, mixed: UUID, visit: Callable[..., Visit]
) -> None:
    url = fleets_portal.url
    page = (visited := visit(f"{url}/batches/{format_batch_id(BatchId(mixed))}")).page
    limiting = "The spot pool of fleet large is paused; 30 requests wait for it"
    page.get_by_text(limiting).wait_for()
    # Two hours of spot of large, and one of dedicated of small.
    page.get_by_text("13.00 EUR").wait_for()
    page.goto(f"{url}/usage?tenant=default")
    page.get_by_text("spot 10.00, dedicated 3.00; all on dedicated: 23.00").wait_for()
    page.get_by_text("Spot of large paused since").wait_for()
    page.goto(f"{url}/batches")
    page.get_by_text("13.00 EUR").wait_for()
    assert visited.problems == []


def test_estimate_of_a_mixed_file_is_the_sum_of_its_fleets(
    fleets_portal: Portal, visit: Callable[..., Visit], tmp_path: Path
) -> None:
    file = tmp_path / "mixed.jsonl"
    models = ["llama-70b"] * 72 + ["llama-8b"] * 360
    lines = [
        line(str(number), "/v1/embeddings", model=model) for number, model in enumerate(models)
    ]
    file.write_bytes(b"".join(lines))
    page = (visited := visit(f"{fleets_portal.url}/upload")).page
    page.get_by_label("Input file").set_input_files(file)
    # 36 s of large and of small.
    page.get_by_text("0.06 to 0.13 EUR").wait_for()
    page.get_by_text("6 requests per second and replica (configured").wait_for()
    assert visited.problems == []
