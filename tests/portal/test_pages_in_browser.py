"""Pages with actions, in a browser."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from tests.portal.conftest import VIEWER_PASSWORD
from tests.portal.letters import batch_with_dead_letters
from tests.portal.seeds import SeedBatch, add_batch, add_fleets, add_queued, add_samples, empty
from tests.worlds import World

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Page

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal

pytestmark = pytest.mark.slow

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>{{ 7*7 }}`${8*8}`'
NAMES = ["one", "two", HOSTILE, "four"]


@pytest.fixture
def letters(shared: Database, portal: Portal) -> None:
    """Four dead letters of one batch."""
    empty(shared.engine("owner"), "dead_letters, requests, results, files CASCADE")
    batch_with_dead_letters(World(shared), portal, NAMES, dead=(1, 2, 3, 4))


def _states(shared: Database) -> dict[str, int]:
    with shared.engine("operator").connect() as connection:
        rows = connection.execute(
            text("SELECT state, count(*) AS letters FROM dead_letters GROUP BY state")
        )
        return {row.state: row.letters for row in rows}


@pytest.mark.usefixtures("letters")
def test_selected_dead_letters_are_requeued_after_confirmation(
    shared: Database, portal: Portal, visit: Callable[..., Visit]
) -> None:
    page = (visited := visit(f"{portal.url}/dead-letters")).page
    page.get_by_role("checkbox", name="Select one", exact=True).click()
    page.get_by_role("checkbox", name="Select two", exact=True).click()
    page.get_by_text("2 selected").wait_for()
    page.get_by_role("button", name="Requeue…").click()
    page.get_by_text("Requeue 2 dead letters?").wait_for()
    assert _states(shared) == {"open": 4}, "opening the dialog changes nothing"
    page.get_by_role("button", name="Go back").click()
    page.get_by_text("Requeue 2 dead letters?").wait_for(state="hidden")
    page.get_by_role("button", name="Requeue…").click()
    page.get_by_label("Completion window").fill("2h")
    page.get_by_role("combobox", name="Pool").click()
    page.get_by_role("option", name="dedicated only").click()
    page.get_by_role("button", name="Requeue 2", exact=True).click()
    page.get_by_text("2 dead letters requeued").wait_for()
    assert _states(shared) == {"open": 2, "requeued": 2}
    with shared.engine("operator").connect() as connection:
        batch = connection.execute(
            text("SELECT completion_window, start_pool FROM batches ORDER BY id DESC LIMIT 1")
        ).one()
    assert tuple(batch) == ("2h", "dedicated")
    page.get_by_text("2 selected").wait_for(state="hidden")
    assert page.get_by_text(HOSTILE).is_visible()
    assert visited.problems == []


@pytest.mark.usefixtures("letters")
def test_matching_dead_letters_are_discarded_and_filter_is_in_address(
    shared: Database, portal: Portal, visit: Callable[..., Visit]
) -> None:
    page = (visited := visit(f"{portal.url}/dead-letters")).page
    page.get_by_label("Error code").fill("http_404")
    page.get_by_text("No dead letters match these filters.").wait_for()
    page.wait_for_url(re.compile("error_code=http_404$"))
    page.get_by_label("Error code").fill("http_500")
    page.get_by_text("four", exact=True).wait_for()
    page.get_by_role("button", name="View four").click()
    page.get_by_text('"custom_id": "four"').wait_for()
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Discard…").click()
    page.get_by_role("button", name="Discard 4", exact=True).click()
    page.get_by_text("No dead letters match these filters.").wait_for()
    assert _states(shared) == {"discarded": 4}
    assert visited.problems == []


@pytest.mark.usefixtures("letters")
def test_viewer_sees_dead_letters_without_buttons(
    portal: Portal, visit: Callable[..., Visit]
) -> None:
    page = visit(f"{portal.url}/dead-letters", secret=VIEWER_PASSWORD).page
    page.get_by_text("four", exact=True).wait_for()
    assert (
        page.get_by_role("button", name=re.compile("Requeue|Discard")).filter(visible=True).all()
        == []
    )


def _file(folder: Path, *lines: object) -> str:
    path = folder / "in.jsonl"
    path.write_text("".join(each if isinstance(each, str) else json.dumps(each) for each in lines))
    return str(path)


def _line(name: str) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    line = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line) + "\n"


def test_invalid_file_is_explained_and_valid_one_becomes_batch(
    shared: Database, portal: Portal, visit: Callable[..., Visit], tmp_path: Path
) -> None:
    page = (visited := visit(f"{portal.url}/upload")).page
    chooser = page.get_by_label("Input file")
    chooser.set_input_files(_file(tmp_path, _line(HOSTILE), "{no\n", _line(HOSTILE)))
    page.get_by_text("2 problems", exact=True).wait_for()
    assert page.get_by_text("line 2", exact=True).is_visible()
    assert page.get_by_text(HOSTILE).is_visible()
    assert not page.get_by_role("button", name="Create batch").is_visible()

    chooser.set_input_files(_file(tmp_path, *(_line(f"q{n}") for n in range(1234))))
    page.get_by_text("1,234", exact=True).wait_for()
    page.get_by_label("Completion window").fill("never")
    page.get_by_role("button", name="Create batch").click()
    page.get_by_text("Invalid completion_window 'never'").wait_for()
    page.get_by_label("Completion window").fill("2h")
    page.get_by_label("Priority").fill("5")
    page.get_by_role("button", name="Create batch").click()
    link = page.get_by_role("link", name=re.compile("^View batch_"))
    link.wait_for()
    with shared.engine("operator").connect() as connection:
        batch = connection.execute(
            text("SELECT id, completion_window, priority FROM batches")
        ).one()
    assert link.get_attribute("href") == f"/batches/batch_{batch.id.hex}"
    assert (batch.completion_window, batch.priority) == ("2h", 5)
    link.click()
    page.get_by_text("+5", exact=True).wait_for()
    assert visited.problems == []


def test_keyboard_shortcuts_navigate_and_switch_theme(
    portal: Portal, visit: Callable[..., Visit]
) -> None:
    page = (visited := visit(portal.url)).page
    page.get_by_text("No batches yet").wait_for()
    page.keyboard.press("?")
    page.get_by_text("Show this list").wait_for()
    page.keyboard.press("Escape")
    page.locator(".q-dialog").wait_for(state="detached")
    page.keyboard.press("t")
    page.get_by_role("button", name="Theme: light. Switch theme").wait_for()
    page.keyboard.press("r")
    page.keyboard.press("g")
    page.keyboard.press("d")
    page.wait_for_url("**/dead-letters")
    page.get_by_role("heading", level=1).wait_for()
    page.get_by_role("checkbox", name="Select all on this page").wait_for()
    page.keyboard.press("/")
    page.keyboard.type("gb?")
    assert page.get_by_role("searchbox", name="Search").input_value() == "gb?", (
        "shortcuts are plain text in an input"
    )
    assert visited.problems == []


def test_pool_is_paused_after_confirmation_and_range_is_in_address(
    shared: Database, portal: Portal, visit: Callable[..., Visit]
) -> None:
    worker = shared.engine("worker")
    add_queued(worker, add_batch(worker, SeedBatch()), "spot", range(1, 50))
    add_samples(worker, minutes=50)
    page = (visited := visit(f"{portal.url}/queues")).page
    page.get_by_role("button", name="7 d").click()
    page.wait_for_url(re.compile("range=7d$"))
    depth = page.get_by_role("img", name=re.compile("^Queue depth: spot [0-9]"))
    depth.locator("canvas").wait_for()
    page.get_by_role("button", name="Pause spot…").click()
    page.get_by_text("Queued in spot: 49 requests.").wait_for()
    page.get_by_role("button", name="Go back").click()
    page.get_by_role("button", name="Pause spot…").click()
    page.get_by_role("button", name="Pause spot", exact=True).click()
    page.get_by_text(re.compile("^Spot paused since .* by operator \\(portal\\)$")).wait_for()
    page.get_by_role("button", name="Resume spot").click()
    page.get_by_text("Spot resumed.").wait_for()
    page.get_by_role("button", name="Pause spot…").wait_for()
    with shared.engine("operator").connect() as connection:
        rows = connection.execute(
            text("SELECT actor, action FROM audit_log WHERE action LIKE 'pool.%' ORDER BY id DESC")
        )
        assert [tuple(row) for row in rows][:2] == [
            ("operator (portal)", "pool.resumed"),
            ("operator (portal)", "pool.paused"),
        ]
    assert visited.problems == []


def test_fleets_are_filtered_and_paused_each_on_its_own(
    shared: Database, portal: Portal, visit: Callable[..., Visit]
) -> None:
    worker = shared.engine("worker")
    add_fleets(worker, "large", "small")
    mixed = add_batch(worker, SeedBatch(total=50, parts={"large": 30, "small": 20}))
    add_queued(worker, mixed, "spot", range(1, 31), fleet="large")
    add_queued(worker, mixed, "spot", range(31, 51), fleet="small")
    add_samples(worker, minutes=50, fleet="large")
    page = (visited := visit(f"{portal.url}/queues")).page
    page.get_by_role("heading", name="large", level=3).wait_for()
    assert _figure(page, "Queued requests") == "50"
    page.get_by_role("combobox", name="Fleet").click()
    page.get_by_role("option", name="small").click()
    page.wait_for_url(re.compile(r"\?fleet=small$"))
    page.get_by_role("heading", name="large", level=3).wait_for(state="detached")
    page.get_by_text("No samples in this time range.").first.wait_for()
    assert _figure(page, "Queued requests") == "20"
    page.goto(f"{portal.url}/queues?fleet=large")
    page.get_by_role("img", name=re.compile("^Queue depth: spot [0-9]")).wait_for()
    page.get_by_role("button", name="Pause spot of large…").click()
    page.get_by_text("Queued in spot of large: 30 requests.").wait_for()
    page.get_by_role("button", name="Pause spot", exact=True).click()
    page.get_by_text(re.compile("^Spot of large paused since .* by operator")).wait_for()
    page.goto(f"{portal.url}/queues")
    page.get_by_role("button", name="Resume spot of large").wait_for()
    assert page.get_by_role("button", name="Pause spot of small…").is_visible()
    with shared.engine("operator").connect() as connection:
        pauses = connection.execute(text("SELECT fleet, pool FROM paused_pools"))
        assert [tuple(row) for row in pauses] == [("large", "spot")]
    page.get_by_role("button", name="Resume spot of large").click()
    page.get_by_text("Spot of large resumed.").wait_for()
    assert visited.problems == []


def _figure(page: Page, title: str) -> str:
    card = page.locator(".stat").filter(has_text=title)
    return card.locator(".value").inner_text()
