"""The page of cells and the names of cells, in a real browser, with the heartbeats of small cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowtide.cells.model import Quote, Report
from lowtide.core.ids import cell_of, format_batch_id, ids_of_cell
from tests.cells.stubs import TOKEN, Stub
from tests.conftest import API_KEY
from tests.portal.letters import batch_with_dead_letters
from tests.portal.seeds import SeedBatch, add_batch, empty
from tests.portal.test_accessibility import WIDTHS, check
from tests.worlds import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal, StubApi

LINK = "https://virginia-1.example/portal"
OF_CELLS = ('"/cells"', '"cell-name"', '"crowded"')
HOSTILE = '<img src=x onerror="alert(1)">{{ 7*7 }}`${8*8}`'
REPORTS = (
    Report(
        [
            Quote(["llama-3.1-70b"], 0.00042, 1250.4, 1.25, "large", 182_400, 12, 2),
            Quote(["llama-3.1-8b", "qwen2.5-*"], 0.000061, 95, 0.4, "small", 9_120, 4, 0),
        ],
        "USD",
        1,
    ),
    Report(
        [
            Quote(["llama-3.1-70b"], 0.00061, 3720, 0.2, "large", 96_000, 3, 4),
            Quote([HOSTILE], 0.000075, None, 0.0, HOSTILE),
        ],
        "USD",
        2,
    ),
    Report([Quote(["*"], 0.00039, 0, 3.4, "default", 41_000, 7, 0)], "USD", 3),
    Report([Quote(["*"], 0.0009, 12, 0, "default", 120, 0, 1)], HOSTILE, 4),
)
FILE = """\
cells:
  - {{number: 1, name: virginia-1, url: '{0}', region: us-east-1, portal: '{4}/'}}
  - {{number: 2, name: frankfurt-1, url: '{1}', region: eu-central-1}}
  - {{number: 3, name: oregon-2, url: '{2}', region: us-west-2}}
  - {{number: 4, name: tokyo-1, url: '{3}', region: ap-northeast-1, accepts_work: false}}
