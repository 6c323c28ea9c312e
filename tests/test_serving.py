"""The observations that a function's server records for its requests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from lowtide import serving
from lowtide.status.last_seen import TICK, Component

if TYPE_CHECKING:
    from collections.abc import Callable

CREATED = "dev.lowtide.batch.created"
Observations = list[tuple[Component, str, str | None]]


@pytest.fixture
def observe(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Observations]:
    """Return a callable that answers one request of `split` and returns the recorded observations."""
    observations: Observations = []

    class Recorder:
        def note(self, component: Component, name: str, problem: str | None = None) -> None:
            observations.append((component, name, problem))

    monkeypatch.setattr(serving, "_FUNCTION", "split")

    def answer(environ: dict[str, str], status: int | None, *, events: bool = True) -> Observations:
        monkeypatch.setattr(serving, "_TAKES_EVENTS", events)
        worker = SimpleNamespace(lowtide=SimpleNamespace(observations=Recorder()))
        serving.post_request(worker, None, environ, SimpleNamespace(status_code=status))
        return observations

    return answer


@pytest.mark.parametrize(
    ("environ", "status", "events", "expected"),
    [
        pytest.param({}, 200, True, [("function", "split", None)], id="no event type"),
        pytest.param({}, 404, False, [("function", "split", None)], id="client error"),
        pytest.param({}, 503, False, [("function", "split", "HTTP 503")], id="server error"),
        pytest.param({}, None, False, [("function", "split", "HTTP 500")], id="no status"),
        pytest.param({"PATH_INFO": "/health/ready"}, 200, False, [], id="probe"),
        pytest.param(
            {"HTTP_CE_TYPE": CREATED},
            200,
            True,
            [("function", "split", None), ("delivered", CREATED, None)],
            id="event",
        ),
        pytest.param(
            {"HTTP_CE_TYPE": TICK},
            500,
            True,
            [("function", "split", "HTTP 500"), ("delivered", TICK, "HTTP 500")],
            id="failed tick",
        ),
        pytest.param(
            {"HTTP_CE_TYPE": "x" * 1000},
            200,
            True,
            [("function", "split", None)],
            id="unknown event type",
        ),
        pytest.param(
            {"HTTP_CE_TYPE": CREATED},
            200,
            False,
            [("function", "split", None)],
            id="event header at HTTP function",
        ),
    ],
)
def test_requests_are_recorded_as_observations(
    observe: Callable[..., Observations],
    environ: dict[str, str],
    status: int | None,
    events: bool,
    expected: Any,
) -> None:
    assert observe(environ, status, events=events) == expected


def test_invalid_requests_and_probes_are_not_recorded(
    observe: Callable[..., Observations], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_FUNCTION", "read")
    serving.post_request(None, None, {}, None)
    assert observe({"PATH_INFO": "/health/live"}, 200) == []
