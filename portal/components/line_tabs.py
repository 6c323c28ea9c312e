"""Which of a batch's requests are listed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.domain.statuses import RequestStatus

if TYPE_CHECKING:
    from portal.batch_query import LineQuery

_NAMES = {RequestStatus.DEAD_LETTERED: "Dead-lettered"}


def line_tabs(query: LineQuery) -> None:
    """Link to each status of this batch's requests."""
    for status in (None, *RequestStatus):
        name = "All requests" if status is None else _NAMES.get(status, status.value)
        target = replace(query, status=status, after=0, line=None)
        link = ui.element("a").classes("tab")
        link.props["href"] = target.address()
        if status is query.status:
            link.props("aria-current=page")
        with link:
            ui.label(name)
