"""The portal as a process, and a browser that opens its pages."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import text

from lowtide.local.database import engine
from lowtide.local.ports import free_port
from lowtide.tenants.passwords import hash_password
from tests.browsing import Visit, launched, new_visit
from tests.conftest import PEPPER, Database
from tests.portal.seeds import empty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

    from lowtide.local.database import EmbeddedPostgres

PORTAL_PASSWORD = "an operator's password"
VIEWER_PASSWORD = "a viewer's password"
PASSWORD_HASH = hash_password(PORTAL_PASSWORD)
VIEWER_HASH = hash_password(VIEWER_PASSWORD)


# The portal's imports alone take seconds of CPU time, and longer on a busy machine.
START_TIMEOUT = 150.0
ANSWER_TIMEOUT = 60.0


@dataclass
class Portal:
    """A running portal."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @contextmanager
    def client(self, secret: str | None = PORTAL_PASSWORD) -> Iterator[httpx.Client]:
        """Open a client; signed in with `secret` unless it is None."""
        with httpx.Client(base_url=self.url, trust_env=False, timeout=ANSWER_TIMEOUT) as client:
            if secret is not None:
                answer = client.post("/sign-in", data={"secret": secret})
                assert "problem" not in answer.headers["location"]
            yield client

    def cookie(self, secret: str) -> dict[str, str]:
        """Sign in with a secret; return the session's cookie as a header."""
        with self.client(secret) as client:
            pairs = [f"{name}={value}" for name, value in client.cookies.items()]
        return {"Cookie": "; ".join(pairs)}


@dataclass
class StubApi:
    """Answers `/health/ready` with `status`."""

    url: str = ""
    status: int = 200


@pytest.fixture(scope="module")
def api() -> Iterator[StubApi]:
    """A stub of the API's health endpoint."""
    stub = StubApi()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(stub.status if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield stub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def start_portal(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Portal]]:
    """Start portals on a database and an API, with further settings; all stop after the module."""
    started: list[Portal] = []
    tmp_path = tmp_path_factory.mktemp("portal")

    def start(database_url: str, api_url: str, **settings: str) -> Portal:
        port = free_port()
        log = tmp_path / f"portal-{port}.log"
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("LOWTIDE_")
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "portal"],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment
                | {
                    "LOWTIDE_DATABASE_URL": database_url,
                    "LOWTIDE_PORTAL_PORT": str(port),
                    "LOWTIDE_HEALTH_PORT": str(free_port()),
                    "LOWTIDE_PORTAL_SECRET": "test secret",
                    "LOWTIDE_PORTAL_PASSWORD_HASH": PASSWORD_HASH,
                    "LOWTIDE_PORTAL_VIEWER_PASSWORD_HASH": VIEWER_HASH,
                    "LOWTIDE_PORTAL_TENANT_DATABASE_URL": database_url.replace(
                        "lowtide_operator", "lowtide_api"
                    ),
                    "LOWTIDE_API_KEY_PEPPER": PEPPER,
                    "LOWTIDE_OBJECT_STORE_URL": (tmp_path / "objects").as_uri(),
                    "LOWTIDE_API_URL": api_url,
                    "LOWTIDE_LOG_FORMAT": "text",
                    "NICEGUI_STORAGE_PATH": str(tmp_path / "storage"),
                    **settings,
                },
            )
        portal = Portal(f"http://127.0.0.1:{port}", process, log)
        started.append(portal)
        _wait_until_served(portal)
        return portal

    yield start
    for portal in started:
        portal.process.terminate()
    for portal in started:
        portal.process.wait(10)


@pytest.fixture(scope="module")
def shared(postgres: EmbeddedPostgres, template: str) -> Iterator[Database]:
    """One database for all tests of a module: a portal takes seconds to start."""
    name = "shared_portal"
    admin = engine(postgres.superuser_url)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    database = Database(postgres, name, {})
    yield database
    for engine_ in database.engines.values():
        engine_.dispose()
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="module")
def shared_portal(
    shared: Database, api: StubApi, start_portal: Callable[[str, str], Portal]
) -> Portal:
    """A portal on the shared database."""
    return start_portal(shared.url("operator"), api.url)


@pytest.fixture
def portal(shared: Database, shared_portal: Portal) -> Portal:
    """The shared portal, without batches."""
    empty(
        shared.engine("owner"),
        "batches, batch_fleets, tallies, queued_runs, claimed_runs, workers, paused_pools, pool_samples",
    )
    return shared_portal


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; skips the test if none is installed."""
    with launched() as running:
        yield running


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Open a page of a portal, in any width and colour scheme, signed in unless `secret` is None."""
    visits: list[Visit] = []

    def open_page(
        url: str,
        *,
        width: int = 1440,
        scheme: str = "light",
        secret: str | None = PORTAL_PASSWORD,
    ) -> Visit:
        origin = "/".join(url.split("/")[:3])
        visited = new_visit(browser, origin, width=width, scheme=scheme)
        visits.append(visited)
        if secret is not None:
            visited.context.request.post(f"{origin}/sign-in", form={"secret": secret})
        visited.page.goto(url)
        visited.page.get_by_role("heading", level=1).wait_for()
        return visited

    yield open_page
    for visited in visits:
        visited.context.close()


def _wait_until_served(portal: Portal) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if portal.process.poll() is not None:
            break
        try:
            if httpx.get(f"{portal.url}/healthz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"the portal did not start:\n{portal.log.read_text()}")
