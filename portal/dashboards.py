"""Links to dashboards with batch and time range filled in; none for a base URL that is not set."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

from nicegui import ui

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from lowtide.settings import Settings


ALERT_NAMES: Final = "Lowtide.*"
"""The pattern of the alert names in monitoring/; an Alertmanager may have others."""
_DEPTH: Final = "max by (fleet, pool) (queue_depth)"
_WAIT: Final = "max by (fleet, pool) (queue_oldest_age_seconds)"
_RECENT: Final = "6h"
_RANGE_STEP: Final = 300


@dataclass(frozen=True, slots=True)
class Link:
    """A named link to an external page."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class Dashboards:
    """Base URLs of the dashboards; None omits every link to that one."""

    grafana: str | None
    prometheus: str | None
    alertmanager: str | None
    trace_page: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Dashboards:
        """Return the base URLs that the settings configure."""
        return cls(
            settings.grafana_url,
            settings.prometheus_url,
            settings.alertmanager_url,
            settings.trace_url,
        )

    def overview(self) -> tuple[Link, ...]:
        """Return links to the last 6 hours of the installation."""
        recent = {"from": f"now-{_RECENT}", "to": "now"}
        return self._links(
            ("lowtide-overview", recent), [_DEPTH], {"g0.range_input": _RECENT}, _lowtide_matchers()
        )

    def queues(self) -> tuple[Link, ...]:
        """Return links to the last 6 hours of the queues."""
        recent = {"from": f"now-{_RECENT}", "to": "now"}
        return self._links(
            ("lowtide-queue", recent),
            [_DEPTH, _WAIT],
            {"g0.range_input": _RECENT, "g1.range_input": _RECENT},
            _lowtide_matchers("component", "queue"),
        )

    def batch(
        self, batch: str, since: datetime, until: datetime | None, now: datetime
    ) -> tuple[Link, ...]:
        """Return links to a batch from its creation to its end; `until` is None while it runs."""
        milliseconds = {
            "var-batch": batch,
            "from": str(int(since.timestamp() * 1000)),
            "to": "now" if until is None else str(int(until.timestamp() * 1000) + 1000),
        }
        # Whole steps keep the URL of a running batch from changing every second.
        steps = int(((until or now) - since).total_seconds()) // _RANGE_STEP + 1
        range_ = {"range_input": f"{max(steps, 1) * _RANGE_STEP}s"}
        if until is not None:
            # Prometheus reads this as UTC; the database returns times in the zone of its session.
            end = until.astimezone(UTC) + timedelta(seconds=1)
            range_["end_input"] = f"{end:%Y-%m-%d %H:%M:%S}"
        return self._links(
            ("lowtide-sla", milliseconds),
            [_DEPTH, f"batch_at_risk_seconds_left{{batch={_quoted(batch)}}}"],
            {f"g{index}.{key}": value for index in (0, 1) for key, value in range_.items()},
            _lowtide_matchers("batch", batch),
        )

    def trace(self, trace_id: str | None) -> tuple[Link, ...]:
        """Return a link to a trace; none without a trace id or a configured trace page."""
        if self.trace_page is None or trace_id is None:
            return ()
        return (Link("Trace", self.trace_page.replace("{trace_id}", trace_id)),)

    def alert(self, labels: Mapping[str, str]) -> str | None:
        """Return the Alertmanager URL of the alert with these labels; None without a base URL."""
        return None if self.alertmanager is None else self._alerts(_matchers(labels))

    def _links(
        self,
        dashboard: tuple[str, Mapping[str, str]],
        expressions: Sequence[str],
        range_: Mapping[str, str],
        alerts: str,
    ) -> tuple[Link, ...]:
        links = []
        if self.grafana is not None:
            uid, parameters = dashboard
            links.append(Link("Grafana", f"{_base(self.grafana)}/d/{uid}?{_encoded(parameters)}"))
        if self.prometheus is not None:
            graphs = {
                key: value
                for index, expression in enumerate(expressions)
                for key, value in ((f"g{index}.expr", expression), (f"g{index}.tab", "0"))
            }
            url = f"{_base(self.prometheus)}/graph?{_encoded(graphs | dict(range_))}"
            links.append(Link("Prometheus", url))
        if self.alertmanager is not None:
            links.append(Link("Alertmanager", self._alerts(alerts)))
        return tuple(links)

    def _alerts(self, matchers: str) -> str:
        return f"{_base(self.alertmanager or '')}/#/alerts?{_encoded({'filter': matchers})}"


def _lowtide_matchers(label: str = "", value: str = "") -> str:
    matcher = f"alertname=~{_quoted(ALERT_NAMES)}"
    return f"{{{matcher}, {label}={_quoted(value)}}}" if label else f"{{{matcher}}}"


def _matchers(labels: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{name}={_quoted(value)}" for name, value in labels.items()) + "}"


def _quoted(value: str) -> str:
    # PromQL and Alertmanager's UI both accept JSON string syntax.
    return json.dumps(value, ensure_ascii=False)


def _base(url: str) -> str:
    return url.rstrip("/")


def _encoded(parameters: Mapping[str, str]) -> str:
    return urlencode(parameters, quote_via=quote, safe="")


def dashboard_links(links: Sequence[Link]) -> None:
    """Show links; their URLs are never parsed as Quasar props."""
    if not links:
        return
    with ui.element("nav").classes("dashboards").props('aria-label="Dashboards"'):
        for link in links:
            with outside_link(link.url):
                ui.label(link.name)


def outside_link(url: str) -> ui.element:
    """Return a link element that opens an external page in a new tab."""
    element = ui.element("a").classes("outside").props("target=_blank rel=noreferrer")
    element.props["href"] = url
    return element
