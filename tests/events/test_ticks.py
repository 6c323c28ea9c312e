"""Responses of the function `schedule`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import functions_framework
import pytest

from lowtide.app import App
from lowtide.scheduler import tick as scheduler_tick
from lowtide.status.last_seen import TICK

if TYPE_CHECKING:
    from collections.abc import Callable

create_app: Any = functions_framework.create_app
SOURCE = Path(__file__).parents[2] / "functions" / "schedule" / "main.py"
EVENT = {"ce-specversion": "1.0", "ce-type": TICK, "ce-source": "/ping", "ce-id": "1"}


class StubService:
    """A scheduler or snapshot reader that works or raises."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def tick(self) -> None:
        """Run one tick."""
        if self._error:
            raise self._error

    def read(self, *, for_metrics: bool) -> None:
        """Read a snapshot."""
        assert for_metrics
        self.tick()


@pytest.fixture
def send_tick(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Send one tick; return the status of the response."""

    def send(tick: Exception | None, snapshots: Exception | None) -> int:
        monkeypatch.setenv("LOWTIDE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
        monkeypatch.setattr(App, "scheduler", StubService(tick))
        monkeypatch.setattr(App, "snapshots", StubService(snapshots))
        monkeypatch.setattr(scheduler_tick, "ticked", lambda _: None)
        client = create_app("schedule", str(SOURCE), "cloudevent").test_client()
        status: int = client.post("/", json={}, headers=EVENT).status_code
        return status

    return send


@pytest.mark.parametrize(
    ("tick", "snapshots", "status", "logged"),
    [
        pytest.param(None, None, 204, [], id="works"),
        pytest.param(None, RuntimeError(), 204, ["snapshot.not_read"], id="snapshot fails"),
        pytest.param(RuntimeError(), None, 500, ["event.failed"], id="tick fails"),
    ],
)
def test_tick_succeeds_even_if_snapshot_fails(
    send_tick: Callable[..., int],
    caplog: pytest.LogCaptureFixture,
    tick: Exception | None,
    snapshots: Exception | None,
    status: int,
    logged: list[str],
) -> None:
    assert send_tick(tick, snapshots) == status
    messages = [record.message for record in caplog.records if record.name.startswith("lowtide")]
    assert messages == logged
