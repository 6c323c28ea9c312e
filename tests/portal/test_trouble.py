"""An installation in trouble: what `/health` and the landing page say of it, and where they lead."""

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
from tests.portal.test_alertmanager import gettable
from tests.worlds import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.browsing import Visit
    from tests.conftest import Database
    from tests.portal.conftest import Portal

HOSTILE = '<img src=x onerror="alert(1)">{{ 7*7 }}'
GRAFANA = "https://grafana.example/base"


class Alerts:
    """An Alertmanager; `alerts` is None while it is out of order."""

    def __init__(self) -> None:
        self.alerts: list[Any] | None = [gettable("LowtideTickStalled", "critical", HOSTILE)]
        self.asked = 0
        self.url = ""


@pytest.fixture(scope="module")
def alerts() -> Iterator[Alerts]:
    """A stand-in for Alertmanager."""
    told = Alerts()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.asked += 1
            self.send_response(503 if told.alerts is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(told.alerts).encode())

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    yield told
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def troubled(
    shared: Database, alerts: Alerts, start_portal: Callable[..., Portal]
) -> tuple[Portal, str]:
    """A portal where little works, and a batch that waits."""
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


def test_health_says_what_is_wrong_and_what_to_do(troubled: tuple[Portal, str]) -> None:
    portal, _ = troubled
    eventually(lambda: "Not called" in _text(portal, "/health"))
    page = _text(portal, "/health")
    for said in (
        "1 batch waiting, the oldest for 9 min: its events are not delivered",
        "kubectl get trigger,ksvc split",
        "1 event waiting, the oldest for 7 min: the broker did not accept it",
        "kubectl get broker,trigger",
        "read: HTTP 500",
        "kubectl logs -l app.kubernetes.io/name=read",
        "LOWTIDE_ENGINE_URL",
        "for 12 min",
        "Scaled to zero",
        "1 event in the outbox",
    ):
        assert said in page, said


def test_the_landing_page_lists_alerts_as_text_and_links_to_dashboards(
    troubled: tuple[Portal, str], alerts: Alerts
) -> None:
    portal, _ = troubled
    eventually(lambda: "LowtideTickStalled" in _text(portal, "/"))
    page = _text(portal, "/")
    assert "alert(1)" in page
    assert "<img src=x" not in page
    assert "https://alerts.example/#/alerts?filter=%7Balertname%3D%22LowtideTickStalled" in page
    assert f"{GRAFANA}/d/lowtide-overview?from=now-6h&to=now" in page.replace("&amp;", "&")
    assert "split: not called" in page
    assert "4 unhealthy" in page
    alerts.alerts = None
    eventually(lambda: "Alertmanager unavailable since" in _text(portal, "/"))
    assert "LowtideTickStalled" in _text(portal, "/")
    assert "responded with HTTP 503" in _text(portal, "/health")
    alerts.alerts = [gettable("LowtideTickStalled", "critical", HOSTILE)]


def test_a_batch_leads_to_dashboards_of_its_own_time(troubled: tuple[Portal, str]) -> None:
    portal, batch = troubled
    page = _text(portal, f"/batches/{batch}").replace("&amp;", "&")
    assert f"{GRAFANA}/d/lowtide-sla?var-batch={batch}&from=" in page
    assert "Prometheus" not in page


def test_a_tenants_visitor_is_not_led_to_dashboards_of_all(troubled: tuple[Portal, str]) -> None:
    portal, batch = troubled
    for path in ("/batches", f"/batches/{batch}"):
        with portal.client(API_KEY) as client:
            answer = client.get(path)
        assert answer.status_code == 200
        assert GRAFANA not in answer.text
        assert "alerts.example" not in answer.text
        assert GRAFANA in _text(portal, path)


def test_pages_ask_nobody(troubled: tuple[Portal, str], alerts: Alerts) -> None:
    portal, _ = troubled
    with portal.client() as client:
        before = alerts.asked
        for _ in range(20):
            client.get("/health")
    assert alerts.asked - before <= 2


@pytest.mark.slow
def test_trouble_is_readable_for_everybody(
    troubled: tuple[Portal, str], visit: Callable[..., Visit]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    portal, _ = troubled
    for scheme in ("light", "dark"):
        visited = visit(f"{portal.url}/health", scheme=scheme)
        page = visited.page
        for path in ("/health", "/", "/nothing"):
            page.goto(f"{portal.url}{path}")
            page.get_by_role("heading", level=1).wait_for()
            page.wait_for_load_state("networkidle")
            for width in (1440, 390):
                page.set_viewport_size({"width": width, "height": 900})
                found = axe.run(page).response["violations"]
                wrong = [(each["id"], each["nodes"][0]["html"]) for each in found]
                assert wrong == [], f"{path} {scheme} {width}"
                across = "document.documentElement.scrollWidth <= innerWidth"
                assert page.evaluate(across), f"{path} {scheme} {width} sticks out"
        assert [problem for problem in visited.problems if "404" not in problem] == []
