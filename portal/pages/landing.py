"""The landing page: how everything stands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from nicegui import ui

from lowtide.services.overview import RECENT_BATCHES
from portal.components.batch_table import BatchTable
from portal.components.empty_state import empty_state
from portal.components.frame import chosen_interval, frame
from portal.components.health_panel import HealthPanel
from portal.components.pool_panel import PoolPanel
from portal.components.stat_card import StatCard
from portal.formats import absolute, ago, duration, number

if TYPE_CHECKING:
    from lowtide.domain.overview import Overview, Totals
    from lowtide.services.overview import Seen
    from portal.polling import Poller

FIRST_COMMAND: Final = "lowtide submit requests.jsonl --window 24h --watch"


def install(poller: Poller, *, api_url: str) -> None:
    """Serve the landing page."""

    @ui.page("/")
    async def landing() -> None:
        await poller.fresh(timeout=2.0)
        Landing(poller, api_url).open()


@dataclass
class _Parts:
    updated: ui.label
    problem: ui.label
    cards: dict[str, StatCard]
    pools: PoolPanel
    health: HealthPanel
    table: BatchTable
    listed: ui.element
    empty: ui.element


class Landing:
    """One open landing page."""

    def __init__(self, poller: Poller, api_url: str) -> None:
        self._poller = poller
        self._api_url = api_url
        self._interval = 0
        self._shown_at = datetime.min.replace(tzinfo=UTC)

    def open(self) -> None:
        """Build the page and keep it current until it is closed."""
        follower = ui.context.client.id

        def follow(interval: int) -> None:
            self._interval = interval
            self._poller.follow(follower, interval)

        with frame("Overview", api_url=self._api_url, on_interval=follow):
            self._parts = _build()
        follow(chosen_interval())
        ui.context.client.on_delete(lambda: self._poller.unfollow(follower))
        self._poller.changed.subscribe(self._on_change)
        self._show(self._poller.seen)

    def _on_change(self) -> None:
        now = datetime.now(UTC)
        # Half a second of tolerance: readings come a little before or after they are due.
        due = self._shown_at + timedelta(seconds=self._interval - 0.5)
        if self._interval and now >= due:
            self._show(self._poller.seen)
        else:
            self._show_age(now)

    def _show(self, seen: Seen) -> None:
        self._shown_at = now = datetime.now(UTC)
        parts = self._parts
        parts.health.show(seen.database, seen.api, now)
        unreadable = seen.database is not None and not seen.database.reachable
        parts.problem.set_visibility(unreadable)
        if unreadable:
            parts.problem.text = _explain(seen.overview, now)
        if seen.overview is not None:
            _show_overview(parts, seen.overview, now)
        self._show_age(now)

    def _show_age(self, now: datetime) -> None:
        overview = self._poller.seen.overview
        at = overview.at if overview is not None and self._interval else self._shown_at
        age = max(now - at, timedelta())
        text = f"Updated {duration(age)} ago" if age.total_seconds() >= 1 else "Updated just now"
        self._parts.updated.text = text if self._interval else f"Paused · {text.lower()}"
        self._parts.updated.props["title"] = absolute(at)


def _build() -> _Parts:
    with ui.element("div").classes("titlebar"):
        ui.html("Overview", sanitize=False, tag="h1")
        updated = ui.label("").classes("muted small").mark("updated")
    problem = ui.label("").classes("banner").props("role=status")
    with ui.element("div").classes("cards"):
        titles = ("In progress", "Completed", "Failed", "All batches")
        cards = {title: StatCard(title) for title in titles}
    with ui.element("div").classes("halves"):
        pools = PoolPanel()
        health = HealthPanel()
    with ui.element("section").classes("card batches"):
        with ui.element("div").classes("section-head"):
            ui.html("Recent batches", sanitize=False, tag="h2")
            ui.label(f"newest {RECENT_BATCHES}").classes("muted small")
        with ui.element("div") as listed:
            table = BatchTable()
        empty = empty_state(
            "No batches yet", "Send a file of requests, one JSON object a line:", FIRST_COMMAND
        )
        listed.set_visibility(False)
        empty.set_visibility(False)
    return _Parts(updated, problem, cards, pools, health, table, listed, empty)


def _show_overview(parts: _Parts, overview: Overview, now: datetime) -> None:
    _show_totals(parts.cards, overview.totals)
    parts.pools.show(overview.pools)
    parts.health.show_workers(overview.pools)
    parts.listed.set_visibility(bool(overview.recent))
    parts.empty.set_visibility(not overview.recent)
    parts.table.show(overview.recent, now)


def _show_totals(cards: dict[str, StatCard], totals: Totals) -> None:
    at_risk = f"{number(totals.at_risk)} at risk" if totals.at_risk else "none at risk"
    cards["In progress"].show(number(totals.in_progress), at_risk)
    cards["Completed"].show(number(totals.completed), "last 24 hours")
    cancelled = f", {number(totals.cancelled)} cancelled" if totals.cancelled else ""
    cards["Failed"].show(
        number(totals.failed), f"last 24 hours{cancelled}", alarming=totals.failed > 0
    )
    cards["All batches"].show(number(totals.batches), "since the beginning")


def _explain(overview: Overview | None, now: datetime) -> str:
    if overview is None:
        return "The database cannot be read, so there is nothing to show yet."
    return f"The database cannot be read. What you see is from {ago(overview.at, now)}."
