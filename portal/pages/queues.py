"""The queues: what waits, who works on it, and how that went within the last hour."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.domain.pools import Pool
from portal.components.charts import Line, SlaChart, TimeChart, lines_by_pool
from portal.components.headings import heading
from portal.components.load_table import LoadTable
from portal.components.stat_card import StatCard
from portal.formats import counted, duration, number
from portal.live import Live

if TYPE_CHECKING:
    from lowtide.domain.operations import Operations, Sample
    from lowtide.services.operations import OperationsSeen, OperationsWatch
    from portal.polling import Poller


def install(poller: Poller, operations: OperationsWatch, *, api_url: str) -> None:
    """Serve the page of queues."""

    @ui.page("/queues")
    async def queues() -> None:
        await poller.fresh(timeout=2.0)
        live = Live(poller)
        with live.page("Queues", api_url=api_url):
            parts = _build()
        live.keep(lambda: _show(parts, operations.seen))


@dataclass
class _Parts:
    problem: ui.label
    cards: dict[str, StatCard]
    charts: list[TimeChart]
    sla: SlaChart
    table: LoadTable


def _build() -> _Parts:
    problem = ui.label("").classes("banner").props("role=status")
    with ui.element("div").classes("cards"):
        titles = ("Queued", "Oldest waits", "Workers", "Throughput")
        cards = {title: StatCard(title) for title in titles}
    with ui.element("section").classes("card table-card"):
        with ui.element("div").classes("section-head"):
            heading("By tenant")
        table = LoadTable()
    with ui.element("div").classes("halves"):
        charts = _charts()
        sla = SlaChart()
    ui.label(
        "Lines over time are sampled every 15 s by this portal and kept for an hour in its memory: "
        "they begin anew when it restarts. Deadlines come from the database."
    ).classes("muted small")
    return _Parts(problem, cards, charts, sla, table)


def _charts() -> list[TimeChart]:
    replicas = [
        *(Line(f"{pool} live", pool, lambda each: each.workers) for pool in Pool),
        *(Line(f"{pool} desired", pool, lambda each: each.desired, dashed=True) for pool in Pool),
    ]
    return [
        TimeChart("Depth", "lines queued", lines_by_pool(lambda each: each.queued), filled=True),
        TimeChart("Oldest waits", "seconds", lines_by_pool(lambda each: each.oldest_age)),
        TimeChart("Replicas", "live and desired", replicas),
        TimeChart("Throughput", "lines a second", lines_by_pool(lambda each: each.throughput)),
        TimeChart("Interruptions", "a minute", lines_by_pool(lambda each: each.interruptions)),
    ]


def _show(parts: _Parts, seen: OperationsSeen) -> None:
    parts.problem.set_visibility(seen.problem is not None)
    if seen.problem is not None:
        parts.problem.text = f"{seen.problem} What you see is older."
    for chart in parts.charts:
        chart.show(seen.samples)
    if seen.reading is not None:
        _show_cards(parts.cards, seen.reading, seen.samples[-1] if seen.samples else None)
        parts.sla.show(seen.reading.sla)
        parts.table.show(seen.reading.loads, seen.reading.at)


def _show_cards(cards: dict[str, StatCard], reading: Operations, last: Sample | None) -> None:
    queued = {pool: reading.queued(pool) for pool in Pool}
    cards["Queued"].show(number(sum(queued.values())), _each(queued))
    ages = {pool: reading.oldest_age(pool) for pool in Pool}
    oldest = max(ages, key=lambda pool: ages[pool])
    waits = ages[oldest] > 0
    cards["Oldest waits"].show(
        duration(timedelta(seconds=ages[oldest])) if waits else "—",
        f"in {oldest}" if waits else "nothing waits",
    )
    alive = {pool: reading.workers.get(pool, 0) for pool in Pool}
    cards["Workers"].show(number(sum(alive.values())), _each(alive))
    if last is not None:
        done = sum(each.throughput for each in last.pools.values())
        interrupted = sum(each.interruptions for each in last.pools.values())
        cards["Throughput"].show(
            f"{done:.1f}/s", f"{counted(round(interrupted), 'interruption')} a minute"
        )


def _each(values: dict[Pool, int]) -> str:
    return " · ".join(f"{number(value)} {pool}" for pool, value in values.items())
