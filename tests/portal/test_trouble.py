"""An unhealthy installation on `/health` and the landing page, and the links from there."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from lowtide.batches.model import BatchStatus
from lowtide.core.ids import BatchId, format_batch_id
from lowtide.events.model import EventType
from lowtide.status.last_seen import Component, LastSeenStore, Observation
from tests.conftest import API_KEY
from tests.portal.seeds import SeedBatch, add_batch
from tests.portal.test_alertmanager import RUNBOOKS, gettable
from tests.worlds import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal

HOSTILE = '<img src=x onerror="alert(1)">{{ 7*7 }}'
GRAFANA = "https://grafana.example/base"


class StubAlertmanager:
    """A stub of Alertmanager; it fails while `alerts` is None."""

    def __init__(self) -> None:
        self.alerts: list[Any] | None = [gettable("LowtideTickStalled", "critical", HOSTILE)]
        self.requests = 0
        self.url = ""


@pytest.fixture(scope="module")
def alerts() -> Iterator[StubAlertmanager]:
    """A stub of Alertmanager."""
    stub = StubAlertmanager()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stub.requests += 1
            self.send_response(503 if stub.alerts is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(stub.alerts).encode())

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    yield stub
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def unhealthy(
    shared: Database, alerts: StubAlertmanager, start_portal: Callable[..., Portal]
) -> tuple[Portal, str]:
    """A portal of an unhealthy installation, and the id of a waiting batch."""
    worker = shared.engine("worker")
    waiting = add_batch(
        worker, SeedBatch(status=BatchStatus.VALIDATING, age=timedelta(minutes=9), total=0)
    )
    with worker.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO outbox (id, tenant_id, type, subject, data, created_at) "
                "SELECT gen_random_uuid(), tenant_id, :type, 's', '{}', now() - interval '7 minutes' "
                "FROM batches"
            ),
            {"type": EventType.BATCH_CREATED.value},
        )
    LastSeenStore(worker).write(
        [
            Observation(Component.FUNCTION, "upload", 720.0, None, ""),
            Observation(Component.FUNCTION, "read", 1800.0, 120.0, "HTTP 500"),
            Observation(Component.SENT, EventType.BATCH_CREATED.value, 900.0, 60.0, "the broker did not accept it"),
            Observation(Component.ENGINE, "spot", 600.0, 30.0, "HTTP 503"),
        ]
    )  # fmt: skip
    portal = start_portal(
        shared.url("operator"),
        "http://127.0.0.1:1",
        LOWTIDE_PORTAL_PROBES_API="false",
        LOWTIDE_GRAFANA_URL=GRAFANA,
        LOWTIDE_ALERTMANAGER_URL="https://alerts.example",
        LOWTIDE_ALERTMANAGER_API_URL=alerts.url,
    )
    return portal, format_batch_id(BatchId(waiting))


def _text(portal: Portal, path: str) -> str:
    with portal.client() as client:
        return client.get(path).text


def test_health_shows_problems_and_advice(unhealthy: tuple[Portal, str]) -> None:
    portal, _ = unhealthy
    eventually(lambda: "Not called" in _text(portal, "/health"))
    page = _text(portal, "/health")
    for shown in (
        "1 batch waiting, the oldest for 9 min",
        ": its events are not delivered",
        "kubectl get trigger,ksvc split",
        "1 event waiting, the oldest for 7 min",
        ": the broker did not accept it",
        "kubectl get broker,trigger",
        "read: HTTP 500",
        "kubectl logs -l app.kubernetes.io/name=read",
        "LOWTIDE_ENGINE_URL",
        "for 12 min",
        "Scaled to zero",
        "1 event in the outbox",
    ):
        assert shown in page, shown


def test_landing_page_escapes_alerts_and_links_to_dashboards(
    unhealthy: tuple[Portal, str], alerts: StubAlertmanager
) -> None:
    portal, _ = unhealthy
    eventually(lambda: "LowtideTickStalled" in _text(portal, "/"))
    page = _text(portal, "/")
    assert "alert(1)" in page
    assert "<img src=x" not in page
    assert f"{RUNBOOKS}lowtidetickstalled" in page
    assert "https://alerts.example/#/alerts?filter=%7Balertname%3D%22LowtideTickStalled" in page
    assert f"{GRAFANA}/d/lowtide-overview?from=now-6h&to=now" in page.replace("&amp;", "&")
    assert "split: not called" in page
    assert "4 unhealthy" in page
    alerts.alerts = None
    eventually(lambda: "Alertmanager unavailable since" in _text(portal, "/"))
    assert "LowtideTickStalled" in _text(portal, "/")
    assert "responded with HTTP 503" in _text(portal, "/health")
    alerts.alerts = [gettable("LowtideTickStalled", "critical", HOSTILE)]


def test_batch_page_links_to_its_dashboard(unhealthy: tuple[Portal, str]) -> None:
    portal, batch = unhealthy
    page = _text(portal, f"/batches/{batch}").replace("&amp;", "&")
    assert f"{GRAFANA}/d/lowtide-sla?var-batch={batch}&from=" in page
    assert "Prometheus" not in page


def test_tenant_sign_in_has_no_dashboard_links(unhealthy: tuple[Portal, str]) -> None:
    portal, batch = unhealthy
    for path in ("/batches", f"/batches/{batch}"):
        with portal.client(API_KEY) as client:
            answer = client.get(path)
        assert answer.status_code == 200
        assert GRAFANA not in answer.text
        assert "alerts.example" not in answer.text
        assert GRAFANA in _text(portal, path)


def test_pages_do_not_query_alertmanager(
    unhealthy: tuple[Portal, str], alerts: StubAlertmanager
) -> None:
    portal, _ = unhealthy
    with portal.client() as client:
        before = alerts.requests
        for _ in range(20):
            client.get("/health")
    assert alerts.requests - before <= 2


@pytest.mark.slow
def test_unhealthy_pages_are_accessible_and_fit(
    unhealthy: tuple[Portal, str], visit: Callable[..., Visit]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    portal, _ = unhealthy
    for scheme in ("light", "dark"):
        visited = visit(f"{portal.url}/health", scheme=scheme)
        page = visited.page
        for path in ("/health", "/", "/nothing"):
            page.goto(f"{portal.url}{path}")
            page.get_by_role("heading", level=1).wait_for()
            page.wait_for_load_state("networkidle")
            for width in (1440, 390):
                page.set_viewport_size({"width": width, "height": 900})
                violations = axe.run(page).response["violations"]
                problems = [(each["id"], each["nodes"][0]["html"]) for each in violations]
                assert problems == [], f"{path} {scheme} {width}"
                fits = "document.documentElement.scrollWidth <= innerWidth"
                assert page.evaluate(fits), f"{path} {scheme} {width} overflows"
        assert [problem for problem in visited.problems if "404" not in problem] == []
