"""Every page as served, without a browser."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from lowtide.core.ids import format_batch_id
from lowtide.core.pools import Pool
from lowtide.scheduler.pauses import PauseStore
from tests.conftest import API_KEY
from tests.portal.conftest import PORTAL_PASSWORD, VIEWER_PASSWORD
from tests.portal.letters import batch_with_dead_letters
from tests.portal.seeds import SeedBatch, add_batch, add_queued, add_worker, empty
from tests.worlds import World, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowtide.core.ids import BatchId
    from tests.conftest import Database
    from tests.portal.conftest import Portal

PATHS = ("/", "/upload", "/dead-letters", "/queues", "/health")
WITHOUT_PLACE = ("/search",)
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


@pytest.fixture
def letters(shared: Database, portal: Portal) -> BatchId:
    """A batch of three requests; the first and the last, a hostile one, are dead letters."""
    empty(shared.engine("owner"), "dead_letters, requests, results, files CASCADE")
    return batch_with_dead_letters(World(shared), portal, ["plain", "fine", HOSTILE], dead=(1, 3))


@pytest.mark.parametrize("path", [*PATHS, *WITHOUT_PLACE])
def test_every_page_has_navigation_and_security_headers(portal: Portal, path: str) -> None:
    with portal.client() as client:
        answer = client.get(path)
    assert answer.status_code == 200
    assert answer.text.count('"tag":"h1"') == 1
    for other in (*PATHS, "/batches"):
        assert f'"href":"{other}"' in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.findall(r'(?:src|href)="?https?://(?!127\.0\.0\.1)', answer.text)


def test_queues_show_tokens_and_engines_by_pool(portal: Portal, shared: Database) -> None:
    worker = shared.engine("worker")
    for pool, values in (("spot", "120.3, 3.21, 64, 3, 0.25"), ("dedicated", "5, 0, 1, 0, 'NaN'")):
        lease = add_worker(worker, pool)
        with worker.begin() as connection:
            connection.execute(
                text(f"""UPDATE workers SET (input_token_rate, output_token_rate, engine_running,
  engine_waiting, engine_kv_cache) = ({values}) WHERE id = :lease"""),  # noqa: S608
                {"lease": lease},
            )
    spot = (
        "120 input and 3.2 output tokens/s · in engines: 64 running, 3 waiting, KV cache 25% full"
    )
    with portal.client() as client:
        eventually(lambda: spot in client.get("/queues").text)
        page = client.get("/queues").text
    assert '5 input and 0 output tokens/s · in engines: 1 running, 0 waiting"' in page


def test_queues_and_health_show_database_state(portal: Portal, shared: Database) -> None:
    worker = shared.engine("worker")
    add_queued(worker, add_batch(worker, SeedBatch(total=1234)), "spot", range(1, 1235))
    with portal.client() as client:
        # A page may show a reading that is up to a second old.
        eventually(lambda: "1,234" in client.get("/queues").text)
        health = client.get("/health").text
    assert "Ticking" not in health
    assert "in the outbox" in health


@pytest.fixture
def spot_is_paused(shared: Database, portal: Portal) -> None:
    """A pause of spot by an operator with a hostile name."""
    assert portal
    PauseStore(shared.engine("operator")).pause(Pool.SPOT, HOSTILE)


@pytest.mark.usefixtures("spot_is_paused")
def test_pause_is_shown_on_every_installation_page(portal: Portal) -> None:
    with portal.client() as client:

        def shows_pause(path: str) -> bool:
            return "Spot paused since" in client.get(path).text

        for path in ("/queues", "/", "/health"):
            eventually(partial(shows_pause, path))
        page = client.get("/queues").text
    assert "alert(1)" in page
    assert "<script>alert(1)" not in page
    assert "Resume spot" in page
    assert "Pause dedicated" in page


@pytest.mark.parametrize(
    ("secret", "buttons"), [(PORTAL_PASSWORD, True), (VIEWER_PASSWORD, False)], ids=str
)
def test_only_operators_have_pause_button(portal: Portal, secret: str, *, buttons: bool) -> None:
    with portal.client(secret) as client:
        page = client.get("/queues?range=7d").text
    assert ("Pause dedicated" in page) is buttons
    assert "0 workers running" in page


@pytest.mark.usefixtures("letters")
def test_dead_letters_are_escaped(portal: Portal) -> None:
    with portal.client() as client:
        page = client.get("/dead-letters").text
    assert "plain" in page
    assert "alert(1)" in page
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page


@pytest.mark.parametrize(
    "query", ["batch_id=%3Cscript%3E", "state=gone", "tenant=nobody", "error_code=%00"]
)
def test_invalid_query_shows_alert(portal: Portal, query: str) -> None:
    with portal.client() as client:
        answer = client.get(f"/dead-letters?{query}")
    assert answer.status_code == 200
    assert '"role":"alert"' in answer.text
    assert "'<script>'" not in answer.text


def test_download_streams_filtered_dead_letters(portal: Portal, letters: BatchId) -> None:
    path = "/dead-letters/content"
    with portal.client() as client:
        inputs = client.get(path, params={"which": "input", "batch_id": format_batch_id(letters)})
        outputs = client.get(path, params={"which": "output", "error_code": "http_500"})
        empty_download = client.get(path, params={"which": "input", "state": "discarded"})
        refused = client.get(path, params={"which": "everything"})
        unknown_tenant = client.get(path, params={"which": "input", "tenant": "nobody"})
    assert inputs.headers["content-disposition"].startswith("attachment")
    assert [json.loads(line)["custom_id"] for line in inputs.text.splitlines()] == [
        "plain",
        HOSTILE,
    ]
    assert [json.loads(line)["response"]["status_code"] for line in outputs.text.splitlines()] == [
        500,
        500,
    ]
    assert (empty_download.status_code, empty_download.content) == (200, b"")
    assert (refused.status_code, unknown_tenant.status_code) == (400, 404)


@pytest.fixture
def of_two_tenants(shared: Database, portal: Portal, letters: BatchId) -> Iterator[None]:
    """Two dead letters of one tenant, and one of another, with another error."""
    assert letters
    world = World(shared)
    zoo = world.tenant("zoo")
    batch_with_dead_letters(world, portal, ["of zoo"], dead=(1,), code=None, tenant=zoo)
    yield
    empty(shared.engine("owner"), "batches, dead_letters, requests, results, files CASCADE")
    with shared.engine("owner").begin() as connection:
        connection.execute(text("DELETE FROM tenants WHERE id = :id"), {"id": zoo})


@pytest.mark.usefixtures("of_two_tenants")
def test_operator_sees_dead_letters_of_all_tenants_by_error(portal: Portal) -> None:
    with portal.client() as client:
        everything = client.get("/dead-letters").text
        one = client.get("/dead-letters?tenant=zoo").text
        by_error = client.get("/dead-letters?error_code=http_500").text
        download = client.get("/dead-letters/content?which=input")
    assert "1 to 3 of 3" in everything
    assert "3 in total" in everything
    for link in ("timeout&error_message=No+answer+in+30+s.", "http_500"):
        assert f"/dead-letters?error_code={link}" in everything.replace("&amp;", "&")
    assert "choose one tenant to requeue or discard them" in everything
    assert '"tenant":"zoo"' in everything
    assert "1 to 1 of 1" in one
    assert "choose one tenant" not in one
    assert "1 to 2 of 2" in by_error
    assert "/dead-letters?error_code=timeout" in by_error
    assert "http_500" in by_error
    assert (download.status_code, "Name a tenant" in download.text) == (400, True)


def test_download_needs_session(portal: Portal) -> None:
    with portal.client(None) as client:
        answer = client.get("/dead-letters/content?which=input")
    assert answer.status_code in {303, 401}


def test_viewer_cannot_upload(portal: Portal) -> None:
    with portal.client(VIEWER_PASSWORD) as client:
        page = client.get("/upload").text
    assert "Viewers cannot upload files" in page
    assert "drop_zone" not in page


@pytest.mark.usefixtures("letters")
def test_tenant_sign_in_has_only_tenant_pages(portal: Portal) -> None:
    with portal.client(API_KEY) as client:
        page = client.get("/dead-letters").text
        upload = client.get("/upload")
        content = client.get("/dead-letters/content?which=input").text
    assert "plain" in page
    assert '"href":"/batches"' in page
    for hidden in ("/queues", "/health"):
        assert f'"href":"{hidden}"' not in page
    assert "Sign out" in page
    assert upload.status_code == 200
    assert len(content.splitlines()) == 2


def test_upload_needs_session_same_origin_and_open_page(portal: Portal) -> None:
    with portal.client() as client:
        unknown_page = client.post("/upload/start", content=b"{}", headers={"X-Page": "nobody's"})
        foreign_origin = client.post(
            "/upload/start", headers={"Origin": "https://elsewhere.example"}
        )
    with portal.client(None) as client:
        anonymous = client.post("/upload/start", content=b"{}")
    assert (unknown_page.status_code, foreign_origin.status_code, anonymous.status_code) == (
        404,
        403,
        401,
    )
