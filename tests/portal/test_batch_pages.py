"""The pages of batches, in a browser."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from bench.portal_volume import TABLES
from lowtide.batches.model import BatchStatus
from lowtide.core.ids import DEFAULT_TENANT, BatchId, format_batch_id
from portal.formats import absolute, utc, zone_named
from tests.conftest import API_KEY
from tests.portal.conftest import VIEWER_PASSWORD
from tests.portal.seeds import SeedBatch, add_batch, add_queued

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>{{ 7*7 }}`${8*8}`=cmd|1'
EXACT = '{"b": 123456789012345678901234567890, "a": 1.0E+400, "n": "\\u003c"}'

# The browser reconnects later than NiceGUI waits by default.
_BREAK = """() => {
  window.stayed = true;
  window.socket.io.randomizationFactor(0);
  window.socket.io.reconnectionDelayMax(6000);
  window.socket.io.reconnectionDelay(6000);
  window.socket.io.engine.close();
}"""


@pytest.fixture
def filled(shared: Database, portal: Portal) -> Iterator[UUID]:
    """62 batches; returns the one with hostile texts."""
    assert portal.process.poll() is None, "this fixture empties the database, so it must run first"
    worker = shared.engine("worker")
    for number in range(60):
        add_batch(worker, SeedBatch(user=f"user-{number}", age=timedelta(hours=1 + number)))
    add_batch(worker, SeedBatch(user="late", status=BatchStatus.EXPIRED, age=timedelta(minutes=9)))
    batch = add_batch(
        worker,
        SeedBatch(
            user=HOSTILE, model=HOSTILE, total=3, failed=1, interrupted=2, escalated=1, at_risk=True
        ),
    )
    add_queued(worker, batch, "dedicated", range(2, 4))
    _add_requests(shared, batch)
    yield batch
    with shared.engine("owner").begin() as connection:
        connection.execute(text(f"TRUNCATE {TABLES}"))


_REQUESTS = """
INSERT INTO requests (batch_id, line, tenant_id, start, length, custom_id)
SELECT :batch, line, :tenant, 0, 1, :hostile FROM generate_series(1, 3) line
"""
_RESULT = """
INSERT INTO results (batch_id, tenant_id, lease_id, started_at, finished_at, line, input_tokens,
  output_tokens, attempts, interruptions, succeeded, escalated, dead_lettered, pool, request_id,
  body, error_code, error_message)
VALUES (:batch, :tenant, :tenant, now(), now(), 1, 1, 1, 2, 1, false, true, true, 'spot', 'r',
  :body, 'engine_error', :hostile)
