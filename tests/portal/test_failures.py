"""What a visitor is told when something is not there, or fails."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from lowtide.core.errors import Unavailable
from lowtide.core.ids import BatchId, format_batch_id
from portal.components.frame import explain
from tests.portal.seeds import SeedBatch, add_batch
from tests.worlds import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal

REFERENCE = re.compile(r"reference ([0-9a-f]{10})")


@contextmanager
def missing(database: Database, table: str, column: str) -> Iterator[None]:
    """Hide a column, so that whoever needs it meets an error that nobody expects."""
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
        pytest.param("/nothing/here", "Page not found", id="no such page"),
        pytest.param("/batches/%3Cscript%3Ealert(1)%3C/script%3E", "Page not found", id="a slash"),
        pytest.param("/batches/%3Cimg%20src=x%3E", "Batch not found", id="not an id"),
        pytest.param(
            f"/batches/{format_batch_id(BatchId(uuid4()))}", "Batch not found", id="of no batch"
        ),
    ],
)
def test_what_is_not_there_is_a_page_and_a_404(portal: Portal, path: str, title: str) -> None:
    with portal.client() as client:
        answer = client.get(path)
    assert answer.status_code == 404
    assert title in answer.text
    assert answer.text.count('"tag":"h1"') == 1
    assert '"href":"/batches"' in answer.text
    assert "<img src=x" not in answer.text
    assert "frame-ancestors" in answer.headers["content-security-policy"]


def test_who_is_not_signed_in_is_shown_the_way_in(portal: Portal) -> None:
    with portal.client(None) as client:
        assert client.get("/nothing/here").status_code == 303


def test_a_download_that_is_not_there_is_no_page(portal: Portal) -> None:
    with portal.client() as client:
        answer = client.get(f"/batches/{format_batch_id(BatchId(uuid4()))}/files/output")
    assert answer.status_code == 404
    assert "<html" not in answer.text


def test_a_page_that_fails_gives_a_reference_that_is_in_the_log(
    shared: Database, portal: Portal
) -> None:
    batch = add_batch(shared.engine("worker"), SeedBatch())
    with missing(shared, "request_events", "detail"), portal.client() as client:
        answer = client.get(f"/batches/{format_batch_id(BatchId(batch))}")
    assert answer.status_code == 500
    assert "Page failed to load" in answer.text
    assert answer.text.count('"tag":"h1"') == 1
    assert "request_events" not in answer.text
    found = REFERENCE.search(answer.text)
    assert found is not None
    log = eventually(portal.log.read_text)
    assert f"Reference {found[1]}" in log
    assert "portal.failed" in log


def test_an_expected_error_says_itself() -> None:
    assert explain(Unavailable("No answer.")) == "No answer."


def test_an_error_has_one_reference(caplog: pytest.LogCaptureFixture) -> None:
    error = RuntimeError("postgresql://user:secret@host")
    first, second = explain(error), explain(error)
    assert first == second
    assert "secret" not in first
    assert REFERENCE.search(first)
    assert len(caplog.records) == 1
    assert explain(RuntimeError()) != first


@pytest.mark.slow
def test_an_action_that_fails_says_so_on_the_page(
    shared: Database, portal: Portal, visit: Callable[..., Visit]
) -> None:
    batch = format_batch_id(BatchId(add_batch(shared.engine("worker"), SeedBatch())))
    page = visit(f"{portal.url}/batches/{batch}").page
    page.get_by_label("Auto-refresh").click()
    page.get_by_role("option", name="Paused").click()
    with missing(shared, "audit_log", "actor"):
        page.get_by_role("button", name="Cancel batch…").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel").first.click()
        told = page.get_by_text(REFERENCE)
        told.wait_for()
        found = REFERENCE.search(told.inner_text())
    assert found is not None
    assert f"Reference {found[1]}" in portal.log.read_text()