"""


@pytest.fixture(scope="module")
def stubs() -> Iterator[list[Stub]]:
    """Four cells."""
    cells = [Stub(number) for number in (1, 2, 3, 4)]
    yield cells
    for cell in cells:
        cell.stop()


@pytest.fixture(scope="module")
def cells_portal(
    shared: Database,
    api: StubApi,
    stubs: list[Stub],
    start_portal: Callable[..., Portal],
    tmp_path_factory: pytest.TempPathFactory,
) -> Portal:
    """The portal of frankfurt-1, which knows all cells."""
    file = tmp_path_factory.mktemp("cells") / "cells.yaml"
    file.write_text(FILE.format(*(stub.url for stub in stubs), LINK))
    return start_portal(
        shared.url("operator"),
        api.url,
        LOWTIDE_CELL="2",
        LOWTIDE_CELLS=str(file),
        LOWTIDE_CELLS_TOKEN=TOKEN,
    )


@pytest.fixture
def well(stubs: list[Stub]) -> list[Stub]:
    """All cells report."""
    for stub, report in zip(stubs, REPORTS, strict=True):
        stub.report, stub.status = report, None
    return stubs


def test_page_shows_every_fleet_and_cells_that_go_away(
    cells_portal: Portal, well: list[Stub], visit: Callable[..., Visit]
) -> None:
    page = (visited := visit(f"{cells_portal.url}/cells")).page
    page.get_by_role("row", name="oregon-2 us-west-2 Well").get_by_text("41,000").wait_for()
    assert page.title() == "Cells · frankfurt-1 · Lowtide"
    row = page.get_by_role("row", name="virginia-1 us-east-1 Well")
    for text in ("182,400", "12 spot · 2 dedicated", "0.42 USD", "20 min 50 s", "1.2 per hour"):
        row.get_by_text(text).wait_for()
    assert page.get_by_role("link", name="virginia-1").get_attribute("href") == LINK
    assert page.get_by_role("link", name="oregon-2").count() == 0
    page.get_by_role("row", name="frankfurt-1 this cell").wait_for()
    page.get_by_text("takes no new work").wait_for()
    assert page.get_by_text(HOSTILE).count() == 3, (
        "the name and the model of a fleet, and a currency"
    )
    well[2].status = 503
    away = page.get_by_role("row", name="oregon-2 us-west-2 Away")
    away.get_by_text("does not answer").wait_for()
    away.get_by_text("41,000").wait_for()
    page.get_by_text("3 / 4").wait_for()
    page.get_by_text("away: oregon-2").wait_for()
    page.goto(cells_portal.url)
    page.get_by_role("link", name="Cell oregon-2: does not answer").click()
    well[2].status = None
    page.get_by_role("row", name="oregon-2 us-west-2 Well").wait_for()
    assert visited.problems == []


def test_cell_of_an_object_is_named_if_it_is_another(
    cells_portal: Portal,
    shared: Database,
    visit: Callable[..., Visit],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty(shared.engine("owner"), "batches, dead_letters, requests, results, files CASCADE")
    add_batch(shared.engine("worker"), SeedBatch(user="older"))
    with monkeypatch.context() as patched:
        patched.setattr("tests.worlds.new_id", ids_of_cell(2))
        own = batch_with_dead_letters(World(shared), cells_portal, ["own"], dead=(1,))
        patched.setattr("tests.worlds.new_id", ids_of_cell(1))
        other = batch_with_dead_letters(World(shared), cells_portal, ["other"], dead=(1,))
    assert (cell_of(own), cell_of(other)) == (2, 1)
    page = (visited := visit(f"{cells_portal.url}/batches")).page
    for path, rows in (("/batches", 3), ("/dead-letters", 2)):
        page.goto(cells_portal.url + path)
        labels = page.locator("tbody tr").filter(has=page.locator(".origin"))
        labels.first.wait_for()
        assert (page.locator("tbody tr").count(), labels.count()) == (rows, 1), path
        assert other.hex[-6:] in labels.first.inner_text()
        assert page.locator(".origin").inner_text() == "virginia-1"
    page.goto(f"{cells_portal.url}/batches/{format_batch_id(other)}")
    page.get_by_text("evacuated from virginia-1").wait_for()
    page.goto(f"{cells_portal.url}/batches/{format_batch_id(own)}")
    page.get_by_text("Metadata: ").or_(page.get_by_text("Endpoint")).first.wait_for()
    assert page.get_by_text("evacuated from").count() == 0
    page.goto(f"{cells_portal.url}/search?q=batch_0")
    page.get_by_text("evacuated from virginia-1").first.wait_for()
    assert page.get_by_text("evacuated from").count() == 1
    assert visited.problems == []


def test_pages_name_their_cell(cells_portal: Portal) -> None:
    with cells_portal.client(None) as client:
        page = client.get("/sign-in").text
        assert "Sign in · frankfurt-1 · Lowtide" in page
        assert "This portal shows the cell frankfurt-1" in page
    with cells_portal.client() as client:
        for path in ("/", "/batches", "/upload", "/search", "/nothing-here"):
            page = client.get(path).text
            assert "This portal shows the cell frankfurt-1" in page, path
            assert [word for word in OF_CELLS if word not in page] == [], path
        assert '"/cells"' in client.get("/assets/portal.js").text


def test_tenants_do_not_see_the_cells(cells_portal: Portal) -> None:
    with cells_portal.client(API_KEY) as client:
        assert client.get("/cells").status_code == 403
        page = client.get("/batches").text
    assert "frankfurt-1" in page
    assert "/cells" not in page


def test_installation_without_cells_has_no_page(portal: Portal) -> None:
    with portal.client() as client:
        assert client.get("/cells").status_code == 404
        for path in ("/", "/assets/portal.js", "/sign-in"):
            page = client.get(path).text
            assert [word for word in OF_CELLS if word in page] == [], path
        assert "<title>Overview · Lowtide</title>" in client.get("/").text


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible_and_fits(
    cells_portal: Portal, well: list[Stub], visit: Callable[..., Visit], scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = (visited := visit(f"{cells_portal.url}/cells", scheme=scheme)).page
    page.get_by_text("41,000").wait_for()
    well[2].status = 401
    page.get_by_text("answers 401").first.wait_for()
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        check(axe, page, str(width))
    assert visited.problems == []
