"""The portal as a process."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.portal.seeds import SeedBatch, add_batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Database
    from tests.portal.conftest import Portal

UNREACHABLE = "http://127.0.0.1:1"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_endpoint_answers(portal: Portal, method: str) -> None:
    assert httpx.request(method, f"{portal.url}/healthz", trust_env=False).status_code == 200


def test_first_response_shows_escaped_data(
    database: Database, start_portal: Callable[[str, str], Portal]
) -> None:
    add_batch(database.engine("worker"), SeedBatch(user="</script><script>alert(1)</script>"))
    portal = start_portal(database.url("operator"), UNREACHABLE)
    with portal.client() as client:
        page = client.get("/").text
    assert '<html lang="en-US"' in page
    assert "alert(1)" in page
    assert "<script>alert(1)" not in page


def test_sigterm_ends_portal_while_query_hangs(
    database: Database, start_portal: Callable[[str, str], Portal]
) -> None:
    portal = start_portal(database.url("operator"), UNREACHABLE)
    with database.engine("owner").begin() as connection:
        connection.exec_driver_sql("LOCK TABLE batches IN ACCESS EXCLUSIVE MODE")
        with portal.client() as client, pytest.raises(httpx.ReadTimeout):
            client.get("/", timeout=3)
        start = time.monotonic()
        portal.process.send_signal(signal.SIGTERM)
        assert portal.process.wait(5) in (0, -signal.SIGTERM)
        assert time.monotonic() - start < 3
    assert "Traceback" not in portal.log.read_text()


def test_portal_starts_without_database_and_reports_it(
    start_portal: Callable[[str, str], Portal],
) -> None:
    portal = start_portal("postgresql://lowtide_operator:x@127.0.0.1:1/none", UNREACHABLE)
    with portal.client() as client:
        page = client.get("/").text
    assert "The database is not responding" in page
