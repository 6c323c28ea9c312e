"""Is everything well?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring.dashboards.parts import Query, board, graph, number, row, rows

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

_HERE = 'namespace=~"$namespace"'
_FLEET = f'{_HERE},fleet=~"$fleet"'


def build() -> Dashboard:
    """Return the dashboard that a day starts with."""
    return (
        board(
            "lowtide-overview",
            "Lowtide / Overview",
            "Alerts, deadlines, queues and API responses at a glance.",
            variables=("namespace", "fleet"),
            since="now-3h",
        )
        .with_panel(
            number(
                "Batches at risk",
                f"max(batches_at_risk{{{_HERE}}})",
                description="Batches whose deadline cannot be met, even with all dedicated replicas.",
                alarm_from=1,
            )
        )
        .with_panel(
            number("Queued requests", f"sum(namespace_fleet_pool:queue_depth:max{{{_FLEET}}})")
        )
        .with_panel(
            number(
                "Throughput",
                f"sum(namespace_fleet_pool:worker_completed:rate5m{{{_FLEET}}})",
                unit="cps",
            )
        )
        .with_panel(
            number(
                "Time since last tick",
                f"time() - max(namespace:scheduler_last_tick_timestamp_seconds:max7d{{{_HERE}}})",
                unit="s",
                description="The scheduler ticks every ten seconds.",
                alarm_from=60,
            )
        )
        .with_panel(
            number(
                "Missed deadlines, last hour",
                f"max(namespace:requests_sla_violated:ratio_rate1h{{{_HERE}}})",
                unit="percentunit",
                description="Share of requests that missed their deadline.",
                alarm_from=0.01,
            )
        )
        .with_panel(
            number(
                "Pending events",
                f"sum(outbox_events{{{_HERE}}})",
                description="Events that the broker has not accepted.",
                alarm_from=100,
            )
        )
        .with_panel(
            rows(
                "Alerts",
                f'ALERTS{{alertname=~"Lowtide.*",alertstate="firing",{_HERE}}}',
                description="Firing alerts. docs/operations.md has a runbook for each.",
            )
        )
        .with_row(row("Work"))
        .with_panel(
            graph(
                "Queued requests by fleet and pool",
                Query(f"namespace_fleet_pool:queue_depth:max{{{_FLEET}}}", "{{fleet}} {{pool}}"),
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Throughput by fleet and pool",
                Query(
                    f"namespace_fleet_pool:worker_completed:rate5m{{{_FLEET}}}",
                    "{{fleet}} {{pool}}",
                ),
                unit="cps",
                stacked=True,
            )
        )
        .with_row(row("Service"))
        .with_panel(
            graph(
                "API responses by status",
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
                "API latency, p95",
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
                "Rate-limited requests",
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
