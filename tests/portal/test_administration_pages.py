"""The pages of tenants, keys and the audit log: access, content and actions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.core.errors import Unauthenticated
from lowtide.core.ids import DEFAULT_TENANT, new_id
from lowtide.core.scopes import READING
from lowtide.tenants.audit import note
from lowtide.tenants.callers import Authenticator
from tests.conftest import API_KEY, PEPPER
from tests.portal.conftest import VIEWER_PASSWORD
from tests.portal.seeds import SeedBatch, add_batch, add_queued, empty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Page

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal

PATHS = ("/tenants", "/keys", "/audit")
HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>{{ 7*7 }}`${8*8}`'


@pytest.fixture
def populated(shared: Database, portal: Portal) -> Iterator[Portal]:
    """A portal with a tenant `acme` at its limit, and a tenant, key and entry with hostile names."""
    acme, hostile = new_id(), new_id()
    tenant = (
        "INSERT INTO tenants (id, name, weight, max_active_batches) VALUES (:id, :name, 2, :most)"
    )
    key = (
        "INSERT INTO api_keys (hash, tenant_id, name, prefix) "
        "VALUES (decode(md5(:name), 'hex'), :id, :name, 'lt_hostil')"
    )
    entry = (
        "INSERT INTO audit_log (tenant_id, actor, action, subject) "
        "VALUES (:id, :name, 'key.created', :name)"
    )
    with shared.engine("operator").begin() as connection:
        connection.execute(text(tenant), {"id": acme, "name": "acme", "most": 1})
        connection.execute(text(tenant), {"id": hostile, "name": HOSTILE, "most": None})
        for statement in (key, entry):
            connection.execute(text(statement), {"id": hostile, "name": HOSTILE})
    worker = shared.engine("worker")
    batch = add_batch(worker, SeedBatch(user="ana", total=1500, completed=266))
    add_queued(worker, batch, "spot", range(267, 1501))
    with worker.begin() as connection:
        connection.execute(text("UPDATE batches SET tenant_id = :id"), {"id": acme})
        connection.execute(text("UPDATE tallies SET tenant_id = :id"), {"id": acme})
    yield portal
    empty(shared.engine("owner"), "audit_log, batches, tallies, queued_runs")
    with shared.engine("owner").begin() as connection:
        for table, column in (("api_keys", "tenant_id"), ("tenants", "id")):
            connection.execute(
                text(f"DELETE FROM {table} WHERE {column} <> :kept"),  # noqa: S608
                {"kept": DEFAULT_TENANT},
            )


def _audit(shared: Database) -> list[tuple[str, str]]:
    with shared.engine("operator").connect() as connection:
        rows = connection.execute(
            text("SELECT actor, action FROM audit_log WHERE actor LIKE '% (portal)' ORDER BY id")
        )
        return [(row.actor, row.action) for row in rows]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("query", ["", "?search=%00&state=gone&after=~x", "?tenant=nobody"])
def test_pages_escape_hostile_names_and_accept_any_query(
    populated: Portal, path: str, query: str
) -> None:
    with populated.client() as client:
        answer = client.get(path + query)
    assert answer.status_code == 200
    assert answer.text.count('"tag":"h1"') == 1
    assert "<script>alert" not in answer.text
    assert "<img src=x" not in answer.text
    for other in PATHS:
        assert f'"href":"{other}"' in answer.text


def test_tenants_page_shows_usage(populated: Portal) -> None:
    with populated.client() as client:
        page = client.get("/tenants?search=acm").text
    assert "1,234" in page
    assert "/batches?tenant=acme" in page
    assert '"name":"default"' not in page


@pytest.mark.parametrize("path", PATHS)
def test_page_tells_tenant_why_it_is_forbidden(populated: Portal, path: str) -> None:
    with populated.client(API_KEY) as client:
        answer = client.get(path)
        assert answer.status_code == 403
        assert (
            "This page shows the whole installation; you are signed in as tenant default."
            in answer.text
        )
        assert '"href":"/batches"' in answer.text
        assert "acme" not in answer.text
        assert f'"href":"{path}"' not in client.get("/batches").text


def test_viewer_has_no_action_buttons(populated: Portal) -> None:
    with populated.client(VIEWER_PASSWORD) as client:
        pages = [client.get(path).text for path in PATHS]
    assert "acme" in pages[0]
    for page in pages:
        for action in ("Edit…", "New tenant…", "New key…", "Rotate…", "Revoke…"):
            assert action not in page


def _shown_key(page: Page) -> str:
    page.get_by_role("heading", name="Copy this key now").wait_for()
    return page.get_by_role("dialog").locator("code").inner_text()


def _check_copying(page: Page, key: str) -> None:
    """Copy without a clipboard, as over plain HTTP, and with one."""
    copy = page.get_by_role("button", name="Copy key")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {configurable: true})")
    copy.click()
    page.get_by_text("Could not copy: select the text and copy it manually").wait_for()
    page.evaluate("delete navigator.clipboard")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    copy.click()
    page.get_by_text("Copied", exact=True).wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == key


def _close_key(page: Page) -> None:
    page.get_by_role("button", name="I have copied the key").click()
    page.get_by_role("dialog").wait_for(state="detached")


def _problems_of_dialog(axe: Any, page: Page) -> list[str]:
    """Return axe's violations while a dialog is open.

    Contrast is excluded: axe takes the dimmed page for the background of the dialog's buttons.
    """
    result = axe.run(page, options={"rules": {"color-contrast": {"enabled": False}}}).response
    return [violation["id"] for violation in result["violations"]]


@pytest.mark.slow
def test_key_is_created_rotated_revoked_and_shown_once(
    shared: Database, populated: Portal, visit: Callable[..., Visit]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    authenticator = Authenticator(shared.engine("api"), pepper=PEPPER, anonymous=None)
    page = (visited := visit(f"{populated.url}/keys?tenant=acme")).page
    page.get_by_text("Nothing matches these filters").wait_for()
    page.get_by_role("button", name="New key…").click()
    page.get_by_role("textbox", name="Name", exact=True).fill("No Name")
    page.get_by_role("button", name="Create key").click()
    page.get_by_text("Use up to 63 lowercase letters").wait_for()
    assert _problems_of_dialog(axe, page) == []
    page.get_by_role("textbox", name="Name", exact=True).fill("laptop")
    page.get_by_role("combobox", name="Scopes").click()
    for scope in sorted(READING):
        page.get_by_role("option", name=scope, exact=True).click()
        # The list is drawn again after each choice: a click in between is lost.
        page.get_by_role("option", name=scope, exact=True, selected=True).wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Create key").click()
    first = _shown_key(page)
    caller = authenticator.caller(f"Bearer {first}")
    assert (caller.name, caller.scopes) == (
        "laptop",
        READING,
    )
    page.get_by_text("Its scopes are files:read, batches:read.").wait_for()
    assert _problems_of_dialog(axe, page) == []
    _check_copying(page, first)
    page.reload()
    page.get_by_role("button", name=re.compile("^Rotate laptop of acme")).wait_for()
    assert first not in page.content(), "the key is not shown after a reload"
    page.get_by_role("button", name=re.compile("^Rotate laptop of acme")).click()
    page.get_by_role("button", name="Rotate laptop", exact=True).click()
    second = _shown_key(page)
    for key in (first, second):
        assert authenticator.caller(f"Bearer {key}").name == "laptop"
    page.goto(f"{populated.url}/tenants")
    page.get_by_role("heading", level=1).wait_for()
    page.go_back()
    page.get_by_text("Expiring", exact=True).wait_for()
    assert second not in page.content(), "the key is not shown after going back"
    page.get_by_role("button", name=re.compile("^Revoke laptop of acme")).last.click()
    page.get_by_role("button", name="Revoke laptop", exact=True).click()
    page.get_by_text("Revoked", exact=True).wait_for()
    with pytest.raises(Unauthenticated):
        authenticator.caller(f"Bearer {first}")
    assert authenticator.caller(f"Bearer {second}").name == "laptop"
    log = populated.log.read_text()
    assert first not in log
    assert second not in log
    assert _audit(shared) == [
        ("operator (portal)", action) for action in ("key.created", "key.rotated", "key.revoked")
    ]
    assert visited.problems == []


@pytest.mark.slow
def test_tenant_is_created_and_changed_after_review(
    shared: Database, populated: Portal, visit: Callable[..., Visit]
) -> None:
    page = (visited := visit(f"{populated.url}/tenants")).page
    page.get_by_role("button", name="New tenant…").click()
    page.get_by_role("textbox", name="Name", exact=True).fill("fresh")
    page.get_by_role("textbox", name="Running requests").fill("7")
    page.get_by_role("button", name="Create tenant").click()
    page.get_by_role("button", name="Edit fresh").click()
    page.get_by_role("textbox", name="Weight").fill("0")
    page.get_by_role("button", name="Review changes").click()
    page.get_by_text("Enter a number from 1 to 1,000,000,000.").wait_for()
    page.get_by_role("textbox", name="Weight").fill("3")
    page.get_by_role("textbox", name="Running requests").fill("")
    page.get_by_role("button", name="Review changes").click()
    page.get_by_text("weight: 1 → 3").wait_for()
    page.get_by_text("running requests: 7 → none").wait_for()
    assert _audit(shared)[-1][1] == "tenant.changed", "the initial limits are audited"
    before = len(_audit(shared))
    with shared.engine("operator").begin() as connection:
        connection.execute(text("UPDATE tenants SET max_queued_lines = 9 WHERE name = 'fresh'"))
    page.get_by_role("button", name="Change fresh").click()
    page.get_by_text("fresh was changed in the meantime: queued requests: none → 9.").wait_for()
    assert len(_audit(shared)) == before
    page.reload()
    page.get_by_role("button", name="Edit fresh").click()
    page.get_by_role("textbox", name="Weight").fill("3")
    page.get_by_role("button", name="Review changes").click()
    page.get_by_role("button", name="Change fresh").click()
    page.get_by_text("fresh: weight: 1 → 3").wait_for()
    assert len(_audit(shared)) == before + 1
    page.goto(f"{populated.url}/audit?action=tenant.changed")
    page.get_by_text("weight: 1 -> 3").wait_for()
    page.get_by_label("Actor (exact)").fill("nobody")
    page.get_by_text("Nothing matches these filters").wait_for()
    assert page.url.endswith("/audit?actor=nobody&action=tenant.changed")
    assert visited.problems == []


@pytest.mark.slow
def test_hostile_names_are_escaped_and_fit_on_a_phone(
    populated: Portal, visit: Callable[..., Visit]
) -> None:
    page = (visited := visit(f"{populated.url}/tenants", width=390)).page
    for path in PATHS:
        page.goto(populated.url + path)
        page.get_by_text(HOSTILE).first.wait_for()
        overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0, path
    assert page.locator("img[src=x]").count() == 0
    assert visited.problems == []


@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_audit_row_fits_on_the_screen_with_its_tenant_second(
    shared: Database, populated: Portal, visit: Callable[..., Visit], width: int
) -> None:
    subject = "batch_" + "0" * 32 + " " + "x" * 300
    with shared.engine("operator").begin() as connection:
        note(connection, None, "W" * 64 + " (portal)", "dead_letters.download", [subject])
        tenant = connection.execute(text("SELECT id FROM tenants WHERE name = 'acme'")).scalar_one()
        note(connection, tenant, "laptop (api key 1a2b3c4d)", "batches.create", [subject])
    page = (visited := visit(f"{populated.url}/audit", width=width)).page
    page.get_by_text("laptop (api key 1a2b3c4d)").first.wait_for()
    if width > 1000:
        assert page.locator("thead th").all_inner_texts()[1].strip() == "Tenant"
    page.get_by_role("link", name="View batch").first.wait_for()
    # In one step: a refresh replaces the rows.
    right_edges = page.evaluate(
        "[...document.querySelectorAll('a')].filter(each => each.textContent === 'View batch')"
        ".map(each => each.getBoundingClientRect().right)"
    )
    assert 0 < max(right_edges) <= width
    assert page.evaluate(
        "[...document.querySelectorAll('.q-table__middle, body')]"
        ".every(each => each.scrollWidth <= each.clientWidth)"
    )
    assert visited.problems == []