"""
_EVENT = """
INSERT INTO request_events (tenant_id, batch_id, line, kind, pool, detail)
VALUES (:tenant, :batch, 1, 'interrupted', 'spot', :hostile)
"""


def _add_requests(database: Database, batch: UUID) -> None:
    values = {"batch": batch, "tenant": DEFAULT_TENANT, "hostile": HOSTILE}
    with database.engine("worker").begin() as connection:
        connection.execute(text(_REQUESTS), values)
        connection.execute(text(_RESULT), values | {"body": EXACT})
        connection.execute(text(_EVENT), values)


def _path(batch: UUID) -> str:
    return f"/batches/{format_batch_id(BatchId(batch))}"


@pytest.mark.usefixtures("filled")
def test_list_filters_match_address(portal: Portal, visit: Callable[..., Visit]) -> None:
    page = (visited := visit(f"{portal.url}/batches?status=expired,failed")).page
    page.get_by_text("1 batch", exact=True).wait_for()
    assert page.get_by_role("link", name="late", exact=True).is_visible()
    page.goto(f"{portal.url}/batches?order=oldest")
    page.get_by_text("62 batches", exact=True).wait_for()
    page.get_by_role("button", name="Next page").click()
    page.get_by_role("link", name="late", exact=True).wait_for()
    assert "after=" in page.url
    page.get_by_role("textbox", name="User").fill("USER-5")
    page.get_by_text("11 batches", exact=True).wait_for()
    assert page.url.endswith("/batches?user=USER-5&order=oldest")
    page.reload()
    page.get_by_text("11 batches", exact=True).wait_for()
    assert page.get_by_role("textbox", name="User").input_value() == "USER-5"
    assert visited.problems == []


def test_matching_batches_are_cancelled_after_confirmation(
    shared: Database, filled: UUID, portal: Portal, visit: Callable[..., Visit]
) -> None:
    page = (visited := visit(f"{portal.url}/batches")).page
    page.get_by_label("Auto-refresh").click()
    page.get_by_role("option", name="Paused").click()
    page.get_by_label("Select all on this page").click()
    page.get_by_text("50 selected").wait_for()
    page.get_by_role("button", name="Select all 62 batches that match").click()
    page.get_by_role("button", name="Cancel batches…").click()
    page.get_by_text("Cancel 61 batches?").wait_for()
    with shared.engine("operator").connect() as connection:
        count = text("SELECT count(*) FROM batches WHERE status = 'cancelling'")
        assert connection.execute(count).scalar_one() == 0, (
            "nothing is cancelled before the confirmation"
        )
    page.get_by_role("button", name="Cancel 61 batches").click()
    page.get_by_text("Cancelling 61 batches.").wait_for()
    # The list is read again, although the page is paused.
    page.get_by_role("cell", name="Cancelling").first.wait_for()
    with shared.engine("operator").connect() as connection:
        assert connection.execute(count).scalar_one() == 61
        audited = connection.execute(
            text("SELECT actor FROM audit_log WHERE action = 'batches.cancel' AND subject = :id"),
            {"id": format_batch_id(BatchId(filled))},
        )
        assert audited.scalar_one() == "operator (portal)"
    assert visited.problems == []


def test_hostile_text_is_escaped_on_batch_page_and_in_drawer(
    filled: UUID, portal: Portal, visit: Callable[..., Visit]
) -> None:
    page = (visited := visit(f"{portal.url}{_path(filled)}?status=Failed&line=1")).page
    drawer = page.get_by_role("dialog", name="Request")
    drawer.get_by_text("123456789012345678901234567890").wait_for()
    shown = drawer.get_by_role("region", name="Output").inner_text()
    assert [shown.index(part) for part in ('"b": ', "1.0E+400", "\\u003c")] == sorted(
        shown.index(part) for part in ('"b": ', "1.0E+400", "\\u003c")
    )
    assert drawer.get_by_text(HOSTILE).count() >= 2
    drawer.get_by_role("button", name="Close").click()
    page.get_by_role("tab", name="Events").click()
    newest = page.get_by_role("region", name="Newest events")
    newest.get_by_text(f"Interrupted: {HOSTILE}").wait_for()
    page.get_by_label("custom_id starts with").fill("nobody")
    page.get_by_text("No matching requests.").wait_for()
    assert page.url.endswith("?status=Failed&custom_id=nobody")
    page.get_by_label("custom_id starts with").fill(HOSTILE[:9])
    page.get_by_role("button", name="View request on line 1").wait_for()
    assert page.locator("img[src=x]").count() == 0
    assert visited.problems == []


def test_viewer_cannot_cancel_and_tenant_cannot_open_foreign_batch(
    shared: Database, filled: UUID, portal: Portal, visit: Callable[..., Visit]
) -> None:
    page = visit(portal.url + _path(filled), secret=VIEWER_PASSWORD).page
    page.get_by_role("tab", name="Timeline").wait_for()
    assert page.get_by_role("button", name="Cancel batch…").count() == 0
    with portal.client(API_KEY) as client:
        assert "Timeline" in client.get(_path(filled)).text
        with shared.engine("operator").begin() as connection:
            connection.execute(
                text("INSERT INTO tenants (id, name) VALUES (:id, 'other')"), {"id": filled}
            )
            connection.execute(
                text("UPDATE batches SET tenant_id = :id WHERE id = :id"), {"id": filled}
            )
        assert " not found." in client.get(_path(filled)).text
        assert client.get(f"{_path(filled)}/files/input").status_code == 404


@pytest.mark.usefixtures("filled")
def test_every_cell_opens_batch_and_headings_sort(
    portal: Portal, visit: Callable[..., Visit]
) -> None:
    page = (visited := visit(f"{portal.url}/batches?status=expired,in_progress")).page
    page.get_by_role("button", name="SLA").click()
    page.wait_for_url("**/batches?status=in_progress,expired&order=deadline")
    page.get_by_role("columnheader", name="SLA").and_(
        page.locator("[aria-sort=ascending]")
    ).wait_for()
    row = page.get_by_role("row").filter(has_text="user-59")
    copied = row.get_by_role("button", name="Copy id").get_attribute("aria-label")
    assert copied is not None
    row.get_by_text("llama-3.1-8b").click(modifiers=["ControlOrMeta"])
    page.wait_for_timeout(500)
    assert len(page.context.pages) == 2, "a row opens in a new tab, too"
    row.get_by_text("llama-3.1-8b").click()
    page.wait_for_url(f"**/batches/{copied.removeprefix('Copy id ')}")
    assert visited.problems == []


@pytest.mark.usefixtures("filled")
def test_list_without_matches_clears_its_filters(
    portal: Portal, visit: Callable[..., Visit]
) -> None:
    page = visit(f"{portal.url}/batches?user=nobody&status=failed").page
    page.get_by_text("No batches match.", exact=True).wait_for()
    page.get_by_role("link", name="Clear filters").click()
    page.get_by_text("62 batches", exact=True).wait_for()


def test_tile_tab_and_table_of_failed_requests_agree(
    shared: Database, filled: UUID, portal: Portal, visit: Callable[..., Visit]
) -> None:
    with shared.engine("worker").begin() as connection:
        connection.execute(
            text("UPDATE tallies SET dead_lettered = failed WHERE batch_id = :id"), {"id": filled}
        )
    page = (visited := visit(f"{portal.url}{_path(filled)}")).page
    page.get_by_role("link", name="Failed 1 1 dead letter").click()
    page.wait_for_url("**?status=Failed#requests")
    page.get_by_role("link", name="Failed 1", exact=True).and_(
        page.locator(".tab[aria-current]")
    ).wait_for()
    page.get_by_role("button", name="View request on line 1").wait_for()
    assert page.get_by_role("button", name="View request").count() == 1
    assert page.get_by_role("table").get_by_text("dead letter").is_visible()
    page.get_by_role("link", name="Dead letters 1").click()
    page.wait_for_url("**?status=Failed&dead_lettered=true#requests")
    page.get_by_role("button", name="View request on line 1").wait_for()
    assert visited.problems == []


def test_single_batch_is_named_before_its_cancellation(
    filled: UUID, portal: Portal, visit: Callable[..., Visit]
) -> None:
    page = visit(f"{portal.url}{_path(filled)}").page
    page.get_by_role("button", name="Cancel batch…").click()
    title = f"Cancel default / {HOSTILE} (3 requests, 1 done)?"
    page.get_by_role("heading", name=title).wait_for()


def test_times_are_in_viewers_time_zone(
    shared: Database, filled: UUID, portal: Portal, visit: Callable[..., Visit]
) -> None:
    with shared.engine("operator").connect() as connection:
        created = connection.execute(
            text("SELECT created_at FROM batches WHERE id = :id"), {"id": filled}
        ).scalar_one()
    with portal.client() as client:
        for zone in ("UTC", "Asia/Tokyo"):
            client.cookies.set("zone", zone)
            shown = client.get(_path(filled)).text
            assert f'"text":"{absolute(created, zone_named(zone))}"' in shown
            assert f'"title":"{utc(created)}"' in shown
    visited = visit(portal.url)
    assert [each["name"] for each in visited.context.cookies() if each["name"] == "zone"]


@pytest.mark.usefixtures("filled")
def test_selection_survives_reconnection(portal: Portal, visit: Callable[..., Visit]) -> None:
    page = visit(f"{portal.url}/batches").page
    page.get_by_label("Select all on this page").click()
    page.get_by_text("50 selected").wait_for()
    page.evaluate(_BREAK)
    page.wait_for_function("window.socket?.connected && window.did_handshake")
    assert page.evaluate("window.stayed"), "the page was reloaded"
    assert page.get_by_text("50 selected").is_visible()


@pytest.mark.parametrize("path", ["/batches/nonsense", f"/batches/batch_{'0' * 32}"])
def test_invalid_batch_id_shows_not_found_page(portal: Portal, path: str) -> None:
    with portal.client() as client:
        answer = client.get(path)
        assert answer.status_code == 404
        assert "Batch not found" in answer.text
        assert client.get(f"{path}/files/output").status_code == 404
