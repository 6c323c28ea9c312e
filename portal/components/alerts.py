"""Firing alerts from Alertmanager."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime  # noqa: TC003 - read at run time, to know what to decode
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

import httpx
import msgspec
from nicegui import ui

from lowtide.status.watch import Reachability
from portal.components.basics import Badge, badge, heading
from portal.dashboards import ALERT_NAMES, outside_link
from portal.formats import absolute, counted, duration
from portal.theme import Tone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from portal.dashboards import Dashboards


TIMEOUT: Final = 2.0
MAX_BYTES: Final = 2_000_000
MAX_SHOWN: Final = 20
MAX_SUMMARY: Final = 300
_SEVERITIES: Final = ("critical", "page", "error", "warning", "info")
_QUERY: Final = {
    "active": "true",
    "silenced": "false",
    "inhibited": "false",
    "unprocessed": "false",
    "filter": f'alertname=~"{ALERT_NAMES}"',
}


class _Gettable(msgspec.Struct, rename="camel"):
    """The fields of the API's `gettableAlert` that are shown."""

    labels: dict[str, str]
    annotations: dict[str, str]
    # A time without a zone cannot be compared with now.
    starts_at: Annotated[datetime, msgspec.Meta(tz=True)]


_decode = msgspec.json.Decoder(list[_Gettable]).decode


@dataclass(frozen=True, slots=True)
class Alert:
    """A firing alert; its texts are untrusted and shown as plain text only.

    `runbook` is a web address, or empty.
    """

    name: str
    severity: str
    since: datetime
    summary: str
    labels: tuple[tuple[str, str], ...]
    runbook: str = ""


@dataclass(frozen=True, slots=True)
class AlertsSeen:
    """The last good response, and the problem since `failing_since`.

    `more` counts the alerts beyond those shown.
    """

    alerts: tuple[Alert, ...] = ()
    more: int = 0
    answered_at: datetime | None = None
    problem: str | None = None
    failing_since: datetime | None = None
    asked_at: datetime | None = None
    latency: float = 0.0


class Alertmanager:
    """A client of `GET /api/v2/alerts`; `look` does not raise when the server fails."""

    def __init__(self, url: str, *, clock: Callable[[], datetime]) -> None:
        self._url = f"{url.rstrip('/')}/api/v2/alerts"
        self._clock = clock
        self._reading = AlertsSeen()
        self._client = httpx.Client(timeout=TIMEOUT, trust_env=False)

    @property
    def seen(self) -> AlertsSeen:
        """The last reading."""
        return self._reading

    @property
    def reachability(self) -> Reachability | None:
        """The last response as a probe's result; None before the first."""
        reading = self._reading
        if reading.asked_at is None:
            return None
        return Reachability(reading.asked_at, reading.latency, reading.problem)

    def close(self) -> None:
        """Close the HTTP client."""
        self._client.close()

    def look(self) -> None:
        """Read the alerts once."""
        began = monotonic()
        try:
            alerts = self._read(began + TIMEOUT)
        except (httpx.HTTPError, httpx.InvalidURL, msgspec.MsgspecError, _Refused) as error:
            now = self._clock()
            self._reading = replace(
                self._reading,
                problem=_explain(error),
                failing_since=self._reading.failing_since or now,
                asked_at=now,
            )
            return
        now = self._clock()
        first, more = tuple(alerts[:MAX_SHOWN]), max(len(alerts) - MAX_SHOWN, 0)
        self._reading = AlertsSeen(first, more, now, asked_at=now, latency=monotonic() - began)

    def _read(self, deadline: float) -> Sequence[Alert]:
        body = bytearray()
        with self._client.stream("GET", self._url, params=_QUERY) as response:
            if response.status_code != 200:
                raise _Refused(f"responded with HTTP {response.status_code}")
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise _Refused("response too large")
                if monotonic() > deadline:
                    raise _Refused(_LATE)
        return sorted(map(_alert, _decode(bytes(body))), key=_urgency)


