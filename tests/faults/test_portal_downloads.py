"""Stuck downloads in the portal do not block other users."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import httpx

from lowtide.core.ids import format_batch_id
from lowtide.objects.store import ObstoreObjects
from portal.downloads import MAX_OF_ONE
from tests.dead_letters.letters import batch_of_lines
from tests.e2e.waiting import until
from tests.http.forms import line
from tests.portal.conftest import PORTAL_PASSWORD, VIEWER_PASSWORD, api, start_portal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Database
    from tests.portal.conftest import Portal, StubApi
    from tests.worlds import World

__all__ = ["api", "start_portal"]


def test_stuck_downloads_time_out_without_blocking_other_users(
    world: World,
    tmp_path: Path,
    shared_database: Database,
    api: StubApi,
    start_portal: Callable[..., Portal],
) -> None:
    folder = f"file://{tmp_path / 'objects'}"
    lines = [line(custom_id=str(number), x="y" * (4 << 20)).strip() for number in range(8)]
    batch = format_batch_id(batch_of_lines(world, ObstoreObjects(folder), lines))
    portal = start_portal(
        shared_database.url("operator"),
        api.url,
        LOWTIDE_OBJECT_STORE_URL=folder,
        LOWTIDE_CLIENT_TIMEOUT="10",
    )
    path = f"/batches/{batch}/files/input"
    stuck, other = portal.cookie(PORTAL_PASSWORD), portal.cookie(VIEWER_PASSWORD)
    address = httpx.URL(portal.url)
    browsers = []
    for _ in range(MAX_OF_ONE):
        browser = socket.create_connection((address.host, address.port or 80))
        browser.sendall(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nCookie: {stuck['Cookie']}\r\n\r\n".encode()
        )
        assert browser.recv(12) == b"HTTP/1.1 200"
        browsers.append(browser)

    def status(cookie: dict[str, str]) -> int:
        url = portal.url + path
        return httpx.get(url, headers=cookie, timeout=60, trust_env=False).status_code

    assert status(stuck) == 503
    assert status(other) == 200
    until(lambda: status(stuck) == 200, "a stuck download has timed out", within=60)
    for browser in browsers:
        browser.close()
    assert "Traceback" not in portal.log.read_text()
