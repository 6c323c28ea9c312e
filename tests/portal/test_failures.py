"""Pages for missing objects and for failures."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from lowtide.core.errors import Unavailable
from lowtide.core.ids import BatchId, format_batch_id
from portal.components.frame import explain
from tests.conftest import API_KEY
from tests.portal.seeds import SeedBatch, add_batch
from tests.worlds import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal

REFERENCE = re.compile(r"reference ([0-9a-f]{10})")


@contextmanager
def hidden_column(database: Database, table: str, column: str) -> Iterator[None]:
    """Rename a column, so that statements that use it fail unexpectedly."""
    owner = database.engine("owner")
    with owner.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME {column} TO hidden")
    try:
        yield
    finally:
        with owner.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {table} RENAME hidden TO {column}")


@pytest.mark.parametrize(
    ("path", "title"),
    [
        pytest.param("/nothing/here", "Page not found", id="unknown path"),
        pytest.param(
            "/batches/%3Cscript%3Ealert(1)%3C/script%3E", "Page not found", id="slash in id"
        ),
        pytest.param("/batches/%3Cimg%20src=x%3E", "Batch not found", id="malformed id"),
        pytest.param(
            f"/batches/{format_batch_id(BatchId(uuid4()))}", "Batch not found", id="unknown id"
        ),
    ],
)
def test_missing_page_returns_404_page(portal: Portal, path: str, title: str) -> None:
    with portal.client() as client:
        answer = client.get(path)
    assert answer.status_code == 404
    assert title in answer.text
    assert answer.text.count('"tag":"h1"') == 1
    assert '"href":"/batches"' in answer.text
    assert "<img src=x" not in answer.text
    assert "frame-ancestors" in answer.headers["content-security-policy"]


def test_missing_page_redirects_without_session(portal: Portal) -> None:
    with portal.client(None) as client:
        assert client.get("/nothing/here").status_code == 303


def test_missing_download_returns_404_without_page(portal: Portal) -> None:
    with portal.client() as client:
        answer = client.get(f"/batches/{format_batch_id(BatchId(uuid4()))}/files/output")
    assert answer.status_code == 404
    assert "<html" not in answer.text


def test_failed_page_shows_reference_of_log_entry(shared: Database, portal: Portal) -> None:
    batch = add_batch(shared.engine("worker"), SeedBatch())
    with hidden_column(shared, "request_events", "detail"), portal.client() as client:
        answer = client.get(f"/batches/{format_batch_id(BatchId(batch))}")
    assert answer.status_code == 500
    assert "Page failed to load" in answer.text
    assert answer.text.count('"tag":"h1"') == 1
    assert "request_events" not in answer.text
    reference = REFERENCE.search(answer.text)
    assert reference is not None
    log = eventually(portal.log.read_text)
    assert f"Reference {reference[1]}" in log
    assert "portal.failed" in log


def test_failed_session_check_shows_reference_of_log_entry(
    shared: Database, portal: Portal
) -> None:
    with portal.client(API_KEY) as client, hidden_column(shared, "api_keys", "expires_at"):
        answer = client.get("/batches")
    assert answer.status_code == 500
    assert "Lowtide failed to respond" in answer.text
    assert "expires_at" not in answer.text
    reference = REFERENCE.search(answer.text)
    assert reference is not None
    assert f"Reference {reference[1]}" in eventually(portal.log.read_text)


def test_page_that_takes_too_long_says_so() -> None:
    assert explain(TimeoutError()).startswith("The page took too long to load. ")


def test_expected_error_shows_its_message() -> None:
    assert explain(Unavailable("No answer.")) == "No answer."


def test_unexpected_error_has_one_reference(caplog: pytest.LogCaptureFixture) -> None:
    error = RuntimeError("postgresql://user:secret@host")
    first, second = explain(error), explain(error)
    assert first == second
    assert "secret" not in first
    assert REFERENCE.search(first)
    assert len(caplog.records) == 1
    assert explain(RuntimeError()) != first


@pytest.mark.slow
def test_failed_action_shows_reference_on_page(
    shared: Database, portal: Portal, visit: Callable[..., Visit]
) -> None:
    batch = format_batch_id(BatchId(add_batch(shared.engine("worker"), SeedBatch())))
    page = visit(f"{portal.url}/batches/{batch}").page
    page.get_by_label("Auto-refresh").click()
    page.get_by_role("option", name="Paused").click()
    with hidden_column(shared, "audit_log", "actor"):
        page.get_by_role("button", name="Cancel batch…").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").first.click()
        message = page.get_by_text(REFERENCE)
        message.wait_for()
        reference = REFERENCE.search(message.inner_text())
    assert reference is not None
    assert f"Reference {reference[1]}" in portal.log.read_text()
