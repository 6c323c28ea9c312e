"""Large uploads in a real browser: parts, failures, cancelling, and pages that are left."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from portal.receiving import PART_BYTES
from tests.e2e.waiting import until
from tests.http.forms import line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Page, Route

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal

LINES = 1000
PARTS = 3
PART = "**/upload/part"
ONE_PART = re.compile(r"^[78]\.\d+ MB of 2\d\.\d MB · 3\d%")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of three parts."""
    path = tmp_path_factory.mktemp("large") / "nightly.jsonl"
    body = "x" * (PARTS * PART_BYTES // LINES - 1000)
    path.write_bytes(b"".join(line(f"{number}", input=body) for number in range(LINES)))
    assert 2 * PART_BYTES < path.stat().st_size < PARTS * PART_BYTES
    return path


def newest_upload(database: Database) -> tuple[str, int]:
    """Return the status of the newest upload, and the number of its parts."""
    query = text("SELECT status, part_count FROM uploads ORDER BY id DESC LIMIT 1")
    with database.engine("worker").connect() as connection:
        row = connection.execute(query).one()
    return row.status, row.part_count


def choose(page: Page, file: Path) -> None:
    page.get_by_label("Input file").set_input_files(file)


def hold_parts(page: Page) -> None:
    """Hold all parts but the first in the page, however often that one is sent."""
    page.evaluate(
        """() => {
          const { open, send, abort } = XMLHttpRequest.prototype;
          let first;
          Object.assign(window, { holding: true, heldParts: [] });
          Object.assign(XMLHttpRequest.prototype, {
            open(method, url, ...others) {
              this.isPart = url.endsWith("/upload/part");
              open.call(this, method, url, ...others);
            },
            send(body) {
              if (this.isPart && holding && body !== (first ??= body)) heldParts.push(this);
              else send.call(this, body);
            },
            abort() {
              abort.call(this);
              // One that is not sent yet has no such event.
              if (heldParts.includes(this)) this.dispatchEvent(new Event("abort"));
            },
          });
        }"""
    )


def test_failing_parts_are_sent_again(
    shared: Database, portal: Portal, visit: Callable[..., Visit], large: Path
) -> None:
    page = (visited := visit(f"{portal.url}/upload")).page
    assert page.get_by_text("It is validated and kept for 30 days.").is_visible()
    calls: list[Route] = []

    def handle(route: Route) -> None:
        calls.append(route)
        if len(calls) == 1:
            route.abort()
        elif len(calls) == 2:
            route.fulfill(status=503, body="Too many uploads are running.")

    # The first part that arrives ends the message: the others wait until it was seen.
    page.route(PART, handle)
    choose(page, large)
    page.get_by_text("The connection was interrupted: trying again.").wait_for()

    def all_sent() -> bool:
        page.wait_for_timeout(50)
        return len(calls) == PARTS + 2

    until(all_sent, "all parts are sent")
    for route in calls[2:]:
        route.continue_()
    page.get_by_text("Ready", exact=True).wait_for()
    page.get_by_text("1,000", exact=True).wait_for()
    page.get_by_text("Deleted on", exact=True).wait_for()
    page.get_by_text(
        re.compile(r"The file is kept for 30 days and deleted on \d+ \w+ 20\d\d\.")
    ).wait_for()
    assert len(calls) == PARTS + 2
    assert newest_upload(shared) == ("completed", PARTS)
    assert page.get_by_text("Drop a JSONL file here").is_visible()
    # Chromium logs each failed request.
    assert len(visited.problems) == 2
    assert all("/upload/part" in problem for problem in visited.problems)


def test_upload_is_cancelled(
    shared: Database, portal: Portal, visit: Callable[..., Visit], large: Path
) -> None:
    page = (visited := visit(f"{portal.url}/upload")).page
    hold_parts(page)
    choose(page, large)
    page.get_by_text(ONE_PART).wait_for()
    assert page.get_by_role("progressbar", name="Upload progress").is_visible()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("The upload of nightly.jsonl was cancelled.").wait_for()
    until(lambda: newest_upload(shared)[0] == "cancelled", "the upload is cancelled", within=90)
    assert page.evaluate("heldParts.length") == PARTS - 1
    page.evaluate("holding = false")
    choose(page, large)
    page.get_by_text("Ready", exact=True).wait_for()
    assert visited.problems == []


def test_reloaded_page_says_what_happened(
    shared: Database, portal: Portal, visit: Callable[..., Visit], large: Path
) -> None:
    page = (visited := visit(f"{portal.url}/upload")).page
    hold_parts(page)
    choose(page, large)
    page.get_by_text(ONE_PART).wait_for()
    # The parts stay held, or the upload might complete before the page is left. The browser asks
    # those who have used the page.
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("heading", level=1).click()
    page.reload()
    page.get_by_text("The upload of nightly.jsonl was interrupted").wait_for()
    until(lambda: newest_upload(shared)[0] == "cancelled", "the upload is cancelled", within=90)
    page.reload()
    page.get_by_text("Drop a JSONL file here").wait_for()
    assert page.get_by_text("was interrupted").count() == 0
    assert visited.problems == ["dialog "]


def test_refusal_of_part_is_shown(portal: Portal, visit: Callable[..., Visit], large: Path) -> None:
    page = visit(f"{portal.url}/upload").page
    page.route(PART, lambda route: route.fulfill(status=413, body="It takes at most 3 parts."))
    choose(page, large)
    page.get_by_role("alert").get_by_text("It takes at most 3 parts.").wait_for()
    assert page.get_by_text("Drop a JSONL file here").is_visible()
