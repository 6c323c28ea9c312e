"""The landing page, in a browser."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from lowtide.batches.model import BatchStatus
from tests.portal.seeds import SeedBatch, add_batch, add_claimed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal, StubApi

pytestmark = pytest.mark.slow

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>{{ 7*7 }}`${8*8}`'


def test_empty_installation_shows_first_command(
    portal: Portal, visit: Callable[..., Visit]
) -> None:
    visited = visit(portal.url)
    visited.page.get_by_text("No batches yet").wait_for()
    assert visited.page.get_by_text("lowtide submit requests.jsonl").is_visible()
    assert visited.problems == []


def test_page_shows_batches_and_follows_changes(
    shared: Database, portal: Portal, api: StubApi, visit: Callable[..., Visit]
) -> None:
    worker = shared.engine("worker")
    first = add_batch(worker, SeedBatch(total=1319, completed=1200, failed=3, interrupted=130))
    add_batch(
        worker,
        SeedBatch(user=HOSTILE, model=HOSTILE, status=BatchStatus.EXPIRED, age=timedelta(hours=2)),
    )
    page = (visited := visit(portal.url)).page
    page.get_by_text("1,203 / 1,319").wait_for()
    assert page.get_by_text(HOSTILE).count() == 2
    assert page.get_by_role("cell", name="In progress").count() == 1
    assert page.get_by_role("cell", name="Missed").count() == 1
    progress = page.get_by_role("progressbar", name="Requests done, batch of ana")
    assert progress.get_attribute("aria-valuenow") == "91"

    page.get_by_text("116 queued · 0 running").wait_for()
    add_claimed(worker, first, "spot", range(1, 42))
    page.get_by_text("75 queued · 41 running").wait_for(timeout=6000)
    api.status = 503
    page.get_by_text("Responded with HTTP 503").wait_for(timeout=9000)
    api.status = 200
    assert visited.problems == []


def test_paused_refresh_stops_updates_and_is_remembered(
    shared: Database, portal: Portal, visit: Callable[..., Visit]
) -> None:
    page = (visited := visit(portal.url)).page
    page.get_by_text("No batches yet").wait_for()
    page.get_by_label("Auto-refresh").click()
    page.get_by_role("option", name="Paused").click()
    page.get_by_text("Paused · updated").wait_for()
    add_batch(shared.engine("worker"), SeedBatch())
    page.wait_for_timeout(2500)
    assert page.get_by_text("No batches yet").is_visible()
    page.reload()
    page.get_by_text("Paused · updated").wait_for()
    page.get_by_text("0 / 100").wait_for()
    page.goto(f"{portal.url}/batches")
    page.get_by_text("0 / 100").wait_for()
    add_batch(shared.engine("worker"), SeedBatch(total=777))
    page.get_by_role("button", name="Refresh now").click()
    page.get_by_text("0 / 777").wait_for()
    page.get_by_label("Auto-refresh").click()
    page.get_by_role("option", name="1 s", exact=True).click()
    page.get_by_text("Updated").wait_for()
    assert visited.problems == []


def test_theme_is_remembered(portal: Portal, visit: Callable[..., Visit]) -> None:
    page = visit(portal.url).page
    page.get_by_role("button", name="Theme: system. Switch theme").click()
    page.get_by_role("button", name="Theme: light. Switch theme").click()
    page.get_by_role("button", name="Theme: dark. Switch theme").wait_for()
    page.reload()
    page.locator("body.body--dark").wait_for()


def test_empty_installation_is_accessible_and_fits(
    portal: Portal, visit: Callable[..., Visit]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for scheme in ("light", "dark"):
        page = (visited := visit(portal.url, scheme=scheme, width=390)).page
        page.get_by_text("No batches yet").wait_for()
        assert axe.run(page).response["violations"] == [], scheme
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), scheme
        assert visited.problems == []
