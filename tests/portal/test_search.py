"""The search box and the search page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowtide.core.ids import DEFAULT_TENANT, format_batch_id, format_file_id
from lowtide.search.service import Search
from lowtide.search.store import SearchStore
from portal.pages.search import path_of
from tests.conftest import API_KEY
from tests.portal.seeds import empty
from tests.search.test_search import batch_of
from tests.worlds import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal

HOSTILE = '<img src=x onerror="alert(1)">{{ 7*7 }}'


@pytest.fixture
def world(shared: Database, portal: Portal) -> World:
    """The portal's database without anything to find."""
    assert portal
    empty(
        shared.engine("owner"),
        "dead_letters, requests, results, files, batch_terms, custom_ids, search_backlog CASCADE",
    )
    return World(shared)


def test_single_exact_match_has_a_page(world: World) -> None:
    file = world.file()
    batch = batch_of(world, "doc-1", "doc-10", user="ana", input_file=file.id)
    search = Search(SearchStore(world.api))
    page = f"/batches/{format_batch_id(batch)}"
    for text, path in (
        ("doc-1", f"{page}?line=1"),
        ("ana", page),
        (batch.hex, page),
        (format_file_id(file.id), page),
    ):
        match = search.find(DEFAULT_TENANT, text).only_exact
        assert match is not None
        assert path_of(match) == path
    assert search.find(DEFAULT_TENANT, "doc-").only_exact is None


def test_matches_are_listed_by_kind_and_escaped(world: World, portal: Portal) -> None:
    batches = [batch_of(world, HOSTILE, user=HOSTILE) for _ in range(2)]
    unused = world.file()
    with portal.client() as client:
        page = client.get("/search", params={"q": HOSTILE}).text
        file = client.get("/search", params={"q": format_file_id(unused.id)}).text
        nothing = client.get("/search?q=absent").text
        refused = client.get("/search?q=a").text
    for batch in batches:
        assert f'"href":"/batches/{format_batch_id(batch)}"' in page
        assert f'"href":"/batches/{format_batch_id(batch)}?line=1"' in page
    assert "<img src=x" not in page
    assert "no batch reads it" in file
    assert "Nothing found." in nothing
    assert "2 to 512 characters" in refused


def test_tenant_finds_only_its_own(world: World, portal: Portal) -> None:
    theirs = world.tenant("search theirs")
    for _ in range(2):
        batch_of(world, "secret", tenant=theirs)
    with portal.client(API_KEY) as client:
        assert "Nothing found." in client.get("/search?q=secret").text
    with portal.client() as client:
        assert "search theirs" in client.get("/search?q=secret").text


@pytest.mark.slow
@pytest.mark.parametrize("width", [1440, 390])
def test_slash_focuses_search_and_enter_searches(
    world: World, portal: Portal, visit: Callable[..., Visit], width: int
) -> None:
    batches = [batch_of(world, "doc-1", "doc-2") for _ in range(2)]
    page = (visited := visit(f"{portal.url}/batches", width=width)).page
    page.keyboard.press("/")
    page.keyboard.type("doc-")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?q=doc-")
    page.get_by_role("heading", name="Requests").wait_for()
    assert page.get_by_role("listitem").count() == 4
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.get_by_role("searchbox", name="Search").input_value() == "doc-"
    page.get_by_role("searchbox", name="Search").fill(format_batch_id(batches[0]))
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/batches/{format_batch_id(batches[0])}")
    assert visited.problems == []
