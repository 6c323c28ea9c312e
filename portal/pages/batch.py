"""The batch page: state, history and requests of one batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from fastapi import Request  # noqa: TC002 - read at run time, to know what the page takes
from nicegui import ui

from lowtide.batches.model import CANCELLABLE_STATUSES, RequestStatus
from lowtide.core.errors import LowtideError, NotFound
from lowtide.core.ids import format_batch_id, parse_batch_id
from portal.components.batch_actions import cancel_batches, run_failed_again, title_of
from portal.components.explanation import card_of, card_without_data, explanation_card
from portal.components.frame import page
from portal.dashboards import dashboard_links
from portal.formats import counted, number
from portal.listing import Pager
from portal.live import Live, Rebuilt
from portal.loading import load
from portal.pages import batch_facts
from portal.pages.batch_facts import steps_of, timeline
from portal.pages.batch_requests import REQUESTS, LineTable, line_tabs, open_drawer
from portal.polling import Readings, Subject, at_most_every
from portal.pulse import PULSE
from portal.queries import LineQuery, clean
from portal.services import in_thread, services_for
from portal.sessions import current_principal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from lowtide.batches.model import Batch, Outcomes
    from lowtide.batches.results import RequestState
    from lowtide.batches.views import BatchDetails
    from lowtide.explain.model import Explanation
    from portal.dashboards import Dashboards
    from portal.polling import Poller


LINES_PER_PAGE: Final = 25


class BatchPanels:
    """The panels above the table of requests: what matters first, the rest in tabs."""

    def __init__(
        self,
        on_cancel: Callable[[], Awaitable[None]],
        on_rerun: Callable[[], Awaitable[None]],
        dashboards: Dashboards,
        *,
        may_act: bool,
    ) -> None:
        self._may_act = may_act
        # The dashboards show every tenant's work.
        self._dashboards = dashboards if current_principal().tenant is None else None
        with ui.element("section").classes("card section"):
            with ui.element("div").classes("batch-head"):
                self._head = Rebuilt(batch_facts.head, "batch-head")
                ui.element("div").classes("spacer")
                self._links = Rebuilt(dashboard_links)
                self._cancel = ui.button("Cancel batch…", on_click=on_cancel, color=None)
                self._cancel.props("flat dense no-caps").classes("dangerous")
                self._rerun = ui.button("Run failed again…", on_click=on_rerun, color=None)
                self._rerun.props("flat dense no-caps")
            self._facts = Rebuilt(batch_facts.facts)
            self._progress = Rebuilt[tuple["Batch", str]](
                lambda batch_and_eta: batch_facts.progress(*batch_and_eta), "section"
            )
        self._problems = Rebuilt(batch_facts.problems, "section")
        self._tiles = Rebuilt[tuple["Outcomes", int, LineQuery]](
            lambda counts: outcome_tiles(*counts), "tiles"
        )
        with ui.element("section").classes("card section"):
            self._explanation = Rebuilt(explanation_card, "section")
        with ui.element("section").classes("card section details"):
            self._build_tabs()
        self._is_shown = False

    def _build_tabs(self) -> None:
        with ui.tabs().props("no-caps dense align=left") as self._tabs:
            for name in ("Timeline", "Errors", "Events", "Cost"):
                ui.tab(name)
        with ui.tab_panels(self._tabs, value="Timeline", animated=False):
            with ui.tab_panel("Timeline"):
                self._timeline = Rebuilt(timeline)
            with ui.tab_panel("Errors"):
                self._errors = Rebuilt(batch_facts.errors, "section")
            with ui.tab_panel("Events"):
                self._notes = Rebuilt(batch_facts.notes, "section")
            with ui.tab_panel("Cost"):
                self._cost = Rebuilt(batch_facts.cost, "section")

    def show(
        self,
        details: BatchDetails,
        explanation: Explanation | None,
        query: LineQuery,
        now: datetime,
    ) -> None:
        """Show a new reading."""
        if not self._is_shown and details.errors:
            self._tabs.value = "Errors"
        self._is_shown = True
        forecast = details.batch
        ended_at = forecast.data_ended_at
        if explanation is not None:
            self._explanation.show(card_of(explanation))
        elif ended_at is not None:
            self._explanation.show(card_without_data(ended_at))
        # Values that change with every reading would rebuild every panel.
        batch = replace(forecast, eta=None)
        details = replace(details, at=batch.created_at, batch=batch)
        self._head.show(batch)
        id_, since, until = format_batch_id(batch.id), batch.created_at, batch.ended_at
        if self._dashboards is not None:
            trace = self._dashboards.trace(batch.trace.trace_id if batch.trace else None)
            self._links.show(self._dashboards.batch(id_, since, until, now) + trace)
        self._cancel.set_visibility(self._may_act and batch.status in CANCELLABLE_STATUSES)
        can_rerun = self._may_act and batch.ended_at is not None and batch.failed > 0
        can_rerun = can_rerun and batch.data_ended_at is None
        self._rerun.set_visibility(can_rerun)
        for panel in (self._facts, self._errors, self._notes, self._cost):
            panel.show(details)
        self._progress.show((batch, batch_facts.eta_of(forecast, now)))
        self._problems.show(batch)
        self._timeline.show(steps_of(forecast, now))
        self._tiles.show((batch.outcomes, batch.total, query))


def outcome_tiles(outcomes: Outcomes, total: int, query: LineQuery) -> None:
    """Show the number of requests in each state, each with a link to these requests."""
    for status in (None, *RequestStatus):
        count = total if status is None else outcomes.of(status)
        link = ui.element("a").classes("card stat tile")
        link.props["href"] = f"{query.only(status).address()}#{REQUESTS}"
        if status is query.status:
            link.props("aria-current=page")
        with link:
            ui.label("Total" if status is None else status.value).classes("muted")
            value = ui.label(number(count)).classes("value")
            if status is RequestStatus.FAILED and count:
                value.classes("bad")
                if outcomes.dead_lettered:
                    note = counted(outcomes.dead_lettered, "dead letter")
                    ui.label(note).classes("muted small")


SEARCH_INTERVAL: Final = 10.0
"""Seconds between two scans of a whole batch for a custom_id."""


def install(poller: Poller, readings: Readings, dashboards: Dashboards, *, api_url: str) -> None:
    """Serve the batch page."""

    @page("/batches/{batch_id}")
    async def batch(request: Request, batch_id: str) -> None:
        parsed = parse_batch_id(batch_id)
        live = Live(poller)
        if parsed is None:
            with live.page("Batch not found", api_url=api_url):
                _missing(f"{batch_id[:100]!r} is not a batch id.")
            ui.context.client.status_code = 404
            return
        query = LineQuery.read(parsed, request.query_params)
        await BatchPage(live, readings, query, dashboards).open(api_url)


def _missing(message: str) -> None:
    with ui.element("div").classes("card section"):
        ui.label(message).classes("break")
        ui.link("View all batches", "/batches")


@dataclass(frozen=True, slots=True)
class Seen:
    """One reading of a batch and of a page of its requests."""

    details: BatchDetails
    explanation: Explanation | None
    lines: Sequence[RequestState]
    more: bool


class BatchPage:
    """An open batch page."""

    def __init__(
        self, live: Live, readings: Readings, query: LineQuery, dashboards: Dashboards
    ) -> None:
        self._dashboards = dashboards
        self._live = live
        self._readings = readings
        self._query = query
        self._principal = current_principal()
        self._services = services_for(self._principal)
        self._follower = ui.context.client.id
        self._previous: list[int] = []
        self._subject: Subject[Seen]

    async def open(self, api_url: str) -> None:
        """Build the page, or an error page if the batch cannot be read."""
        # Registered before anything can fail: else the poller reads the subject until a restart.
        ui.context.client.on_delete(lambda: self._readings.unfollow(self._follower))
        self._follow()
        with self._live.page(format_batch_id(self._query.batch), api_url=api_url):
            try:
                await load(self._subject.first)
            except LowtideError as error:
                self._readings.unfollow(self._follower)
                self._live.rename("Batch not found" if isinstance(error, NotFound) else "Batch")
                ui.context.client.status_code = error.status
                _missing(error.message)
                return
            self._build()
        self._live.keep(self._show, self._reread)
        # The table did not exist yet when the browser looked for the fragment.
        ui.run_javascript(
            f"if (location.hash === '#{REQUESTS}') document.getElementById('{REQUESTS}').scrollIntoView()"
        )
        if self._query.line is not None:
            await self._open_request(self._query.line)

    def _build(self) -> None:
        self._problem = ui.label("").classes("banner").props("role=status")
        self._panels = BatchPanels(
            self._cancel, self._rerun, self._dashboards, may_act=self._principal.may_act
        )
        with ui.element("section").classes("card table-card").props(f"id={REQUESTS}"):
            with ui.element("div").classes("table-tools"):
                self._tabs = Rebuilt[tuple["Outcomes", int, LineQuery]](
                    lambda counts: line_tabs(*counts), "tabs"
                )
                self._search_box()
            self._table = LineTable(self._open_request)
            self._empty_label = ui.label("No matching requests.").classes("empty")
            self._pager = Pager(on_first=self._first, on_back=self._back, on_next=self._next)

    def _follow(self) -> None:
        """Follow this batch and this page of its requests."""
        principal, query, browser = self._principal, self._query, self._services.browser
        explainer = self._services.explainer

        page = at_most_every(
            SEARCH_INTERVAL if query.custom_id else 0.0,
            lambda: browser.lines(
                principal,
                query.batch,
                query.status,
                query.custom_id,
                after=query.after,
                dead_lettered=query.dead_lettered,
                limit=LINES_PER_PAGE,
            ),
        )

        def read() -> Seen:
            details = browser.details(principal, query.batch)
            lines, more = page()
            has_data = details.batch.data_ended_at is None
            explanation = explainer.explain(principal.tenant, query.batch) if has_data else None
            return Seen(details, explanation, tuple(lines), more)

        key = ("batch", principal.tenant, replace(query, line=None))
        subject = Subject(key, read)
        self._subject = self._readings.follow(self._follower, subject, lambda: self._live.paused)

    def _show(self) -> None:
        reading = self._subject.reading
        # During an outage the frame has a banner.
        self._problem.set_visibility(reading.problem is not None and PULSE.answering)
        if reading.problem is not None:
            self._problem.text = reading.problem.message
        if (value := reading.value) is None:
            return
        self._panels.show(value.details, value.explanation, self._query, datetime.now(UTC))
        self._show_tabs(value)
        self._table.show(value.lines)
        self._empty_label.set_visibility(not value.lines)
        self._pager.show(first=self._query.after == 0, more=value.more)

    def _show_tabs(self, value: Seen) -> None:
        self._tabs.show((value.details.batch.outcomes, value.details.batch.total, self._query))

    def _reread(self) -> None:
        self._subject.look()

    async def _open_request(self, line: int) -> None:
        batch = self._query.batch
        try:
            principal = current_principal()
            details = await in_thread(lambda: self._services.browser.line(principal, batch, line))
        except LowtideError as error:
            ui.notify(error.message, type="negative", position="bottom")
            return
        open_drawer(details)

    async def _rerun(self) -> None:
        value = self._subject.reading.value
        if value is None:
            return
        batch = await run_failed_again(self._services.reruns, value.details.batch)
        if batch is not None:
            ui.navigate.to(f"/batches/{format_batch_id(batch)}")

    async def _cancel(self) -> None:
        batch, titles = self._query.batch, {}
        if (value := self._subject.reading.value) is not None:
            titles[batch] = title_of(value.details.batch, value.details.tenant_name or "")
        if await cancel_batches(self._services.cancellation, [batch], titles):
            await in_thread(self._subject.look)
            self._show()

    def _search_box(self) -> None:
        box = ui.input("custom_id starts with", value=self._query.custom_id)
        box.props("dense outlined clearable debounce=350 maxlength=256")
        box.classes("narrow-field")
        box.on_value_change(lambda event: self._search(clean(event.value or "")))

    async def _search(self, custom_id: str) -> None:
        self._previous.clear()
        self._query = replace(self._query, custom_id=custom_id)
        await self._navigate(0)

    async def _navigate(self, after: int) -> None:
        self._query = replace(self._query, after=after, line=None)
        # A tab that is clicked during the read must lead to the new search, not to the previous one.
        if (value := self._subject.reading.value) is not None:
            self._show_tabs(value)
        ui.navigate.history.replace(self._query.address())
        self._follow()
        await self._subject.read()
        self._show()

    async def _first(self) -> None:
        self._previous.clear()
        await self._navigate(0)

    async def _back(self) -> None:
        await self._navigate(self._previous.pop() if self._previous else 0)

    async def _next(self) -> None:
        value = self._subject.reading.value
        if value is not None and value.lines:
            self._previous.append(self._query.after)
            await self._navigate(value.lines[-1].line)
