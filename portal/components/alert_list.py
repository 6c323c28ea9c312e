"""What Alertmanager says is firing, on top of the landing page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nicegui import ui

from portal.components.badges import Badge, badge
from portal.components.dashboard_links import outside_link
from portal.components.headings import heading
from portal.formats import absolute, counted, duration
from portal.theme import Tone

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from portal.alertmanager import Alert, AlertsSeen
    from portal.dashboards import Dashboards

_TONES: Final[Mapping[str, Tone]] = {
    "critical": Tone.BAD,
    "page": Tone.BAD,
    "error": Tone.BAD,
    "warning": Tone.WARN,
    "info": Tone.INFO,
}


class AlertList:
    """Alerts, each with a link to more; out of sight while all is quiet."""

    def __init__(self, dashboards: Dashboards) -> None:
        self._dashboards = dashboards
        self._shown: tuple[tuple[str, ...], ...] | None = None
        self._section = ui.element("section").classes("card concerns")
        self._section.props('aria-label="Alerts"')
        self._section.set_visibility(False)
        with self._section:
            heading("Open alerts")
            self._problem = ui.label("").classes("muted")
            self._list = ui.element("ul").classes("alerts")

    def show(self, seen: AlertsSeen, now: datetime) -> None:
        """Show what fires, and since when Alertmanager says nothing."""
        self._section.set_visibility(bool(seen.alerts or seen.problem))
        self._problem.set_visibility(seen.problem is not None)
        if seen.problem is not None:
            self._problem.text = _silence(seen, now)
        rows = tuple(
            (*_words(alert, now), self._dashboards.alert(dict(alert.labels)) or "")
            for alert in seen.alerts
        )
        if seen.more:
            rows += (("", "", f"and {counted(seen.more, 'more alert')}", "", ""),)
        if rows != self._shown:
            self._shown = rows
            self._list.set_visibility(bool(rows))
            self._list.clear()
            with self._list:
                for row in rows:
                    _show_row(*row)


def _words(alert: Alert, now: datetime) -> tuple[str, str, str, str]:
    return alert.severity, alert.name, alert.summary, f"for {duration(now - alert.since)}"


def _show_row(severity: str, name: str, summary: str, since: str, url: str) -> None:
    with ui.element("li").classes("alert"):
        if severity:
            badge(Badge(text=severity, tone=_TONES.get(severity, Tone.NEUTRAL)))
        if url:
            with outside_link(url):
                ui.label(name)
        elif name:
            ui.label(name)
        ui.label(summary).classes("break")
        ui.label(since).classes("muted small")


def _silence(seen: AlertsSeen, now: datetime) -> str:
    since = seen.answered_at or seen.failing_since or now
    last = f"since {absolute(since)}"
    older = " What you see is from then." if seen.alerts else ""
    return f"Alertmanager has not answered {last}: {seen.problem}.{older}"
