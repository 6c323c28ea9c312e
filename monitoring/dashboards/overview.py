"""Is everything well?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring.dashboards.parts import Query, board, graph, number, row, rows

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

_HERE = 'namespace=~"$namespace"'


def build() -> Dashboard:
    """Return the dashboard that a day starts with."""
    return (
        board(
            "lowtide-overview",
            "Lowtide / Overview",
            "Alerts, promises, queues and answers at a glance.",
            variables=("namespace",),
            since="now-3h",
        )
        .with_panel(
            number(
                "Batches at risk",
                f"max(batches_at_risk{{{_HERE}}})",
                description="Their deadline cannot be held, whatever runs.",
                alarm_from=1,
            )
        )
        .with_panel(number("Lines waiting", f"sum(namespace_pool:queue_depth:max{{{_HERE}}})"))
        .with_panel(
            number(
                "Lines finished a second",
                f"sum(namespace_pool:worker_completed:rate5m{{{_HERE}}})",
                unit="cps",
            )
        )
        .with_panel(
            number(
                "Since the last tick",
                f"time() - max(namespace:scheduler_last_tick_timestamp_seconds:max7d{{{_HERE}}})",
                unit="s",
                description="Ticks come every ten seconds.",
                alarm_from=60,
            )
        )
        .with_panel(
            number(
                "Missed within the hour",
                f"max(namespace:requests_sla_violated:ratio_rate1h{{{_HERE}}})",
                unit="percentunit",
                description="Share of requests that did not end before their deadline.",
                alarm_from=0.01,
            )
        )
        .with_panel(
            number(
                "Events waiting",
                f"sum(outbox_events{{{_HERE}}})",
                description="Events that the broker has not taken.",
                alarm_from=100,
            )
        )
        .with_panel(
            rows(
                "Alerts",
                f'ALERTS{{alertname=~"Lowtide.*",alertstate="firing",{_HERE}}}',
                description="Firing at this moment. docs/operations.md has a section for each.",
            )
        )
        .with_row(row("Work"))
        .with_panel(
            graph(
                "Waiting by pool",
                Query(f"namespace_pool:queue_depth:max{{{_HERE}}}", "{{pool}}"),
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Finished by pool",
                Query(f"namespace_pool:worker_completed:rate5m{{{_HERE}}}", "{{pool}}"),
                unit="cps",
                stacked=True,
            )
        )
        .with_row(row("Service"))
        .with_panel(
            graph(
                "API answers",
                Query(
                    f"sum by (status) (rate(api_requests_total{{{_HERE}}}[$__rate_interval]))",
                    "{{status}}",
                ),
                unit="reqps",
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Seconds until an answer, 95 of 100",
                Query(
                    "histogram_quantile(0.95, sum by (le, route) "
                    f"(rate(api_request_seconds_bucket{{{_HERE}}}[$__rate_interval])))",
                    "{{route}}",
                ),
                unit="s",
            )
        )
        .with_panel(
            graph(
                "Requests that met a limit",
                Query(
                    f"sum by (reason) (rate(api_rate_limited_total{{{_HERE}}}[$__rate_interval]))",
                    "{{reason}}",
                ),
                unit="reqps",
            )
        )
        .with_panel(
            graph(
                "Processes by version",
                Query(f"count by (version) (lowtide_build_info{{{_HERE}}})", "{{version}}"),
            )
        )
    )
