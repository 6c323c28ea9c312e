"""The queues page: depth, workers, throughput, and pausing of pools."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, TypedDict
from urllib.parse import urlencode

from fastapi import Request  # noqa: TC002 - read at run time, to know what the page takes
from nicegui import ui

from lowtide.core.pools import SPOT_HOURS, FleetPool, Pool
from lowtide.status.history import HistoryRange
from portal.components.basics import BADGE_CELL, Badge, StatCard, heading, pool_badge, pool_of
from portal.components.charts import (
    Line,
    SlaChart,
    TimeChart,
    lines_by_pool,
    marks_of,
    range_choice,
)
from portal.components.frame import page
from portal.components.pausing import PauseNotes, set_paused
from portal.dashboards import dashboard_links
from portal.formats import counted, duration, models_in_words, number, token_rates
from portal.live import Live, Rebuilt
from portal.loading import soon
from portal.pulse import PULSE
from portal.services import in_thread, lowtide
from portal.sessions import current_principal
from portal.theme import Tone
from portal.watching import FollowedHistory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from lowtide.status.history import History, PoolPoint
    from lowtide.status.snapshot import EngineUse, SystemSnapshot, TenantLoad
    from portal.dashboards import Dashboards
    from portal.watching import Watching


class LoadRow(TypedDict):
    """A tenant's requests in a pool, as a table row."""

    key: str
    tenant: str
    pool: Badge
    queued: str
    running: str
    oldest: str


_LABELS: Final = {
    "tenant": "Tenant",
    "pool": "Pool",
    "queued": "Queued",
    "running": "Running",
    "oldest": "Longest wait",
}
_POOL: Final = BADGE_CELL.replace("badge.", "props.row.pool.")
_NARROW: Final = f"""
<div class="batch-item">
  <div class="batch-line"><span class="user ellipsis">{{{{ props.row.tenant }}}}</span>{_POOL}</div>
  <div class="batch-notes">
    <span>{{{{ props.row.queued }}}} queued · {{{{ props.row.running }}}} running</span>
    <span class="muted">longest wait {{{{ props.row.oldest }}}}</span>
  </div>
</div>
"""
_NUMERIC: Final = ("queued", "running", "oldest")


class LoadTable:
    """Queues by tenant, or a notice while nothing waits or runs."""

    def __init__(self) -> None:
        self._rows: list[LoadRow] | None = None
        columns = [
            {
                "name": name,
                "label": label,
                "field": name,
                "align": "right" if name in _NUMERIC else "left",
            }
            for name, label in _LABELS.items()
        ]
        self._table = ui.table(rows=[], columns=columns, row_key="key").props(
            'flat hide-pagination :rows-per-page-options="[0]" :grid="Quasar.Screen.width < 700"'
        )
        self._table.add_slot("body-cell-pool", f'<q-td :props="props">{_POOL}</q-td>')
        self._table.add_slot("item", _NARROW)
        self._table.add_slot("no-data", '<span class="muted">No queued or running requests.</span>')

    def show(self, loads: Sequence[TenantLoad], now: datetime) -> None:
        """Show these loads; nothing is sent while they stay the same."""
        rows = [row for load in loads for row in rows_of(load, now)]
        if rows != self._rows:
            self._rows = rows
            self._table.rows = [dict(row) for row in rows]


def rows_of(load: TenantLoad, now: datetime) -> list[LoadRow]:
    """Return the table rows of a load: one for each pool with requests."""
    return [
        LoadRow(
            key=f"{load.tenant} {pool}",
            tenant=load.name,
            pool=pool_of(pool),
            queued=number(depth.queued),
            running=number(depth.running),
            oldest=duration(timedelta(seconds=load.oldest_age(pool, now)))
            if pool in load.oldest
            else "—",
        )
        for pool, depth in load.depths.items()
        if depth.queued or depth.running
    ]


