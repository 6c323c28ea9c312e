"""One batch: how it stands, what happened to it, and its requests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from fastapi import Request  # noqa: TC002 - read at run time, to know what the page takes
from nicegui import ui

from lowtide import wiring
from lowtide.domain.errors import LowtideError, NotFound
from lowtide.domain.ids import format_batch_id, parse_batch_id
from portal.background import in_thread
from portal.batch_query import LineQuery, clean
from portal.components.batch_panels import BatchPanels
from portal.components.cancelling import cancel_batches
from portal.components.line_drawer import open_drawer
from portal.components.line_table import LineTable
from portal.components.line_tabs import line_tabs
from portal.components.pager import Pager
from portal.components.rebuilt import Rebuilt
from portal.live import Live
from portal.readings import Readings, Subject, at_most_every
from portal.sessions import current_visitor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.domain.batch_details import BatchDetails
    from lowtide.domain.ids import BatchId
    from lowtide.domain.requests import RequestState
    from portal.dashboards import Dashboards
    from portal.polling import Poller

PAGE_SIZE: Final = 50
SEARCH_INTERVAL: Final = 10.0
"""Seconds between two walks through a whole batch for one custom_id."""


def install(poller: Poller, readings: Readings, dashboards: Dashboards, *, api_url: str) -> None:
    """Serve the page of a batch."""

    @ui.page("/batches/{batch_id}")
    async def batch(request: Request, batch_id: str) -> None:
        found = parse_batch_id(batch_id)
        live = Live(poller)
        if found is None:
            with live.page("No such batch", api_url=api_url):
                _missing(f"{batch_id[:100]!r} is not the id of a batch.")
            ui.context.client.status_code = 404
            return
        query = LineQuery.read(found, request.query_params)
        await BatchPage(live, readings, query, dashboards).open(api_url)


def _missing(message: str) -> None:
    with ui.element("div").classes("card section"):
        ui.label(message).classes("break")
        ui.link("See all batches", "/batches")


@dataclass(frozen=True, slots=True)
class Seen:
    """One reading of a batch and a page of its lines."""

    details: BatchDetails
    lines: Sequence[RequestState]
    more: bool


class BatchPage:
    """One open page."""

    def __init__(
        self, live: Live, readings: Readings, query: LineQuery, dashboards: Dashboards
    ) -> None:
        self._dashboards = dashboards
        self._live = live
        self._readings = readings
        self._query = query
        self._visitor = current_visitor()
        self._desks = wiring.desks_for(self._visitor)
        self._follower = ui.context.client.id
        self._behind: list[int] = []
        self._subject: Subject[Seen]

    async def open(self, api_url: str) -> None:
        """Build the page, or say that there is no such batch."""
        # Before anything can fail: what nobody unfollows is read until the portal restarts.
        ui.context.client.on_delete(lambda: self._readings.unfollow(self._follower))
        await self._read()
        reading = self._subject.reading
        if reading.value is None:
            self._readings.unfollow(self._follower)
            absent = isinstance(reading.problem, NotFound)
            ui.context.client.status_code = 404 if absent else 503
            with self._live.page("No such batch" if absent else "Batch", api_url=api_url):
                _missing("" if reading.problem is None else reading.problem.message)
            return
        with self._live.page(format_batch_id(self._query.batch), api_url=api_url):
            self._build()
        self._live.keep(self._show, self._look)
        if self._query.line is not None:
            await self._look_inside(self._query.line)

    def _build(self) -> None:
        self._problem = ui.label("").classes("banner").props("role=status")
        self._panels = BatchPanels(self._cancel, self._dashboards, may_act=self._visitor.may_act)
        with ui.element("section").classes("card table-card"):
            with ui.element("div").classes("table-tools"):
                self._tabs = Rebuilt(line_tabs, "tabs")
                self._search_box()
            self._table = LineTable(self._look_inside)
            self._nothing = ui.label("No request is like this.").classes("empty")
            self._pager = Pager(on_first=self._first, on_back=self._back, on_next=self._next)

    async def _read(self) -> None:
        """Look at this batch and this page of its lines, from now on."""
        visitor, query, browser = self._visitor, self._query, self._desks.browser

        page = at_most_every(
            SEARCH_INTERVAL if query.custom_id else 0.0,
            lambda: browser.lines(
                visitor,
                query.batch,
                query.status,
                query.custom_id,
                after=query.after,
                limit=PAGE_SIZE,
            ),
        )

        def read() -> Seen:
            details = browser.details(visitor, query.batch)
            lines, more = page()
            return Seen(details, tuple(lines), more)

        key = ("batch", visitor.tenant, replace(query, line=None))
        subject = Subject(key, read)
        self._subject = self._readings.follow(self._follower, subject, lambda: self._live.paused)
        await in_thread(self._subject.look)

    def _show(self) -> None:
        reading = self._subject.reading
        self._problem.set_visibility(reading.problem is not None)
        if reading.problem is not None:
            self._problem.text = reading.problem.message
        if (seen := reading.value) is None:
            return
        self._panels.show(seen.details, datetime.now(UTC))
        self._tabs.show(self._query)
        self._table.show(seen.lines)
        self._nothing.set_visibility(not seen.lines)
        self._pager.show(first=self._query.after == 0, more=seen.more)

    def _look(self) -> None:
        self._subject.look()

    async def _look_inside(self, line: int) -> None:
        batch = self._query.batch
        try:
            visitor = current_visitor()
            details = await in_thread(lambda: self._desks.browser.line(visitor, batch, line))
        except LowtideError as error:
            ui.notify(error.message, type="negative", position="bottom")
            return
        open_drawer(details)

    async def _cancel(self) -> None:
        batches: list[BatchId] = [self._query.batch]
        if await cancel_batches(self._desks.desk, batches):
            await in_thread(self._subject.look)
            self._show()

    def _search_box(self) -> None:
        box = ui.input("Custom id begins with", value=self._query.custom_id)
        box.props("dense outlined clearable debounce=350 data-search maxlength=256")
        box.classes("narrow-field")
        box.on_value_change(lambda event: self._search(clean(event.value or "")))

    async def _search(self, custom_id: str) -> None:
        self._behind.clear()
        self._query = replace(self._query, custom_id=custom_id)
        await self._go(0)

    async def _go(self, after: int) -> None:
        self._query = replace(self._query, after=after, line=None)
        ui.navigate.history.replace(self._query.address())
        await self._read()
        self._show()

    async def _first(self) -> None:
        self._behind.clear()
        await self._go(0)

    async def _back(self) -> None:
        await self._go(self._behind.pop() if self._behind else 0)

    async def _next(self) -> None:
        seen = self._subject.reading.value
        if seen is not None and seen.lines:
            self._behind.append(self._query.after)
            await self._go(seen.lines[-1].line)
