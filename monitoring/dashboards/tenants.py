"""Who has how much waiting and running."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring.dashboards.parts import Query, board, graph, rows

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

_HERE = 'namespace=~"$namespace",tenant=~"$tenant"'
_POOL = f'{_HERE},pool=~"$pool"'


def build() -> Dashboard:
    """Return the load by tenant."""
    return (
        board(
            "lowtide-tenants",
            "Lowtide / Tenants",
            "Tenants with open batches: queued and running requests, risk, dead letters.",
            variables=("namespace", "pool", "tenant"),
            since="now-6h",
        )
        .with_panel(
            graph(
                "Queued requests",
                Query(f"sum by (tenant) (tenant_queue_depth{{{_POOL}}})", "{{tenant}}"),
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Running requests",
                Query(f"sum by (tenant) (tenant_running{{{_POOL}}})", "{{tenant}}"),
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Oldest queued request",
                Query(
                    f"max by (tenant, pool) (tenant_queue_oldest_age_seconds{{{_POOL}}})",
                    "{{tenant}} on {{pool}}",
                ),
                unit="s",
            )
        )
        .with_panel(
            graph(
                "Open batches",
                Query(f"max by (tenant) (tenant_open_batches{{{_HERE}}})", "{{tenant}}"),
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Batches at risk",
                Query(f"max by (tenant) (tenant_batches_at_risk{{{_HERE}}})", "{{tenant}}"),
                alarm_from=1,
            )
        )
        .with_panel(
            graph(
                "Open dead letters",
                Query(f"max by (tenant) (tenant_dead_letters{{{_HERE}}})", "{{tenant}}"),
            )
        )
        .with_panel(
            graph(
                "Used share of quotas",
                Query(
                    f"max by (tenant, quota) (tenant_quota_used_ratio{{{_HERE}}})",
                    "{{tenant}}: {{quota}}",
                ),
                unit="percentunit",
                alarm_from=1,
            )
        )
        .with_panel(
            rows(
                "Queued requests now",
                f"max by (namespace, tenant, pool) (tenant_queue_depth{{{_POOL}}})",
            )
        )
    )
