"""What workers and their engines do, and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring.dashboards.parts import Query, board, graph, row

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

_HERE = 'namespace=~"$namespace"'
_POOL = f'{_HERE},fleet=~"$fleet",pool=~"$pool"'
_BY = "fleet, pool"
_NAME = "{{fleet}} {{pool}}"


def build() -> Dashboard:
    """Return workers by fleet and pool."""
    return (
        board(
            "lowtide-workers",
            "Lowtide / Workers",
            "Throughput, failures, interruptions, idle time and cost of spot and dedicated.",
            variables=("namespace", "fleet", "pool"),
            since="now-6h",
        )
        .with_panel(
            graph(
                "Throughput by worker",
                Query(
                    f"sum by (pod) (rate(worker_completed_total{{{_POOL}}}[$__rate_interval]))",
                    "{{pod}}",
                ),
                unit="cps",
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Failed or released, by worker",
                Query(
                    f"sum by (pod) (rate(worker_failed_total{{{_POOL}}}[$__rate_interval]))",
                    "{{pod}}",
                ),
                unit="cps",
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Idle time",
                Query(
                    f"sum by (pod) (deriv(worker_idle_seconds{{{_POOL}}}[5m]))",
                    "{{pod}}",
                ),
                unit="percentunit",
                description="Share of time that a worker had no requests.",
            )
        )
        .with_panel(
            graph(
                "Running workers",
                Query(f"namespace_fleet_pool:workers_alive:max{{{_POOL}}}", _NAME),
                stacked=True,
            )
        )
        .with_row(row("Engines"))
        .with_panel(
            graph(
                "Engine outcomes",
                Query(
                    f"sum by ({_BY}, answer) "
                    f"(rate(engine_answers_total{{{_POOL}}}[$__rate_interval]))",
                    f"{_NAME} {{{{answer}}}}",
                ),
                unit="cps",
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Failed and rejected attempts",
                Query(
                    f"namespace_fleet_pool:engine_failures:ratio_rate5m{{{_POOL}}}",
                    f"{_NAME} failed",
                ),
                Query(
                    f"namespace_fleet_pool:engine_rejections:ratio_rate5m{{{_POOL}}}",
                    f"{_NAME} rejected",
                ),
                unit="percentunit",
                alarm_from=0.1,
            )
        )
        .with_panel(
            graph(
                "Engines unavailable",
                Query(f"namespace_fleet_pool:engines_unavailable:count{{{_POOL}}}", _NAME),
                description="Workers whose engine breaker is not closed. They claim no requests.",
                alarm_from=1,
            )
        )
        .with_panel(
            graph(
                "Engine faults",
                Query(
                    f"sum by ({_BY}, kind) (rate(engine_faults_total{{{_POOL}}}[$__rate_interval]))",
                    f"{_NAME} {{{{kind}}}}",
                ),
                unit="cps",
                stacked=True,
                description="Faults attributed to the engine. They do not count as attempts.",
            )
        )
        .with_panel(
            graph(
                "Interruptions",
                Query(
                    f"max(namespace:spot_interruptions:ratio_rate15m{{{_HERE}}})", "last 15 minutes"
                ),
                Query(f"max(namespace:spot_interruptions:ratio_rate1d{{{_HERE}}})", "last day"),
                unit="percentunit",
                description="Share of requests claimed by spot. Interrupted requests run again.",
            )
        )
        .with_panel(
            graph(
                "Dead letters",
                Query(f"sum(increase(dead_letters_total{{{_HERE}}}[$__rate_interval]))", "new"),
            )
        )
        .with_row(row("Cost"))
        .with_panel(
            graph(
                "Cost per hour",
                Query(
                    f"3600 * sum by ({_BY}, currency) "
                    f"(rate(cost_total{{{_POOL}}}[$__rate_interval]))",
                    f"{_NAME} in {{{{currency}}}}",
                ),
                stacked=True,
                description="Cost of requests that ended.",
            )
        )
        .with_panel(
            graph(
                "Busy replicas",
                Query(
                    f"sum by ({_BY}) (rate(replica_seconds_total{{{_POOL}}}[$__rate_interval]))",
                    _NAME,
                ),
                stacked=True,
                description="Replica seconds per second of requests that ended.",
            )
        )
    )
