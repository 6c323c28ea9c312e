"""What waits, and what the autoscaler does about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring.dashboards.parts import Query, board, graph, row

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

_HERE = 'namespace=~"$namespace"'
_FLEET = f'{_HERE},fleet=~"$fleet"'
_POOL = f'{_FLEET},pool=~"$pool"'
_BY = "fleet, pool"
_NAME = "{{fleet}} {{pool}}"


def build() -> Dashboard:
    """Return queues and replicas by fleet and pool."""
    return (
        board(
            "lowtide-queue",
            "Lowtide / Queue and autoscaling",
            "Depth and age by fleet and pool, desired and running replicas, the scheduler and its events.",
            variables=("namespace", "fleet", "pool"),
            since="now-6h",
        )
        .with_panel(
            graph(
                "Queued requests",
                Query(f"namespace_fleet_pool:queue_depth:max{{{_POOL}}}", _NAME),
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Oldest queued request",
                Query(f"namespace_fleet_pool:queue_oldest_age_seconds:max{{{_POOL}}}", _NAME),
                unit="s",
                description="Age since it became claimable in this pool.",
            )
        )
        .with_panel(
            graph(
                "Time to first claim",
                *(
                    Query(
                        f"histogram_quantile({quantile}, sum by (le, {_BY}) "
                        f"(rate(queue_wait_time_seconds_bucket{{{_POOL}}}[$__rate_interval])))",
                        f"{_NAME} p{quantile * 100:.0f}",
                    )
                    for quantile in (0.5, 0.95)
                ),
                unit="s",
            )
        )
        .with_panel(
            graph(
                "Claims",
                Query(
                    f"sum by ({_BY}) (rate(worker_dequeue_total{{{_POOL}}}[$__rate_interval]))",
                    _NAME,
                ),
                unit="cps",
            )
        )
        .with_row(row("Replicas"))
        .with_panel(
            graph(
                "Replicas: desired, running, max",
                Query(
                    f"namespace_fleet_pool:autoscaler_desired_replicas:max{{{_POOL}}}",
                    f"{_NAME} desired",
                ),
                Query(f"namespace_fleet_pool:workers_alive:max{{{_POOL}}}", f"{_NAME} running"),
                Query(f"max by ({_BY}) (autoscaler_max_replicas{{{_POOL}}})", f"{_NAME} max"),
            )
        )
        .with_panel(
            graph(
                "Dedicated replicas needed for deadlines",
                Query(
                    f"max by (fleet) (dedicated_replicas_planned{{{_FLEET}}})", "{{fleet}} planned"
                ),
                description="KEDA never scales dedicated above this.",
            )
        )
        .with_panel(
            graph(
                "Planned throughput per replica",
                Query(
                    f"max by ({_BY}, model) (replica_rate_lines_per_second{{{_POOL}}})",
                    f"{_NAME} {{{{model}}}}",
                ),
                unit="cps",
                description="Lower confidence bound that the scheduler plans with.",
            )
        )
        .with_panel(
            graph(
                "Paused pools",
                Query(f"namespace_fleet_pool:pool_paused:max{{{_POOL}}}", _NAME),
            )
        )
        .with_row(row("Scheduler and events"))
        .with_panel(
            graph(
                "Ticks per minute",
                Query(
                    f"60 * sum(rate(scheduler_ticks_total{{{_HERE}}}[$__rate_interval]))", "ticks"
                ),
            )
        )
        .with_panel(
            graph(
                "Requests released from lost workers",
                Query(
                    f"sum(increase(leases_reaped_lines_total{{{_HERE}}}[$__rate_interval]))",
                    "requests",
                ),
            )
        )
        .with_panel(
            graph(
                "Pending events",
                Query(f"max(outbox_events{{{_HERE}}})", "events"),
            )
        )
        .with_panel(
            graph(
                "Oldest pending event",
                Query(f"max(outbox_oldest_age_seconds{{{_HERE}}})", "batches"),
                Query(f"max(audit_outbox_oldest_age_seconds{{{_HERE}}})", "audit log"),
                unit="s",
                alarm_from=60,
            )
        )
        .with_row(row("Retention"))
        .with_panel(
            graph(
                "Batches past retention with data",
                Query(f"max(retention_overdue_batches{{{_HERE}}})", "batches"),
            )
        )
        .with_panel(
            graph(
                "Oldest data past retention",
                Query(f"max(retention_oldest_overdue_seconds{{{_HERE}}})", "age"),
                unit="s",
                alarm_from=4 * 86_400,
            )
        )
        .with_panel(
            graph(
                "Partitions that wait to be dropped",
                Query(f"max(retention_waiting_bytes{{{_HERE}}})", "bytes"),
                unit="bytes",
            )
        )
        .with_panel(
            graph(
                "Days with partitions",
                Query(f"max(partition_days{{{_HERE}}})", "days"),
            )
        )
    )