class PoolControl:
    """The state of a fleet's pool; `may_act` adds the button that pauses or resumes it."""

    def __init__(
        self,
        place: FleetPool,
        *,
        may_act: bool,
        on_pause: Callable[[FleetPool, bool], Awaitable[None]],
    ) -> None:
        self._place = place
        self._pool = pool = place.pool
        self._paused = False
        with ui.element("div").classes("pool"):
            with ui.element("div").classes("pool-head"):
                with ui.element("span").classes("badges"):
                    pool_badge(pool)
                    self._state = ui.label("").classes("badge").mark(f"{pool} state")
                self._button = self._add_button(on_pause) if may_act else None
            self._figures = ui.label("")
            self._engines = ui.label("").mark(f"{pool} engines")
        self._show_state(paused=False)

    def _add_button(self, on_pause: Callable[[FleetPool, bool], Awaitable[None]]) -> ui.button:
        button = ui.button("", on_click=lambda: on_pause(self._place, not self._paused), color=None)
        return button.props("outline dense no-caps padding='4px 12px'")

    def show(self, snapshot: SystemSnapshot, desired: int) -> None:
        """Show the state of the pool, in the snapshot of its fleet."""
        depth = snapshot.depth(self._pool)
        workers = counted(snapshot.workers(self._pool), "worker")
        self._figures.text = (
            f"{counted(depth.queued, 'request')} queued, {number(depth.running)} running · "
            f"{workers} running, {number(desired)} needed"
        )
        self._engines.text = engines_in_words(
            snapshot.engines(self._pool), snapshot.workers(self._pool)
        )
        self._engines.set_visibility(bool(self._engines.text))
        paused = snapshot.pause(self._place) is not None
        if paused != self._paused:
            self._show_state(paused=paused)

    def _show_state(self, *, paused: bool) -> None:
        self._paused = paused
        tone, other = (Tone.WARN, Tone.GOOD) if paused else (Tone.GOOD, Tone.WARN)
        self._state.text = "Paused" if paused else "Active"
        self._state.classes(remove=f"badge-{other}", add=f"badge-{tone}")
        if self._button is not None:
            verb, more = ("Resume", "") if paused else ("Pause", "…")
            self._button.text = f"{verb} {self._pool}{more}"
            self._button.props["aria-label"] = f"{verb} {self._place.label}{more}"


def engines_in_words(engines: EngineUse, workers: int) -> str:
    """Return the use of a pool's engines in words; empty while nothing of it is known."""
    load = []
    if engines.running is not None:
        load.append(f"{number(engines.running)} running")
    if engines.waiting is not None:
        load.append(f"{number(engines.waiting)} waiting")
    if engines.kv_cache is not None:
        caches = "KV cache" if engines.reporting == 1 else "KV caches up to"
        load.append(f"{caches} {engines.kv_cache:.0%} full")
    parts = [token_rates(engines.input_rate, engines.output_rate)]
    if load:
        some = engines.reporting < workers
        where = (
            f"{number(engines.reporting)} of {counted(workers, 'engine')}" if some else "engines"
        )
        parts.append(f"in {where}: {', '.join(load)}")
    return " · ".join(filter(None, parts))


PATH: Final = "/queues"
_HOW: Final = (
    "The scheduler takes a sample per minute. Each point is the max of its step, or the mean for "
    "rates; a gap means that there was no sample. Cost counts accepted results only."
)
_PRICES: Final = "Fleets whose prices differ have no common cost: choose one of them."
_FIRST_RANGE: Final = HistoryRange.HOUR


def install(watching: Watching, dashboards: Dashboards, *, api_url: str) -> None:
    """Serve the queues page."""

    @page(PATH)
    async def queues(request: Request) -> None:
        parameters = request.query_params
        history_range = range_of(parameters.get("range", ""))
        page = QueuesPage(watching, history_range, parameters.get("fleet"))
        await page.open(dashboards, api_url)


def range_of(text: str) -> HistoryRange:
    """Return the range of a URL parameter; the shortest if it is invalid."""
    return next((each for each in HistoryRange if each.value == text), _FIRST_RANGE)


def address_of(history_range: HistoryRange, fleet: str | None = None) -> str:
    """Return the URL of a range, of one fleet or of all."""
    chosen = {"range": "" if history_range is _FIRST_RANGE else history_range.value, "fleet": fleet}
    parameters = urlencode({name: value for name, value in chosen.items() if value})
    return f"{PATH}?{parameters}" if parameters else PATH


