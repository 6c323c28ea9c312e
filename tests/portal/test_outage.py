"""Pages while PostgreSQL is frozen, and after it."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
import pytest

from lowtide.core.ids import BatchId, format_batch_id
from lowtide.tenants.keys import EVERYTHING
from lowtide.tenants.store import TenantStore
from portal.components.frame import DEFAULT_INTERVAL
from portal.polling import LONGEST_REST
from portal.services import MAX_CALLS
from tests.conftest import API_KEY, PEPPER
from tests.portal.conftest import PORTAL_PASSWORD
from tests.portal.letters import batch_with_dead_letters
from tests.portal.seeds import SeedBatch, add_batch, add_samples, empty
from tests.worlds import World, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx
    from playwright.sync_api import Locator, Page

    from lowtide.local.database import EmbeddedPostgres
    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal

FREEZE = 40.0
BANNER_AFTER = 10.0
FRAME_AFTER = 5.0
# The portal asks a silent database every half second, and the browser needs a moment to draw.
LIVE_AFTER = DEFAULT_INTERVAL + 3.0
OUTAGE = re.compile(r"(Data is .+ old|No data for .+): the database is not answering\.")
BROWSER = {"Accept": "text/html,application/xhtml+xml"}


@contextmanager
def frozen(postgres: EmbeddedPostgres) -> Iterator[float]:
    """Freeze every process of PostgreSQL for the block, or until `thaw`; yields the time."""
    server = psutil.Process(postgres.pid)
    server.suspend()
    processes = [server, *server.children(recursive=True)]
    for process in processes[1:]:
        process.suspend()
    try:
        yield time.monotonic()
    finally:
        for process in processes:
            process.resume()


@pytest.fixture
def pages(shared: Database, portal: Portal) -> dict[str, str]:
    """Every page with a text of its data."""
    empty(shared.engine("owner"), "dead_letters, requests, results, files CASCADE")
    world = World(shared)
    batch_with_dead_letters(world, portal, ["plain", "fine"], dead=(1,))
    worker = shared.engine("worker")
    batch = format_batch_id(BatchId(add_batch(worker, SeedBatch(user="bo"))))
    add_samples(worker, minutes=30)
    TenantStore(shared.engine("operator"), pepper=PEPPER).add_key(
        "default", "spare", "lt_spare", EVERYTHING, "me"
    )
    return {
        "/": "bo",
        "/batches": "bo",
        f"/batches/{batch}": "llama-3.1-8b",
        "/upload": "Drop a JSONL file here",
        "/dead-letters": "plain",
        "/queues": "100 requests queued",
        "/tenants": "default",
        "/keys": "spare",
        "/audit": "key.created",
        "/health": "PostgreSQL",
    }


def _data(page: Page, text: str) -> Locator:
    return page.locator(".content").get_by_text(text).first


@pytest.mark.slow
def test_every_page_survives_frozen_database(
    shared: Database,
    postgres: EmbeddedPostgres,
    portal: Portal,
    pages: dict[str, str],
    visit: Callable[..., Visit],
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    visited = visit(f"{portal.url}/health")
    of_tenant = visit(f"{portal.url}/batches", secret=API_KEY)
    before = {path: _opened(visited, portal, path) for path in pages}
    for path, page in before.items():
        _data(page, pages[path]).wait_for()
    during = {}
    with frozen(postgres) as start:
        for page in (*before.values(), of_tenant.page):
            _check_banner(page, start)
        for path in pages:
            opening = time.monotonic()
            during[path] = _opened(visited, portal, path)
            assert time.monotonic() - opening < FRAME_AFTER, path
            _check_banner(during[path], opening)
        unchecked = of_tenant.tab()
        unchecked.goto(f"{portal.url}/batches")
        unchecked.get_by_role("heading", name="The database is not answering").wait_for()
        assert time.monotonic() - start < FREEZE, "all pages were opened during the outage"
        _check_counting(before["/"])
        assert axe.run(before["/"]).response["violations"] == []
        unchecked.wait_for_timeout(1000 * max(FREEZE - (time.monotonic() - start), 0.0))
    thawed = time.monotonic()
    for opened in (before, during):
        for path, page in opened.items():
            _check_live(page, pages[path], thawed)
    unchecked.get_by_role("heading", name="Batches").wait_for()
    add_batch(shared.engine("worker"), SeedBatch(user="zoe"))
    for opened in (before, during):
        # A poller whose readings are slow rests longer than one refresh.
        _data(opened["/batches"], "zoe").wait_for(timeout=1000 * (LIVE_AFTER + LONGEST_REST))
    for page in (*before.values(), *during.values()):
        assert page.evaluate("window.stayed"), "a page was reloaded"
    assert visited.problems == []
    assert "Traceback" not in portal.log.read_text()


def _check_banner(page: Page, start: float) -> None:
    """Check that the banner is shown within 10 s of `start`."""
    from playwright.sync_api import expect

    banner = page.locator(".outage")
    expect(banner, page.url).to_have_text(OUTAGE, timeout=_left(start, BANNER_AFTER))


def _check_live(page: Page, text: str, start: float) -> None:
    """Check that a page is live, and shows its data, within one refresh of `start`."""
    from playwright.sync_api import expect

    expect(page.locator(".outage"), page.url).to_be_hidden(timeout=_left(start, LIVE_AFTER))
    expect(_data(page, text), page.url).to_be_visible(timeout=_left(start, LIVE_AFTER))
    age = page.locator(".titlebar").get_by_text("Updated")
    if age.count():
        expect(age, page.url).to_have_text(re.compile("Updated (just now|[1-3] s ago)"))


def _left(start: float, seconds: float) -> float:
    """Return the milliseconds left of some seconds since `start`."""
    return 1000 * max(seconds - (time.monotonic() - start), 0.1)


def _opened(visited: Visit, portal: Portal, path: str) -> Page:
    """Open a page in a tab; its frame has a heading."""
    page = visited.tab()
    answer = page.goto(f"{portal.url}{path}")
    assert answer is not None
    assert answer.status == 200, path
    page.get_by_role("heading", level=1).wait_for()
    page.evaluate("window.stayed = true")
    return page


def _check_counting(page: Page) -> None:
    from playwright.sync_api import expect

    age = page.get_by_role("timer")
    first = age.inner_text()
    expect(age).not_to_have_text(first, timeout=3000)


def test_frozen_database_holds_no_frame_and_no_password_back(
    postgres: EmbeddedPostgres, portal: Portal, shared: Database
) -> None:
    add_batch(shared.engine("worker"), SeedBatch(user="bo"))
    with (
        portal.client() as operator,
        portal.client(API_KEY) as tenant,
        ThreadPoolExecutor(3 * MAX_CALLS) as browsers,
    ):
        with frozen(postgres):

            def load(_: int) -> httpx.Response:
                return operator.get("/batches", headers=BROWSER, timeout=30)

            start = time.monotonic()
            answers = list(browsers.map(load, range(3 * MAX_CALLS)))
            assert {answer.status_code for answer in answers} == {200}
            assert all("Loading…" in answer.text for answer in answers)
            assert time.monotonic() - start < 20, "no page waited for another"
            unchecked = tenant.get("/batches", headers=BROWSER)
            assert (unchecked.status_code, unchecked.headers["refresh"]) == (503, "3")
            assert "The database is not answering" in unchecked.text
            with portal.client(PORTAL_PASSWORD) as another:
                assert another.get("/upload", headers=BROWSER).status_code == 200
        eventually(lambda: tenant.get("/batches", headers=BROWSER).status_code == 200)
        eventually(lambda: '"bo"' in operator.get("/batches", headers=BROWSER).text)
