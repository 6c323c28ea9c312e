"""Findings, one a row: how a part is, when it was last seen, and what to do where it is bad."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.domain.findings import Condition
from portal.components.headings import heading
from portal.components.health_panel import STALE_AFTER, FactRow, badge_of
from portal.components.rebuilt import Rebuilt
from portal.formats import absolute, ago

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from lowtide.domain.findings import Finding


class FindingRow(FactRow):
    """One part."""

    def __init__(self, part: str) -> None:
        super().__init__(part)
        with self.row.classes("finding"):
            self._advice = Rebuilt(_advise, "advice small")

    def show(self, finding: Finding, at: datetime, looked_at: datetime, now: datetime) -> None:
        """Show what was found at `at`; what was read too long ago is stale."""
        stale = now - looked_at > STALE_AFTER
        self.show_badge(badge_of(finding, stale=stale))
        self.show_detail(f"{finding.word.lower()} {finding.detail}" if stale else finding.detail)
        self.show_age(f"seen {ago(finding.at, at)}" if finding.at else "", finding.at)
        wrong = finding.condition in (Condition.BAD, Condition.DOUBTFUL)
        self._advice.show(finding.advice if wrong else "")


def _advise(advice: str) -> None:
    """Show advice, with the commands in it set apart."""
    for place, part in enumerate(advice.split("`")):
        if part:
            with ui.element("code" if place % 2 else "span"):
                ui.label(part).style("display: inline; white-space: pre-wrap")


class FindingList:
    """Some parts under a heading, in the order in which they are first shown."""

    def __init__(self, title: str) -> None:
        self._rows: dict[str, FindingRow] = {}
        with ui.element("section").classes("card section") as self.section:
            heading(title)

    def show(
        self, findings: Sequence[Finding], at: datetime, looked_at: datetime, now: datetime
    ) -> None:
        """Show these; a part that is new gets a row, and one that is gone loses it."""
        for part in self._rows.keys() - {finding.part for finding in findings}:
            self._rows.pop(part).row.delete()
        for finding in findings:
            if finding.part not in self._rows:
                with self.section:
                    self._rows[finding.part] = FindingRow(finding.part)
            self._rows[finding.part].show(finding, at, looked_at, now)


class EventTable:
    """When events of each type were last taken by the broker and handled by a function."""

    def __init__(self, types: Iterable[tuple[str, str]]) -> None:
        self._cells: dict[tuple[str, str], ui.label] = {}
        with ui.element("section").classes("card section"):
            heading("Last events")
            with ui.element("table").classes("plain-table"):
                with ui.element("thead"), ui.element("tr"):
                    for name in ("Event", "Taken by the broker", "Handled"):
                        with ui.element("th").props("scope=col"):
                            ui.label(name)
                with ui.element("tbody"):
                    for key, name in types:
                        self._add(key, name)

            self._waiting = ui.label("").classes("muted small")

    def show_waiting(self, text: str) -> None:
        """Show what has not got out yet."""
        self._waiting.text = text

    def _add(self, key: str, name: str) -> None:
        with ui.element("tr"):
            with ui.element("th").props("scope=row"):
                ui.label(name).classes("mono small")
            for column in ("sent", "delivered"):
                with ui.element("td"):
                    self._cells[key, column] = ui.label("—").mark(f"{name} {column}")

    def show(self, key: str, column: str, at: datetime | None, now: datetime) -> None:
        """Show when it last was; never is a dash."""
        cell = self._cells[key, column]
        cell.text = "—" if at is None else ago(at, now)
        if at is not None:
            cell.props["title"] = absolute(at)