class QueuesPage:
    """An open queues page."""

    def __init__(self, watching: Watching, history_range: HistoryRange, fleet: str | None) -> None:
        self._watching = watching
        self._fleet = fleet
        self._live = Live(watching.poller)
        self._range = history_range
        self._principal = current_principal()
        self._history = FollowedHistory(watching, self._live)

    async def open(self, dashboards: Dashboards, api_url: str) -> None:
        """Build the page and keep it current until it is closed."""
        await soon(self._watching.poller.fresh(timeout=1.0))
        if self._fleet not in self._fleets():
            self._fleet = None
        await soon(self._history.follow(self._range, self._fleet))
        with self._live.page("Queues", api_url=api_url):
            dashboard_links(dashboards.queues())
            self._build()
        self._live.keep(self._show)

    def _fleets(self) -> tuple[str, ...]:
        """Return the names of the fleets; before the first reading, the declared ones."""
        snapshot = self._watching.system.seen.snapshot
        return lowtide().services.fleets.names if snapshot is None else tuple(snapshot.fleets)

    def _build(self) -> None:
        self._problem = ui.label("").classes("banner").props("role=status")
        self._pauses = PauseNotes()
        self._choice = Rebuilt(self._build_choice, "fleet-choice")
        with ui.element("div").classes("cards"):
            titles = ("Queued requests", "Longest wait", "Workers", "Throughput")
            self._cards = {title: StatCard(title) for title in titles}
        self._controls: dict[FleetPool, PoolControl] = {}
        with ui.element("section").classes("card section"):
            heading("Pools")
            self._pools = Rebuilt(self._build_pools, "pools")
        with ui.element("section").classes("card table-card"):
            with ui.element("div").classes("section-head"):
                heading("By tenant")
            self._table = LoadTable()
        with ui.element("div").classes("range-head"):
            heading("History")
            range_choice(self._range, self._choose_range)
        self._charts: list[TimeChart] = []
        self._history_charts = Rebuilt(self._build_charts, "halves")
        several = len(self._fleets()) > 1
        ui.label(f"{_HOW} {_PRICES}" if several else _HOW).classes("muted small")

    def _build_choice(self, fleets: tuple[str, ...]) -> None:
        if len(fleets) > 1:
            options = {"": "All fleets", **{name: name for name in fleets}}
            ui.select(
                options,
                value=self._fleet or "",
                label="Fleet",
                on_change=lambda event: self._choose_fleet(event.value or None),
            ).props("dense outlined options-dense")

    def _build_pools(self, shown: _Shown) -> None:
        self._controls.clear()
        for name in shown.fleets:
            if shown.of_several:
                with ui.element("div").classes("chart-head"):
                    heading(name, level=3)
                    ui.label(self._models(name)).classes("muted small")
            with ui.element("div").classes("fleet-pools" if shown.of_several else "section"):
                for pool in Pool:
                    place = FleetPool(name, pool)
                    self._controls[place] = PoolControl(
                        place, may_act=self._principal.may_act, on_pause=self._set_paused
                    )

    def _models(self, fleet: str) -> str:
        snapshot = self._watching.system.seen.snapshot
        return "" if snapshot is None else models_in_words(snapshot.fleets[fleet].models)

    def _build_charts(self, shown: _Shown) -> None:
        self._charts = _charts(shown.fleets)
        self._sla = SlaChart()

    async def _choose_range(self, history_range: HistoryRange) -> None:
        self._range = history_range
        await self._follow()

    async def _choose_fleet(self, fleet: str | None) -> None:
        self._fleet = fleet
        await self._follow()

    async def _follow(self) -> None:
        ui.navigate.history.replace(address_of(self._range, self._fleet))
        await self._history.follow(self._range, self._fleet)
        self._show()

    async def _set_paused(self, place: FleetPool, paused: bool) -> None:
        if await set_paused(lowtide().pools, place, paused=paused):
            await in_thread(self._watching.system.look)
            self._show()

    def _show(self) -> None:
        reading = self._watching.system.seen
        self._problem.set_visibility(reading.problem is not None and PULSE.answering)
        if reading.problem is not None:
            self._problem.text = f"{reading.problem} The data shown may be outdated."
        fleets = self._fleets()
        shown = _Shown((self._fleet,) if self._fleet else fleets, len(fleets) > 1)
        self._choice.show(fleets)
        self._pools.show(shown)
        self._history_charts.show(shown)
        snapshot = reading.snapshot
        if snapshot is not None and self._fleet is not None:
            snapshot = snapshot.of_fleet(self._fleet)
        if (history := self._history.seen) is not None:
            marks = marks_of(history, () if snapshot is None else snapshot.lost_engines)
            for chart in self._charts:
                chart.show(history, marks)
            self._sla.show(history)
            self._cards["Throughput"].show(*throughput(history))
        if snapshot is not None:
            self._show_snapshot(snapshot)

    def _show_snapshot(self, snapshot: SystemSnapshot) -> None:
        self._pauses.show(snapshot.pauses, datetime.now(UTC))
        for (name, pool), control in self._controls.items():
            fleet = snapshot.of_fleet(name)
            control.show(fleet, self._watching.system.desired(pool, fleet))
        _show_cards(self._cards, snapshot)
        self._table.show(snapshot.tenants, snapshot.at)


