"""The report on an uploaded file: its progress, its problems or its estimate."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.files.model import BYTES_A_TOKEN
from portal.components.basics import ZERO_RETENTION, Badge, badge
from portal.formats import counted, day, duration, money, number, size
from portal.theme import Tone

if TYPE_CHECKING:
    from lowtide.files.model import FileEstimate, StoredFile
    from lowtide.files.service import Checked


class FileReport:
    """A report on one file at a time."""

    def __init__(self) -> None:
        self._box = ui.element("div").classes("section").props("role=status")
        self._box.set_visibility(False)
        self._progress: ui.label | None = None

    def clear(self) -> None:
        """Hide the last report."""
        self._box.clear()
        self._box.set_visibility(False)
        self._progress = None

    def begin(self, filename: str) -> None:
        """Show that a file is being checked."""
        self._box.clear()
        self._box.set_visibility(True)
        with self._box, ui.element("div").classes("report-head"):
            badge(Badge(text="Validating", tone=Tone.INFO))
            ui.label(filename).classes("break")
            self._progress = ui.label("").classes("muted small")

    def progress(self, checked: Checked) -> None:
        """Show the progress."""
        if self._progress is not None:
            self._progress.text = _progress_text(checked)

    def refuse(self, checked: Checked) -> None:
        """List the problems by line."""
        count = len(checked.problems)
        self._show_outcome(
            Badge(text=counted(count, "problem"), tone=Tone.BAD),
            text=f"{_progress_text(checked)}. Nothing was created: fix the file and upload it again.",
        )
        with (
            self._box,
            ui.element("div")
            .classes("problems")
            .props('tabindex=0 role=region aria-label="Problems by line"'),
        ):
            for problem in checked.problems:
                with ui.element("div").classes("problem"):
                    position = "file" if problem.line is None else f"line {number(problem.line)}"
                    ui.label(position).classes("mono small nowrap")
                    ui.label(problem.message).classes("break")

    def fail(self, message: str) -> None:
        """Show the error that ended the upload."""
        self._show_outcome(Badge(text="Upload failed", tone=Tone.BAD), text=message)

    def accept(
        self, stored: StoredFile, checked: Checked, estimate: FileEstimate, source: str
    ) -> None:
        """Show the contents of the file, the estimate of running it, and the source of its rate."""
        badges = [Badge(text="Ready", tone=Tone.GOOD)]
        if stored.zero_retention:
            badges.append(ZERO_RETENTION)
        self._show_outcome(*badges, text=stored.filename)
        replica_time = duration(timedelta(seconds=estimate.replica_seconds))
        with self._box:
            facts = {
                "Requests": number(checked.lines),
                "Model": checked.model or "—",
                "Endpoint": stored.endpoint or "—",
                "Size": size(checked.size),
                "Deleted on": "—" if stored.expires_at is None else day(stored.expires_at),
                "Input tokens (estimate)": number(estimate.input_tokens),
                "Replica time (estimate)": replica_time,
                "Cost (estimate)": f"{money(estimate.spot)} to {money(estimate.dedicated)} {estimate.currency}",
            }
            with ui.element("dl").classes("facts"):
                for name, value in facts.items():
                    with ui.element("div"):
                        with ui.element("dt"):
                            ui.label(name).classes("muted small")
                        with ui.element("dd"):
                            ui.label(value).classes("break")
            rate = checked.lines / estimate.replica_seconds
            ui.label(_basis_text(rate, source)).classes("muted small")

    def _show_outcome(self, *states: Badge, text: str) -> None:
        self._box.clear()
        with self._box, ui.element("div").classes("report-head"):
            for state in states:
                badge(state)
            ui.label(text).classes("break")


def _progress_text(checked: Checked) -> str:
    text = f"{counted(checked.lines, 'request')}, {size(checked.size)}"
    if not checked.problems:
        return text
    first = checked.problems[0].line
    position = "" if first is None else f", the first on line {number(first)}"
    return f"{text}, {counted(len(checked.problems), 'problem')}{position}"


def rate_source(measured: int, models: int) -> str:
    """Return the source of a file's rate in words: the rate of some of its models is measured."""
    if not measured:
        return "configured, as there are no measurements yet"
    if measured < models:
        return f"measured by workers for {number(measured)} of {counted(models, 'model')}"
    return "measured by workers"


def _basis_text(rate: float, source: str) -> str:
    return (
        f"Estimates: one token per {BYTES_A_TOKEN} bytes of the file, output excluded; "
        f"{rate:.3g} requests per second and replica ({source}); cost from all on spot "
        "to all on dedicated, without retries."
    )