class _Refused(Exception):
    """An unusable response."""


_LATE: Final = f"no response within {TIMEOUT:.0f} s"


def _alert(data: _Gettable) -> Alert:
    summary = data.annotations.get("summary") or data.annotations.get("description") or ""
    return Alert(
        name=data.labels.get("alertname", "unnamed alert"),
        severity=data.labels.get("severity", ""),
        since=data.starts_at,
        summary=summary[:MAX_SUMMARY],
        labels=tuple(sorted(data.labels.items())),
        runbook=_web_address(data.annotations.get("runbook_url", "")),
    )


def _web_address(url: str) -> str:
    """Return a URL that is safe to link to; others, such as `javascript:` and `file:`, are empty."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return url if parts.scheme in {"http", "https"} and parts.netloc else ""


def _urgency(alert: Alert) -> tuple[int, datetime]:
    is_known = alert.severity in _SEVERITIES
    return (_SEVERITIES.index(alert.severity) if is_known else len(_SEVERITIES), alert.since)


def _explain(error: Exception) -> str:
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, httpx.TimeoutException):
        return _LATE
    if isinstance(error, msgspec.MsgspecError):
        return "not a valid Alertmanager response"
    return "no connection"


_TONES: Final[Mapping[str, Tone]] = {
    "critical": Tone.BAD,
    "page": Tone.BAD,
    "error": Tone.BAD,
    "warning": Tone.WARN,
    "info": Tone.INFO,
}


class AlertList:
    """Alerts, each with links to its runbook and to Alertmanager; hidden without any or a problem."""

    def __init__(self, dashboards: Dashboards) -> None:
        self._dashboards = dashboards
        self._rows: tuple[tuple[str, ...], ...] | None = None
        self._section = ui.element("section").classes("card concerns")
        self._section.props('aria-label="Firing alerts"')
        self._section.set_visibility(False)
        with self._section:
            heading("Firing alerts")
            self._problem = ui.label("").classes("muted")
            self._list = ui.element("ul").classes("alerts")

    def show(self, reading: AlertsSeen, now: datetime) -> None:
        """Show the alerts, and since when Alertmanager has not responded."""
        self._section.set_visibility(bool(reading.alerts or reading.problem))
        self._problem.set_visibility(reading.problem is not None)
        if reading.problem is not None:
            self._problem.text = _outage_text(reading, now)
        rows = tuple(
            (
                *_row_texts(alert, now),
                alert.runbook,
                self._dashboards.alert(dict(alert.labels)) or "",
            )
            for alert in reading.alerts
        )
        if reading.more:
            rows += (("", "", f"and {counted(reading.more, 'more alert')}", "", "", ""),)
        if rows != self._rows:
            self._rows = rows
            self._list.set_visibility(bool(rows))
            self._list.clear()
            with self._list:
                for row in rows:
                    _show_row(*row)


def _row_texts(alert: Alert, now: datetime) -> tuple[str, str, str, str]:
    return alert.severity, alert.name, alert.summary, f"for {duration(now - alert.since)}"


def _show_row(
    severity: str, name: str, summary: str, since: str, runbook: str, alertmanager: str
) -> None:
    with ui.element("li").classes("alert"):
        if severity:
            badge(Badge(text=severity, tone=_TONES.get(severity, Tone.NEUTRAL)))
        if runbook:
            with outside_link(runbook).props('title="Open the runbook"'):
                ui.label(name)
        elif name:
            ui.label(name)
        ui.label(summary).classes("break")
        ui.label(since).classes("muted small")
        if alertmanager:
            with outside_link(alertmanager):
                ui.label("Alertmanager").classes("small")


def _outage_text(reading: AlertsSeen, now: datetime) -> str:
    since = reading.answered_at or reading.failing_since or now
    period = f"since {absolute(since)}"
    stale_note = " The alerts shown are from that time." if reading.alerts else ""
    return f"Alertmanager unavailable {period}: {reading.problem}.{stale_note}"