@dataclass(frozen=True, slots=True)
class _Shown:
    """The fleets that a page shows; `of_several` if the installation has more than one."""

    fleets: tuple[str, ...]
    of_several: bool


def _charts(fleets: Sequence[str]) -> list[TimeChart]:
    workers = [
        *(Line(f"{pool} running", pool, lambda each: each.live) for pool in Pool),
        *(Line(f"{pool} needed", pool, lambda each: each.desired, dashed=True) for pool in Pool),
    ]
    depth = lines_by_pool(lambda each: each.queued)
    waits = lines_by_pool(lambda each: each.oldest_age / 60)
    running = lines_by_pool(lambda each: each.running)
    return [
        TimeChart("Queue depth", "requests", depth, filled=True, integers=True),
        TimeChart("Running requests", "claimed by workers", running, filled=True, integers=True),
        TimeChart("Longest wait", "minutes", waits),
        TimeChart("Workers", "running and needed", workers, integers=True),
        TimeChart("Throughput", "requests per second", lines_by_pool(lambda each: each.throughput)),
        TimeChart("Interruptions", "per minute", lines_by_pool(lambda each: each.interruptions)),
        *_cost_chart(fleets),
    ]


def _cost_chart(fleets: Sequence[str]) -> Iterator[TimeChart]:
    """Yield the chart of cost, but none for fleets of different prices: samples hold no prices."""
    services = lowtide().services
    shown = [fleet for fleet in services.fleets if fleet.name in fleets] or [*services.fleets]
    prices = {services.prices(fleet) for fleet in shown}
    if len(prices) == 1:
        (each,) = prices
        unit = "spot workers" if each.currency == SPOT_HOURS else f"{each.currency} per hour"
        lines = [
            Line(pool.value, pool, partial(_cost, price=each.of_second(pool) * 3600))
            for pool in Pool
        ]
        yield TimeChart("Cost", unit, lines)


def _cost(point: PoolPoint, price: float) -> float | None:
    return None if point.earning is None else point.earning * price


def throughput(history: History) -> tuple[str, str]:
    """Return the last points of the throughput chart, added up, and their parts."""
    pools = history.points[-1].pools if history.points else {}
    rates = {
        pool: rate
        for pool in Pool
        if pool in pools and (rate := pools[pool].throughput) is not None
    }
    if not rates:
        return "—", "no sample"
    parts = " · ".join(f"{rate:.3g} {pool}" for pool, rate in rates.items())
    return f"{sum(rates.values()):.3g}/s", f"{parts}, mean of {duration(history.range.step)}"


def _show_cards(cards: dict[str, StatCard], snapshot: SystemSnapshot) -> None:
    queued = {pool: snapshot.depth(pool).queued for pool in Pool}
    cards["Queued requests"].show(number(sum(queued.values())), _by_pool(queued))
    oldest = max(filter(queued.get, Pool), key=snapshot.oldest_age, default=None)
    if oldest is None:
        cards["Longest wait"].show("—", "no queued requests")
    else:
        age = timedelta(seconds=snapshot.oldest_age(oldest))
        cards["Longest wait"].show(duration(age), f"in {oldest}")
    workers = {pool: snapshot.workers(pool) for pool in Pool}
    cards["Workers"].show(number(sum(workers.values())), _by_pool(workers))


def _by_pool(values: dict[Pool, int]) -> str:
    return " · ".join(f"{number(value)} {pool}" for pool, value in values.items())
