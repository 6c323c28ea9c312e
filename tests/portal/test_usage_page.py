"""The page of a tenant's usage, as its tenant and as an operator see it."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.core.ids import DEFAULT_TENANT, new_id
from lowtide.core.pools import Pool
from lowtide.scheduler.pauses import PauseStore
from tests.conftest import API_KEY
from tests.portal.conftest import PORTAL_PASSWORD
from tests.portal.seeds import SeedBatch, add_batch, add_queued, empty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal


@pytest.fixture
def used(shared: Database, portal: Portal) -> Iterator[Portal]:
    """A tenant `default` with limits and a running batch, a paused pool, and another tenant."""
    worker, operator = shared.engine("worker"), shared.engine("operator")
    batch = add_batch(worker, SeedBatch(total=1500, completed=266))
    add_queued(worker, batch, "spot", range(267, 1501))
    with worker.begin() as connection:
        connection.execute(
            text(
                "UPDATE batches SET spot_price = 1, dedicated_price = 4, currency = 'EUR', "
                "status = 'in_progress'"
            )
        )
        connection.execute(
            text(
                "INSERT INTO usage_days VALUES (:tenant, (now() AT TIME ZONE 'UTC')::date, 'EUR', "
                "'spot', 1, 266, 2660, 5320, 10, 40)"
            ),
            {"tenant": DEFAULT_TENANT},
        )
    with operator.begin() as connection:
        connection.execute(
            text(
                "UPDATE tenants SET max_active_batches = 4, max_queued_lines = 1000 WHERE id = :id"
            ),
            {"id": DEFAULT_TENANT},
        )
        connection.execute(
            text("INSERT INTO tenants (id, name) VALUES (:id, 'globex')"), {"id": new_id()}
        )
    PauseStore(operator).pause(Pool.SPOT, "Ada (portal)")
    yield portal
    empty(
        shared.engine("owner"), "batches, tallies, usage_days, queued_runs, paused_pools, audit_log"
    )
    with shared.engine("owner").begin() as connection:
        connection.execute(text("DELETE FROM tenants WHERE name = 'globex'"))
        connection.execute(
            text("UPDATE tenants SET max_active_batches = NULL, max_queued_lines = NULL")
        )


def test_tenant_sees_limits_cost_and_pauses_without_names_of_operators(used: Portal) -> None:
    with used.client(API_KEY) as client:
        page = client.get("/usage").text
        batches = client.get("/batches").text
    for shown in ("1 of 4", "1,234 of 1,000", "0, no limit", "10.00 EUR", "75% saved", "266"):
        assert shown in page
    assert "Spot paused since" in page
    assert "Ada" not in page
    assert '"href":"/usage"' in batches


def test_tenant_cannot_name_another_one(used: Portal) -> None:
    with used.client(API_KEY) as client:
        page = client.get("/usage?tenant=globex").text
    assert "Limits of default" in page
    assert "globex" not in page


def test_operator_reaches_each_tenant_from_the_tenants_page(used: Portal) -> None:
    with used.client(PORTAL_PASSWORD) as client:
        assert "/usage?tenant=globex" in client.get("/tenants").text
        globex = client.get("/usage?tenant=globex").text
        answers = [client.get(f"/usage{query}") for query in ("", "?tenant=%00", "?tenant=nobody")]
    assert "Limits of globex" in globex
    assert "No cost yet" in globex
    assert [answer.status_code for answer in answers] == [200, 200, 404]
    for answer in answers[:2]:
        assert "Choose a tenant to see its usage." in answer.text
    assert "Tenant 'nobody' not found." in html.unescape(answers[2].text)


def test_operator_chooses_a_tenant(used: Portal, visit: Callable[..., Visit]) -> None:
    page = (visited := visit(f"{used.url}/usage", secret=PORTAL_PASSWORD)).page
    page.get_by_role("combobox", name="Tenant").click()
    page.get_by_role("option", name="globex").click()
    page.get_by_text("Limits of globex").wait_for()
    assert page.url.endswith("/usage?tenant=globex")
    assert visited.problems == []


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_and_follows(
    shared: Database, used: Portal, visit: Callable[..., Visit], width: int, scheme: str
) -> None:
    url = f"{used.url}/usage"
    page = (visited := visit(url, width=width, scheme=scheme, secret=API_KEY)).page
    page.get_by_text("10.00 EUR").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if width == 1440:
        page.get_by_role("link", name="Usage").wait_for()
    bars = page.get_by_role("progressbar")
    assert [bar.get_attribute("aria-valuenow") for bar in bars.all()] == ["25", "100"]
    PauseStore(shared.engine("operator")).resume(Pool.SPOT, "Ada (portal)")
    page.get_by_text("Spot paused since").wait_for(state="detached")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    assert [each["id"] for each in axe.run(page).response["violations"]] == []
    assert visited.problems == []
