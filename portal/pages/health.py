"""Health: whether the parts answer, and whether what should move moves."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from nicegui import ui

from lowtide.domain.attention import EVENT_AGE, TICK_SILENCE
from portal.components.badges import Badge
from portal.components.headings import heading
from portal.components.health_panel import STALE_AFTER, FactRow, ProbeRow, judge_workers
from portal.formats import ago, counted, duration, number
from portal.live import Live
from portal.theme import Tone

if TYPE_CHECKING:
    from lowtide.domain.operations import Operations
    from lowtide.services.operations import OperationsSeen
    from portal.watching import Watching

_VERSIONS: Final = ("Lowtide", "Python", "NiceGUI", "PostgreSQL", "Schema")


def install(watching: Watching, *, api_url: str) -> None:
    """Serve the page of health."""

    @ui.page("/health")
    async def health() -> None:
        await watching.poller.fresh(timeout=2.0)
        live = Live(watching.poller)
        with live.page("Health", api_url=api_url):
            shown = _Health()
        live.keep(lambda: shown.show(watching))


class _Health:
    def __init__(self) -> None:
        with ui.element("div").classes("halves"):
            with ui.element("section").classes("card section"):
                heading("Parts")
                self._database = ProbeRow("Database")
                self._objects = ProbeRow("Object store")
                self._api = ProbeRow("API")
                ui.label(
                    f"Asked every few seconds for all pages together; older than "
                    f"{duration(STALE_AFTER)} is stale."
                ).classes("muted small")
            with ui.element("section").classes("card section"):
                heading("Movement")
                self._tick = FactRow("Scheduler")
                self._outbox = FactRow("Events")
                self._workers = FactRow("Workers")
        with ui.element("section").classes("card section"):
            heading("Versions")
            with ui.element("dl").classes("facts"):
                self._versions = {name: _fact(name) for name in _VERSIONS}
        self._versions["Lowtide"].text = version("lowtide")
        self._versions["Python"].text = platform.python_version()
        self._versions["NiceGUI"].text = version("nicegui")

    def show(self, watching: Watching) -> None:
        now = datetime.now(UTC)
        seen = watching.poller.seen
        self._database.show(seen.database, now)
        self._api.show(seen.api, now)
        self._objects.show(watching.probing.found.get("Object store"), now)
        self._show_movement(watching.operations.seen)
        if seen.overview is not None:
            self._workers.show_badge(judge_workers(seen.overview.pools))
            self._workers.show_detail(
                " · ".join(f"{number(load.workers)} {load.pool}" for load in seen.overview.pools)
            )

    def _show_movement(self, seen: OperationsSeen) -> None:
        if seen.reading is None:
            return
        stale = seen.problem is not None
        self._tick.show_badge(_stale() if stale else judge_tick(seen.reading))
        self._tick.show_detail(_tick_detail(seen.reading))
        self._outbox.show_badge(_stale() if stale else judge_outbox(seen.reading))
        self._outbox.show_detail(_outbox_detail(seen.reading))
        self._versions["PostgreSQL"].text = seen.reading.server_version
        self._versions["Schema"].text = seen.reading.schema_version


def judge_tick(reading: Operations) -> Badge:
    """Return the state of the scheduler; one that never ticked is fine on a new installation."""
    if reading.ticked_at is None:
        return Badge(text="No tick yet", tone=Tone.NEUTRAL)
    if reading.at - reading.ticked_at > TICK_SILENCE:
        return Badge(text="Silent", tone=Tone.BAD)
    return Badge(text="Ticking", tone=Tone.GOOD)


def judge_outbox(reading: Operations) -> Badge:
    """Return the state of the outbox; events pass through it, and none stays."""
    if reading.oldest_event is not None and reading.at - reading.oldest_event > EVENT_AGE:
        return Badge(text="Stuck", tone=Tone.BAD)
    return Badge(text="Flowing", tone=Tone.GOOD)


def _tick_detail(reading: Operations) -> str:
    return "" if reading.ticked_at is None else f"last tick {ago(reading.ticked_at, reading.at)}"


def _outbox_detail(reading: Operations) -> str:
    waiting = f"{counted(reading.events_waiting, 'event')} in the outbox"
    if reading.oldest_event is None:
        return waiting
    return f"{waiting}, the oldest for {duration(reading.at - reading.oldest_event)}"


def _stale() -> Badge:
    return Badge(text="Stale", tone=Tone.WARN)


def _fact(name: str) -> ui.label:
    with ui.element("div"):
        with ui.element("dt"):
            ui.label(name).classes("muted small")
        with ui.element("dd"):
            return ui.label("—").mark(name)
