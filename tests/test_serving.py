"""What a function's server notes of the requests it answered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from lowtide import serving
from lowtide.status.last_seen import TICK, Component

if TYPE_CHECKING:
    from collections.abc import Callable

CREATED = "dev.lowtide.batch.created"
Noted = list[tuple[Component, str, str | None]]


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Noted]:
    """Answer one request of the function `split`; return what was noted."""
    found: Noted = []

    class Sightings:
        def note(self, sight: Component, name: str, problem: str | None = None) -> None:
            found.append((sight, name, problem))

    monkeypatch.setattr(serving, "_FUNCTION", "split")

    def answer(environ: dict[str, str], status: int | None, *, events: bool = True) -> Noted:
        monkeypatch.setattr(serving, "_TAKES_EVENTS", events)
        worker = SimpleNamespace(lowtide=SimpleNamespace(observations=Sightings()))
        serving.post_request(worker, None, environ, SimpleNamespace(status_code=status))
        return found

    return answer


@pytest.mark.parametrize(
    ("environ", "status", "events", "wanted"),
    [
        pytest.param({}, 200, True, [("function", "split", None)], id="no event"),
        pytest.param({}, 404, False, [("function", "split", None)], id="the caller's fault"),
        pytest.param({}, 503, False, [("function", "split", "HTTP 503")], id="fails"),
        pytest.param({}, None, False, [("function", "split", "HTTP 500")], id="raises"),
        pytest.param({"PATH_INFO": "/health/ready"}, 200, False, [], id="a probe"),
        pytest.param(
            {"HTTP_CE_TYPE": CREATED},
            200,
            True,
            [("function", "split", None), ("delivered", CREATED, None)],
            id="an event",
        ),
        pytest.param(
            {"HTTP_CE_TYPE": TICK},
            500,
            True,
            [("function", "split", "HTTP 500"), ("delivered", TICK, "HTTP 500")],
            id="a tick that fails",
        ),
        pytest.param(
            {"HTTP_CE_TYPE": "x" * 1000}, 200, True, [("function", "split", None)], id="unknown"
        ),
        pytest.param(
            {"HTTP_CE_TYPE": CREATED}, 200, False, [("function", "split", None)], id="a caller's"
        ),
    ],
)
def test_what_is_noted(
    noted: Callable[..., Noted],
    environ: dict[str, str],
    status: int | None,
    events: bool,
    wanted: Any,
) -> None:
    assert noted(environ, status, events=events) == wanted


def test_what_is_no_request_is_not_noted(
    noted: Callable[..., Noted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_FUNCTION", "read")
    serving.post_request(None, None, {}, None)
    assert noted({"PATH_INFO": "/health/live"}, 200) == []
