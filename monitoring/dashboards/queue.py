"""What waits, and what the autoscaler does about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring.dashboards.parts import Query, board, graph, row

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

_HERE = 'namespace=~"$namespace"'
_POOL = f'{_HERE},pool=~"$pool"'


def build() -> Dashboard:
    """Return queues and replicas by pool."""
    return (
        board(
            "lowtide-queue",
            "Lowtide / Queue and autoscaling",
            "Depth and age by pool, wanted and living replicas, the scheduler and its events.",
            variables=("namespace", "pool"),
            since="now-6h",
        )
        .with_panel(
            graph(
                "Waiting",
                Query(f"namespace_pool:queue_depth:max{{{_POOL}}}", "{{pool}}"),
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "The first line has waited",
                Query(f"namespace_pool:queue_oldest_age_seconds:max{{{_POOL}}}", "{{pool}}"),
                unit="s",
                description="Since it could be claimed in this pool.",
            )
        )
        .with_panel(
            graph(
                "Wait until the first claim",
                *(
                    Query(
                        f"histogram_quantile({quantile}, sum by (le, pool) "
                        f"(rate(queue_wait_time_seconds_bucket{{{_POOL}}}[$__rate_interval])))",
                        f"{{{{pool}}}}, {quantile:.0%} of lines",
                    )
                    for quantile in (0.5, 0.95)
                ),
                unit="s",
            )
        )
        .with_panel(
            graph(
                "Claimed",
                Query(
                    f"sum by (pool) (rate(worker_dequeue_total{{{_POOL}}}[$__rate_interval]))",
                    "{{pool}}",
                ),
                unit="cps",
            )
        )
        .with_row(row("Replicas"))
        .with_panel(
            graph(
                "Wanted, living, most",
                Query(
                    f"namespace_pool:autoscaler_desired_replicas:max{{{_POOL}}}", "{{pool}} wanted"
                ),
                Query(f"namespace_pool:workers_alive:max{{{_POOL}}}", "{{pool}} living"),
                Query(f"max by (pool) (autoscaler_max_replicas{{{_POOL}}})", "{{pool}} most"),
            )
        )
        .with_panel(
            graph(
                "Dedicated that deadlines need",
                Query(f"max(dedicated_replicas_planned{{{_HERE}}})", "planned"),
                description="KEDA never gets more for dedicated.",
            )
        )
        .with_panel(
            graph(
                "Lines a second of one replica",
                Query(
                    f"max by (pool, model) (replica_rate_lines_per_second{{{_POOL}}})",
                    "{{pool}} {{model}}",
                ),
                unit="cps",
                description="What plans count on: a lower confidence bound.",
            )
        )
        .with_panel(
            graph(
                "Paused",
                Query(f"namespace_pool:pool_paused:max{{{_POOL}}}", "{{pool}}"),
            )
        )
        .with_row(row("Scheduler and events"))
        .with_panel(
            graph(
                "Ticks a minute",
                Query(
                    f"60 * sum(rate(scheduler_ticks_total{{{_HERE}}}[$__rate_interval]))", "ticks"
                ),
            )
        )
        .with_panel(
            graph(
                "Lines given back from lost workers",
                Query(
                    f"sum(increase(leases_reaped_lines_total{{{_HERE}}}[$__rate_interval]))",
                    "lines",
                ),
            )
        )
        .with_panel(
            graph(
                "Events that nobody has taken",
                Query(f"max(outbox_events{{{_HERE}}})", "events"),
            )
        )
        .with_panel(
            graph(
                "The first of them has waited",
                Query(f"max(outbox_oldest_age_seconds{{{_HERE}}})", "age"),
                unit="s",
                alarm_from=60,
            )
        )
    )
