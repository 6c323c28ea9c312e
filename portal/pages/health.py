"""The health page: components, events and versions."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from nicegui import ui

from lowtide.database.schema import is_older, newest_revision
from lowtide.events.model import EventType
from lowtide.status.concerns import events
from lowtide.status.health import Condition
from lowtide.status.last_seen import TICK, Component
from portal.components.basics import heading
from portal.components.frame import page
from portal.components.health_panel import STALE_AFTER, FactRow, ProbeRow, badge_of
from portal.components.pausing import PauseNotes
from portal.formats import ago, duration, hint
from portal.live import Live, Rebuilt
from portal.pulse import PULSE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lowtide.status.health import ComponentHealth
    from lowtide.status.snapshot import SystemSnapshot
    from portal.watching import Diagnosis, Watching


class ComponentRow(FactRow):
    """The health of one component, with advice."""

    def __init__(self, part: str) -> None:
        super().__init__(part)
        with self.row.classes("component"):
            self._advice = Rebuilt(_advise, "advice small")

    def show(
        self, component: ComponentHealth, at: datetime, looked_at: datetime, now: datetime
    ) -> None:
        """Show the health as of `at`; stale if `looked_at` is more than 30 s ago."""
        stale = now - looked_at > STALE_AFTER
        self.show_badge(badge_of(component, stale=stale))
        self.show_detail(
            f"{component.word.lower()} {component.detail}" if stale else component.detail
        )
        self.show_age(f"last seen {ago(component.at, at)}" if component.at else "", component.at)
        is_unhealthy = component.condition in (Condition.BAD, Condition.DOUBTFUL)
        self._advice.show(component.advice if is_unhealthy else "")


def _advise(advice: str) -> None:
    """Show advice, with its commands as code."""
    for index, part in enumerate(advice.split("`")):
        if part:
            with ui.element("code" if index % 2 else "span"):
                ui.label(part).style("display: inline; white-space: pre-wrap")


class ComponentList:
    """Components under a heading, in the order in which they are first shown."""

    def __init__(self, title: str) -> None:
        self._rows: dict[str, ComponentRow] = {}
        with ui.element("section").classes("card section") as self.section:
            heading(title)

    def show(
        self,
        components: Sequence[ComponentHealth],
        at: datetime,
        looked_at: datetime,
        now: datetime,
    ) -> None:
        """Show these components; add rows for new ones and remove those of missing ones."""
        for part in self._rows.keys() - {component.part for component in components}:
            self._rows.pop(part).row.delete()
        for component in components:
            if component.part not in self._rows:
                with self.section:
                    self._rows[component.part] = ComponentRow(component.part)
            self._rows[component.part].show(component, at, looked_at, now)


class EventTable:
    """The times at which the broker last took, and a function last handled, each event type."""

    def __init__(self, types: Iterable[tuple[str, str]]) -> None:
        self._cells: dict[tuple[str, str], ui.label] = {}
        with ui.element("section").classes("card section"):
            heading("Last events")
            with ui.element("table").classes("plain-table"):
                with ui.element("thead"), ui.element("tr"):
                    for name in ("Event", "Accepted by the broker", "Handled"):
                        with ui.element("th").props("scope=col"):
                            ui.label(name)
                with ui.element("tbody"):
                    for key, name in types:
                        self._add(key, name)

            self._waiting = ui.label("").classes("muted small")

    def show_waiting(self, text: str) -> None:
        """Show the events that wait in the outbox."""
        self._waiting.text = text

    def _add(self, key: str, name: str) -> None:
        with ui.element("tr"):
            with ui.element("th").props("scope=row"):
                ui.label(name).classes("mono small")
            for column in ("sent", "delivered"):
                with ui.element("td"):
                    self._cells[key, column] = ui.label("—").mark(f"{name} {column}")

    def show(self, key: str, column: str, at: datetime | None, now: datetime) -> None:
        """Show the time of the last event; None is a dash."""
        cell = self._cells[key, column]
        cell.text = "—" if at is None else ago(at, now)
        if at is not None:
            cell.props["title"] = hint(at)


_VERSIONS: Final = ("Lowtide", "Python", "NiceGUI", "PostgreSQL", "Schema")
_EVENTS: Final = {
    **{type_.value: type_.value.removeprefix("dev.lowtide.") for type_ in EventType},
    TICK: "tick",
}
_HOW: Final = (
    f"Read every few seconds, once for all pages; older than {duration(STALE_AFTER)} is stale. "
    "Functions are not probed, so that they can scale to zero: the database records when each was "
    "last seen. Commands are for a cluster; on the local stack, see the log of lowtide up."
)


def install(watching: Watching, *, api_url: str) -> None:
    """Serve the health page."""

    @page("/health")
    def health() -> None:
        live = Live(watching.poller)
        with live.page("Health", api_url=api_url):
            view = _Health(watching)
        live.keep(view.show)


class _Health:
    def __init__(self, watching: Watching) -> None:
        self._watching = watching
        self._problem = ui.label("").classes("banner").props("role=status")
        self._problem.set_visibility(False)
        self._pauses = PauseNotes()
        with ui.element("div").classes("halves"):
            with ui.element("section").classes("card section"):
                heading("Components")
                self._database = ProbeRow("Database")
                self._objects = ProbeRow("Object store")
                self._api = ComponentRow("API") if watching.api is None else ProbeRow("API")
                self._broker = ComponentRow("Broker")
                self._alerts = None if watching.alerts is None else ProbeRow("Alertmanager")
            for row in (self._database, self._objects, self._api, self._alerts):
                if row is not None:
                    row.row.classes("component")
            self._functions = ComponentList("Functions")
            self._workers = ComponentList("Workers, engines, autoscaler")
            with ui.element("div").classes("stacked"):
                self._events = EventTable(_EVENTS.items())
                self._build_versions()
        ui.label(_HOW).classes("muted small")

    def _build_versions(self) -> None:
        with ui.element("section").classes("card section"):
            heading("Versions")
            with ui.element("dl").classes("facts"):
                self._versions = {name: _fact(name) for name in _VERSIONS}
            self._versions_age = ui.label("").classes("muted small")
        self._versions["Lowtide"].text = version("lowtide")
        self._versions["Python"].text = platform.python_version()
        self._versions["NiceGUI"].text = version("nicegui")

    def show(self) -> None:
        watching, now = self._watching, datetime.now(UTC)
        reading = watching.system.seen
        self._database.show(reading.database, now)
        self._objects.show(None if watching.objects is None else watching.objects.found, now)
        if isinstance(self._api, ProbeRow) and watching.api is not None:
            self._api.show(watching.api.found, now)
        if self._alerts is not None and watching.alerts is not None:
            self._alerts.show(watching.alerts.reachability, now)
        self._problem.set_visibility(reading.problem is not None and PULSE.answering)
        if reading.problem is not None:
            self._problem.text = f"{reading.problem} The data shown may be outdated."
        diagnosis = watching.diagnose()
        if diagnosis is not None:
            self._pauses.show(diagnosis.snapshot.pauses, now)
            self._events.show_waiting(outbox(diagnosis.snapshot))
            self._show_versions(diagnosis.snapshot, now)
            self._show_health(diagnosis, now)

    def _show_health(self, diagnosis: Diagnosis, now: datetime) -> None:
        snapshot = diagnosis.snapshot
        times = (snapshot.at, diagnosis.looked_at, now)
        if isinstance(self._api, ComponentRow):
            self._api.show(diagnosis.api, *times)
        self._broker.show(diagnosis.broker, *times)
        self._functions.show(diagnosis.functions, *times)
        of_workers = (*diagnosis.workers, *diagnosis.engines, *diagnosis.lost_engines)
        self._workers.show((*of_workers, *diagnosis.autoscaler), *times)
        for type_ in _EVENTS:
            for component in (Component.SENT, Component.DELIVERED):
                observation = snapshot.last_seen.get((component, type_))
                if observation is not None:
                    self._events.show(type_, component, observation.succeeded_at, snapshot.at)

    def _show_versions(self, snapshot: SystemSnapshot, now: datetime) -> None:
        self._versions["PostgreSQL"].text = snapshot.server_version
        self._versions["Schema"].text = judge_schema(snapshot.schema_version)
        stale = "stale, " if now - snapshot.at > STALE_AFTER else ""
        self._versions_age.text = f"{stale}read {ago(snapshot.at, now)}"
        self._versions_age.props["title"] = hint(snapshot.at)


def outbox(snapshot: SystemSnapshot) -> str:
    """Return the number of events in the outbox and the age of the oldest, in words."""
    waiting = f"{events(snapshot)} in the outbox"
    if snapshot.events.since is None:
        return waiting
    return f"{waiting}, the oldest for {duration(snapshot.at - snapshot.events.since)}"


def judge_schema(revision: str) -> str:
    """Return the schema's revision, with a hint if it is not this portal's."""
    newest = newest_revision()
    if revision == newest:
        return revision
    if is_older(revision):
        return f"{revision}: this portal needs {newest}; run the migration"
    return f"{revision}: newer than this portal, which needs {newest}; upgrade the portal"


def _fact(name: str) -> ui.label:
    with ui.element("div"):
        with ui.element("dt"):
            ui.label(name).classes("muted small")
        with ui.element("dd"):
            return ui.label("—").mark(name)
