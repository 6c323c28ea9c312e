"""Accessibility (axe) and width of every page, in both themes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from lowtide.batches.model import BatchStatus
from lowtide.core.ids import format_batch_id
from lowtide.core.pools import Pool
from lowtide.local.ports import free_port
from lowtide.scheduler.pauses import PauseStore
from tests.portal.letters import batch_with_dead_letters
from tests.portal.seeds import (
    SeedBatch,
    add_batch,
    add_claimed,
    add_queued,
    add_samples,
    add_worker,
    empty,
)
from tests.worlds import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal

pytestmark = pytest.mark.slow

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>{{ 7*7 }}`${8*8}`'
WIDTHS = (1440, 1000, 390)
LIST_PAGES = """
import json
from nicegui import Client
import portal.__main__ as portal
portal.serve = lambda _: print(json.dumps(sorted(Client.page_routes.values())), flush=True)
portal.main()
"""
# Axe takes the backdrop of a dialog for the background of its text.
TRANSPARENT_BACKDROP = ".q-dialog__backdrop { background: none !important; }"
# An opening dialog is transparent.
NOT_ANIMATED = """
() => !document.querySelector("[class*=animating], [class*=enter-active]")
  && document.getAnimations().every((each) => each.playState !== "running")
"""


@pytest.fixture(scope="module")
def routes(shared_portal: Portal) -> list[str]:
    """The pages that the portal registers, so that every new one is checked."""
    result = subprocess.run(
        [sys.executable, "-c", LIST_PAGES],
        env=psutil.Process(shared_portal.process.pid).environ()
        | {"LOWTIDE_HEALTH_PORT": str(free_port())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    paths: list[str] = json.loads(result.stdout.splitlines()[-1])
    return paths


@pytest.fixture
def batch(shared: Database, portal: Portal) -> str:
    """Content for every page; returns the id of a batch with dead letters and a hostile request."""
    empty(shared.engine("owner"), "dead_letters, requests, results, files CASCADE")
    worker = shared.engine("worker")
    for status in BatchStatus:
        add_batch(worker, SeedBatch(status=status, failed=5, completed=9, escalated=9))
    running = add_batch(worker, SeedBatch(user=HOSTILE, at_risk=True, interrupted=3))
    add_queued(worker, running, "spot", range(1, 50))
    add_claimed(worker, running, "dedicated", range(50, 60))
    add_worker(worker, "spot")
    add_samples(worker, minutes=50)
    dead_lettered = batch_with_dead_letters(World(shared), portal, ["one", HOSTILE], dead=(1, 2))
    PauseStore(shared.engine("operator")).pause(Pool.SPOT, HOSTILE)
    return format_batch_id(dead_lettered)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_and_fits(
    routes: list[str], batch: str, portal: Portal, visit: Callable[..., Visit], scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    assert len(routes) > 6
    visited = visit(portal.url, scheme=scheme)
    page = visited.page
    for route in routes:
        page.goto(portal.url + route.format(batch_id=batch))
        page.get_by_role("heading", level=1).wait_for()
        page.wait_for_load_state("networkidle")
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            check(axe, page, f"{route} {width}")
    assert visited.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_drawer_and_dialog_are_accessible(
    batch: str, portal: Portal, visit: Callable[..., Visit], scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    visited = visit(f"{portal.url}/batches/{batch}?line=1", scheme=scheme, width=390)
    page = visited.page
    page.get_by_role("dialog", name="Request").get_by_text("one").first.wait_for()
    page.add_style_tag(content=TRANSPARENT_BACKDROP)
    check(axe, page, "drawer")
    page.goto(f"{portal.url}/dead-letters")
    page.get_by_role("button", name="View one").click()
    page.get_by_text('"custom_id": "one"').wait_for()
    page.add_style_tag(content=TRANSPARENT_BACKDROP)
    check(axe, page, "letter")
    assert visited.problems == []


def _fits(page: Page) -> bool:
    """Return True if no content overflows once tables have become cards."""
    try:
        page.wait_for_function("document.documentElement.scrollWidth <= innerWidth", timeout=2000)
    except PlaywrightTimeout:
        return False
    return True


def check(axe: Any, page: Page, where: str) -> None:
    """Fail on a violation of accessibility, or if the page is wider than its window."""
    page.wait_for_function(NOT_ANIMATED)
    violations = axe.run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["failureSummary"]) for each in violations] == [], where
    assert _fits(page), where
