"""The panels of a batch's page, each built anew when what it says has changed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.domain.ids import format_batch_id
from lowtide.domain.statuses import CANCELLABLE_STATUSES
from portal.components import batch_facts
from portal.components.batch_timeline import steps_of, timeline
from portal.components.dashboard_links import dashboard_links
from portal.components.headings import heading
from portal.components.rebuilt import Rebuilt
from portal.components.stat_card import StatCard
from portal.formats import number
from portal.sessions import current_visitor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from lowtide.domain.batch_details import BatchDetails
    from lowtide.domain.batches import Batch
    from portal.dashboards import Dashboards

COUNTS = ("Total", "Completed", "Failed", "Queued", "Running")


class BatchPanels:
    """Everything above the table of requests."""

    def __init__(
        self,
        on_cancel: Callable[[], Awaitable[None]],
        dashboards: Dashboards,
        *,
        may_act: bool,
    ) -> None:
        self._may_act = may_act
        # They show every tenant's work.
        self._dashboards = dashboards if current_visitor().tenant is None else None
        with ui.element("section").classes("card section"):
            with ui.element("div").classes("batch-head"):
                self._head = Rebuilt(batch_facts.head, "batch-head")
                ui.element("div").classes("spacer")
                self._cancel = ui.button("Cancel batch …", on_click=on_cancel, color=None)
                self._cancel.props("flat dense no-caps")
            self._links = Rebuilt(dashboard_links)
            self._facts = Rebuilt(batch_facts.facts)
            self._progress = Rebuilt[tuple["Batch", str]](
                lambda shown: batch_facts.progress(*shown), "section"
            )
        self._problems = Rebuilt(batch_facts.problems, "section")
        with ui.element("div").classes("cards five"):
            self._counts = {name: StatCard(name) for name in COUNTS}
        with ui.element("section").classes("card section"):
            heading("Timeline")
            self._timeline = Rebuilt(timeline)
        with ui.element("div").classes("halves"):
            self._errors = _panel(
                "Top errors", lambda shown: batch_facts.errors(shown.errors, shown.batch.id)
            )
            self._notes = _panel(
                "Interruptions and escalations",
                lambda shown: batch_facts.notes(shown.notes, shown.batch),
            )
            self._cost = _panel("Cost", batch_facts.cost)
            self._files = _panel(
                "Files", lambda shown: batch_facts.files(shown.files, shown.batch.id)
            )

    def show(self, details: BatchDetails, now: datetime) -> None:
        """Show a new reading."""
        forecast = details.batch
        # What changes at every reading would have everything built anew.
        batch = replace(forecast, eta=None)
        details = replace(details, at=batch.created_at, batch=batch)
        self._head.show(batch)
        id_, began, ended = format_batch_id(batch.id), batch.created_at, batch.ended_at
        if self._dashboards is not None:
            trace = self._dashboards.trace(batch.trace.trace_id if batch.trace else None)
            self._links.show(self._dashboards.batch(id_, began, ended, now) + trace)
        self._cancel.set_visibility(self._may_act and batch.status in CANCELLABLE_STATUSES)
        for panel in (self._facts, self._errors, self._notes, self._cost, self._files):
            panel.show(details)
        self._progress.show((batch, batch_facts.eta_of(forecast, now)))
        self._problems.show(batch)
        self._timeline.show(steps_of(forecast, now))
        counts = (batch.total, batch.completed, batch.failed, details.queued, details.running)
        for name, count in zip(COUNTS, counts, strict=True):
            self._counts[name].show(number(count), alarming=name == "Failed" and count > 0)


def _panel(title: str, build: Callable[[BatchDetails], None]) -> Rebuilt[BatchDetails]:
    with ui.element("section").classes("card section"):
        heading(title)
        return Rebuilt(build, "section")
