"""Responses of event functions to Knative's broker."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import functions_framework
import pytest

from lowtide.app import App
from lowtide.core.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

create_app: Any = functions_framework.create_app
FUNCTIONS = Path(__file__).parents[2] / "functions"
EVENT_FUNCTIONS = ("split", "finalize", "schedule", "infer_spot", "infer_dedicated")
BINARY = {"ce-specversion": "1.0", "ce-type": "t", "ce-source": "/s", "ce-id": "1"}
STRUCTURED = {"content-type": "application/cloudevents+json"}
WHOLE = {"specversion": "1.0", "type": "t", "source": "/s", "id": "1", "data": {}}


class StubService:
    """A service of an event function that does nothing, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def tick(self) -> Any:
        if self._error:
            raise self._error
        return None

    read = tick


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function's test client."""

    def client(name: str, error: Exception | None = None) -> Any:
        service = StubService(error)
        monkeypatch.setenv("LOWTIDE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
        monkeypatch.setattr(App, "scheduler", service)
        monkeypatch.setattr(App, "snapshots", service)
        monkeypatch.setattr("lowtide.scheduler.tick.ticked", lambda _: None)
        monkeypatch.setattr("lowtide.status.metrics.measured", lambda _: None)
        monkeypatch.delitem(sys.modules, "main", raising=False)
        return create_app(name, str(FUNCTIONS / name / "main.py"), "cloudevent").test_client()

    return client


@pytest.mark.parametrize("name", EVENT_FUNCTIONS)
def test_handled_event_gets_204_without_body(make: Callable[..., Any], name: str) -> None:
    client = make(name)
    for request in (
        {"json": {}, "headers": BINARY},
        {"data": json.dumps(WHOLE), "headers": STRUCTURED},
    ):
        response = client.post("/", **request)
        assert (response.status_code, response.data) == (204, b"")
        assert "Content-Type" not in response.headers


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param({}, b"{}", id="no event"),
        pytest.param({}, b"[1]", id="not an object"),
        pytest.param(STRUCTURED, b"{", id="not JSON"),
        pytest.param(
            STRUCTURED,
            json.dumps(WHOLE | {"extra": {"a": 1}}).encode(),
            id="an object as attribute",
        ),
        pytest.param(
            BINARY | {"content-type": "application/json"},
            b"[" * 100_000,
            id="data too deep to read",
        ),
    ],
)
@pytest.mark.parametrize("name", EVENT_FUNCTIONS)
def test_malformed_event_gets_400(
    make: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    name: str,
    headers: dict[str, str],
    body: bytes,
) -> None:
    response = make(name).post("/", data=body, headers=headers)
    assert (response.status_code, response.data) == (400, b"")
    assert "event.refused" in [record.getMessage() for record in caplog.records]


def test_failure_gets_503_without_details(make: Callable[..., Any]) -> None:
    response = make("schedule", Unavailable("secret")).post("/", json={}, headers=BINARY)
    assert (response.status_code, response.data) == (503, b"")


def test_get_is_not_allowed(make: Callable[..., Any]) -> None:
    assert make("split").get("/").status_code == 405
