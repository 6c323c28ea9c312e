"""The landing page: the state of the installation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from nicegui import ui

from lowtide.core.pools import FleetPool, Pool
from lowtide.status.concerns import concerns, queues_path
from lowtide.status.history import HistoryRange
from lowtide.status.snapshot import MAX_RECENT
from portal.components.alerts import AlertList
from portal.components.basics import POOL_TONES, StatCard, empty_state, heading, pool_badge
from portal.components.batch_table import BatchTable
from portal.components.charts import TimeChart, lines_by_pool, marks_of
from portal.components.frame import page
from portal.components.health_panel import HealthPanel
from portal.components.pausing import PauseNotes
from portal.dashboards import dashboard_links
from portal.formats import ago, counted, models_in_words, number
from portal.live import Live, Rebuilt
from portal.loading import soon
from portal.pulse import PULSE
from portal.watching import FollowedHistory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.core.pools import Depth
    from lowtide.status.concerns import Concern
    from lowtide.status.snapshot import SystemSnapshot, Totals
    from portal.dashboards import Dashboards
    from portal.watching import Watching


class ConcernList:
    """Open concerns, each with a link; hidden while there is none."""

    def __init__(self) -> None:
        self._concerns: Sequence[Concern] | None = None
        self._section = ui.element("section").classes("card concerns")
        self._section.props('aria-label="Needs attention"')
        self._section.set_visibility(False)

    def show(self, concerns: Sequence[Concern]) -> None:
        """Show these concerns; nothing is sent while they stay the same."""
        if concerns == self._concerns:
            return
        self._concerns = concerns
        self._section.set_visibility(bool(concerns))
        self._section.clear()
        with self._section:
            heading("Needs attention")
            with ui.element("ul"):
                for concern in concerns:
                    with ui.element("li"), ui.element("a").props(f'href="{concern.path}"'):
                        ui.label(concern.text)


class PoolPanel:
    """Queue depth by pool; the bars share one scale."""

    def __init__(self) -> None:
        with ui.element("section").classes("card section"):
            heading("Queues by pool")
            self._rows = {pool: _PoolRow(pool) for pool in Pool}

    def show(self, snapshot: SystemSnapshot) -> None:
        """Show the load of each pool."""
        depths = {pool: snapshot.depth(pool) for pool in Pool}
        longest = max(depth.queued + depth.running for depth in depths.values())
        for pool, depth in depths.items():
            self._rows[pool].show(depth, snapshot.workers(pool), longest)


_COLUMNS: Final = (
    "Fleet",
    "Models",
    "Queued",
    "Running",
    *(f"{pool.capitalize()} workers" for pool in Pool),
    "Paused",
    "At risk",
)


class FleetTable:
    """The load of each fleet; hidden while there is only one."""

    def __init__(self) -> None:
        self._section = ui.element("section").classes("card section")
        self._section.set_visibility(False)
        with self._section:
            heading("Fleets")
            self._table = Rebuilt(_build_fleets, "scrolled-x")

    def show(self, snapshot: SystemSnapshot) -> None:
        """Show the load of each fleet."""
        self._section.set_visibility(len(snapshot.fleets) > 1)
        if len(snapshot.fleets) > 1:
            self._table.show(tuple(fleet_row(name, each) for name, each in snapshot.by_fleet()))


def fleet_row(name: str, fleet: SystemSnapshot) -> tuple[str, ...]:
    """Return the cells of a fleet, from its snapshot, in the order of the columns."""
    depths = [fleet.depth(pool) for pool in Pool]
    load = fleet.fleets[name]
    paused = [pool for pool in Pool if fleet.pause(FleetPool(name, pool)) is not None]
    return (
        name,
        models_in_words(load.models),
        number(sum(depth.queued for depth in depths)),
        number(sum(depth.running for depth in depths)),
        *(number(fleet.workers(pool)) for pool in Pool),
        ", ".join(paused) or "—",
        number(load.at_risk),
    )


def _build_fleets(rows: Sequence[Sequence[str]]) -> None:
    with ui.element("table").classes("plain-table fleets"):
        with ui.element("thead"), ui.element("tr"):
            for column in _COLUMNS:
                with ui.element("th").props("scope=col"):
                    ui.label(column)
        with ui.element("tbody"):
            for name, *cells in rows:
                with ui.element("tr"):
                    with ui.element("th").props("scope=row"):
                        ui.link(name, queues_path(name))
                    for cell in cells:
                        with ui.element("td"):
                            ui.label(cell)


class _PoolRow:
    def __init__(self, pool: Pool) -> None:
        with ui.element("div").classes("pool"):
            with ui.element("div").classes("pool-head"):
                pool_badge(pool)
                self._workers = ui.label("").classes("muted small")
            with ui.element("div").classes("bar").props("aria-hidden=true"):
                self._running = ui.element("div").classes("fill-info")
                self._queued = ui.element("div").classes(f"fill-{POOL_TONES[pool]}")
            self._figures = ui.label("—").mark(f"{pool} figures")

    def show(self, depth: Depth, workers: int, longest: int) -> None:
        self._workers.text = f"{counted(workers, 'worker')} running"
        self._figures.text = f"{number(depth.queued)} queued · {number(depth.running)} running"
        for bar, value in ((self._running, depth.running), (self._queued, depth.queued)):
            bar.style(f"width: {value / longest:.1%}" if longest else "width: 0")


FIRST_COMMAND: Final = "lowtide submit requests.jsonl --window 24h --watch"


def install(watching: Watching, dashboards: Dashboards, *, api_url: str) -> None:
    """Serve the landing page."""

    @page("/")
    async def landing() -> None:
        live = Live(watching.poller)
        history = FollowedHistory(watching, live)
        await soon(watching.poller.fresh(timeout=1.0), history.follow(HistoryRange.HOUR))
        with live.page("Overview", api_url=api_url):
            parts = _build(dashboards)
        live.keep(lambda: _show(parts, watching, history))


@dataclass
class _Parts:
    problem: ui.label
    pauses: PauseNotes
    concerns: ConcernList
    alerts: AlertList
    cards: dict[str, StatCard]
    charts: tuple[TimeChart, ...]
    pools: PoolPanel
    health: HealthPanel
    fleets: FleetTable
    table: BatchTable
    listed: ui.element
    empty: ui.element


def _show(parts: _Parts, watching: Watching, history: FollowedHistory) -> None:
    now = datetime.now(UTC)
    reading, diagnosis = watching.system.seen, watching.diagnose()
    parts.health.show(reading.database, now)
    if watching.api is not None:
        parts.health.show_api(watching.api.found, now)
    parts.health.show_diagnosis(diagnosis, now, with_api=watching.api is None)
    parts.problem.set_visibility(reading.problem is not None and PULSE.answering)
    if reading.problem is not None:
        parts.problem.text = _explain(reading.snapshot, now)
    if diagnosis is not None:
        cells = () if watching.cells.watch is None else watching.cells.watch.concerns()
        found = (*concerns(diagnosis.snapshot), *diagnosis.concerns(), *cells)
        parts.concerns.show(sorted(found, key=lambda concern: concern.severity))
    if watching.alerts is not None:
        parts.alerts.show(watching.alerts.seen, now)
    if history.seen is not None:
        engines = () if reading.snapshot is None else reading.snapshot.lost_engines
        marks = marks_of(history.seen, engines)
        for chart in parts.charts:
            chart.show(history.seen, marks)
    if reading.snapshot is not None:
        _show_snapshot(parts, reading.snapshot, now)


def _build(dashboards: Dashboards) -> _Parts:
    dashboard_links(dashboards.overview())
    problem = ui.label("").classes("banner").props("role=status")
    pauses = PauseNotes()
    concern_list = ConcernList()
    alerts = AlertList(dashboards)
    with ui.element("div").classes("cards"):
        titles = ("Batches in progress", "Completed batches", "Failed batches", "All batches")
        cards = {title: StatCard(title) for title in titles}
    with ui.element("div").classes("halves"):
        pools = PoolPanel()
        health = HealthPanel()
    fleets = FleetTable()
    with ui.element("div").classes("halves"):
        depth = lines_by_pool(lambda each: each.queued)
        throughput = lines_by_pool(lambda each: each.throughput)
        charts = (
            TimeChart("Queue depth", "requests, last hour", depth, filled=True, integers=True),
            TimeChart("Throughput", "requests per second, last hour", throughput),
        )
    with ui.element("section").classes("card table-card"):
        with ui.element("div").classes("section-head"):
            heading("Recent batches")
            ui.label(f"newest {MAX_RECENT}").classes("muted small")
        with ui.element("div") as listed:
            table = BatchTable(with_tenants=True)
        empty = empty_state(
            "No batches yet", "Submit a JSONL file with one request per line:", FIRST_COMMAND
        )
        listed.set_visibility(False)
        empty.set_visibility(False)
    return _Parts(
        problem,
        pauses,
        concern_list,
        alerts,
        cards,
        charts,
        pools,
        health,
        fleets,
        table,
        listed,
        empty,
    )


def _show_snapshot(parts: _Parts, snapshot: SystemSnapshot, now: datetime) -> None:
    parts.pauses.show(snapshot.pauses, now)
    _show_totals(parts.cards, snapshot.totals)
    parts.pools.show(snapshot)
    parts.fleets.show(snapshot)
    parts.health.show_workers(snapshot)
    parts.listed.set_visibility(bool(snapshot.recent))
    parts.empty.set_visibility(not snapshot.recent)
    parts.table.show(snapshot.recent, now, snapshot.names)


def _show_totals(cards: dict[str, StatCard], totals: Totals) -> None:
    at_risk = f"{number(totals.at_risk)} at risk" if totals.at_risk else "none at risk"
    cards["Batches in progress"].show(number(totals.in_progress), at_risk)
    cards["Completed batches"].show(number(totals.completed), "last 24 hours")
    cancelled = f"; {number(totals.cancelled)} more cancelled" if totals.cancelled else ""
    cards["Failed batches"].show(
        number(totals.failed), f"last 24 hours{cancelled}", alarming=totals.failed > 0
    )
    cards["All batches"].show(number(totals.batches), "all time")


def _explain(snapshot: SystemSnapshot | None, now: datetime) -> str:
    if snapshot is None:
        return "The database cannot be read. There is no data to show yet."
    return f"The database cannot be read. The data shown was read {ago(snapshot.at, now)}."
