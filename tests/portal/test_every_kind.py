"""Every kind of batch: the portal and the command line show the facts written by hand."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from lowtide.batches.model import RequestStatus
from lowtide.cli.main import app
from lowtide.core.ids import BatchId, format_batch_id
from lowtide.settings import PREFIX
from tests.conftest import PEPPER
from tests.kinds import KINDS, Builder, Kind
from tests.worlds import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal

    Run = Callable[..., str]


pytestmark = pytest.mark.slow


@pytest.fixture
def batches(shared: Database, portal: Portal) -> dict[str, BatchId]:
    assert portal
    world = World(shared)
    batches = Builder(world).build()
    world.run("UPDATE batches SET model = 'm' WHERE model IS NULL")
    return batches


@pytest.fixture
def lowtide(shared: Database, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line of an operator."""
    for name in [name for name in os.environ if name.startswith((PREFIX, "K_SINK", "DATA_DIR"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LOWTIDE_DATABASE_URL", shared.url("operator"))
    monkeypatch.setenv("LOWTIDE_API_KEY_PEPPER", PEPPER)
    monkeypatch.setenv("LOWTIDE_OBJECT_STORE_URL", "memory://")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--all-tenants"])
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def _shown_status(kind: Kind) -> str:
    return kind.status.value.replace("_", " ").capitalize()


def _outcomes(kind: Kind) -> dict[str, int]:
    return {status.value: kind.outcomes.of(status) for status in RequestStatus}


def test_command_line_shows_the_facts(batches: dict[str, BatchId], lowtide: Run) -> None:
    header, *rows = (row.split("\t") for row in lowtide("batches", "list").splitlines())
    listed = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert len(listed) == len(KINDS)
    for name, kind in KINDS.items():
        id_ = format_batch_id(batches[name])
        row = listed[id_]
        expected = (kind.status.value, kind.sla.value, str(kind.outcomes.failed), str(kind.total))
        assert (row["status"], row["sla"], row["failed"], row["requests"]) == expected
        names, values = (line.split("\t") for line in lowtide("show", id_).splitlines())
        shown = dict(zip(names, values, strict=True))
        assert (name, shown["status"], shown["sla"]) == (name, kind.status, kind.sla)
        for status, count in _outcomes(kind).items():
            assert (name, status, shown[status.lower()]) == (name, status, str(count))
        assert shown["dead lettered"] == str(kind.outcomes.dead_lettered)
        assert bool(shown["risk"]) is kind.at_risk
        explained: dict[str, Any] = json.loads(lowtide("explain", id_, "--json"))
        assert explained["limiting"]["text"]


def test_portal_shows_the_facts(
    batches: dict[str, BatchId], portal: Portal, visit: Callable[..., Visit]
) -> None:
    page = (visited := visit(f"{portal.url}/batches")).page
    for name, kind in KINDS.items():
        row = page.get_by_role("row").filter(has=page.get_by_text(name, exact=True))
        row.get_by_text(_shown_status(kind), exact=True).wait_for()
        row.get_by_text(kind.sla.value, exact=True).wait_for()
    for name, kind in KINDS.items():
        page.goto(f"{portal.url}/batches/{format_batch_id(batches[name])}")
        for status, count in _outcomes(kind).items():
            assert (name, status, _tile(page, status)) == (name, status, count)
            _assert_table_agrees(page, portal, batches[name], status, count)
    assert visited.problems == []


def _tile(page: Page, status: str) -> int:
    tile = page.locator("a.tile").filter(has=page.get_by_text(status, exact=True))
    return int(tile.locator(".value").inner_text())


def _assert_table_agrees(
    page: Page, portal: Portal, batch: BatchId, status: str, count: int
) -> None:
    if count:
        path = f"/batches/{format_batch_id(batch)}"
        page.goto(f"{portal.url}{path}?status={status}")
        rows = page.locator(".q-table tbody tr")
        rows.nth(count - 1).wait_for()
        assert rows.count() == count
        page.goto(f"{portal.url}{path}")
