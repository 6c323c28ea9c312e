"""Were the promises kept, and will they be?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring.dashboards.parts import Query, board, graph, number, row, rows

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

_HERE = 'namespace=~"$namespace"'
_FLEET = f'{_HERE},fleet=~"$fleet"'
_BATCHES = f'{_HERE},tenant=~"$tenant",batch=~"$batch"'
_BUDGET = 0.01


def build() -> Dashboard:
    """Return the history of deadlines."""
    return (
        board(
            "lowtide-sla",
            "Lowtide / SLA history",
            "Met and missed deadlines, error budget burn, and batches at risk.",
            variables=("namespace", "fleet", "tenant", "batch"),
            since="now-7d",
        )
        .with_panel(
            number(
                "Deadlines met",
                f"1 - sum(increase(requests_sla_violated_total{{{_HERE}}}[$__range])) / "
                f"(sum(increase(requests_sla_met_total{{{_HERE}}}[$__range]))"
                f" + sum(increase(requests_sla_violated_total{{{_HERE}}}[$__range])))",
                unit="percentunit",
            )
        )
        .with_panel(
            number(
                "Deadlines missed",
                f"sum(increase(requests_sla_violated_total{{{_HERE}}}[$__range]))",
                alarm_from=1,
            )
        )
        .with_panel(number("Batches at risk", f"max(batches_at_risk{{{_HERE}}})", alarm_from=1))
        .with_panel(
            number(
                "Min slack",
                f"min(batch_deadline_slack_seconds{{{_FLEET}}} < +Inf)",
                unit="s",
                description="Time until all dedicated replicas must run; below 0, a deadline cannot be met.",
            )
        )
        .with_row(row("History"))
        .with_panel(
            graph(
                "Requests by deadline",
                Query(f"sum(increase(requests_sla_met_total{{{_HERE}}}[$__rate_interval]))", "met"),
                Query(
                    f"sum(increase(requests_sla_violated_total{{{_HERE}}}[$__rate_interval]))",
                    "missed",
                ),
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Requests by outcome",
                Query(
                    f"sum by (outcome) "
                    f"(increase(requests_ended_total{{{_HERE}}}[$__rate_interval]))",
                    "{{outcome}}",
                ),
                stacked=True,
                description="Expired and cancelled requests had no result when their batch ended.",
            )
        )
        .with_panel(
            graph(
                "Share of missed deadlines",
                *(
                    Query(
                        f"max(namespace:requests_sla_violated:ratio_rate{window}{{{_HERE}}})",
                        f"over {window}",
                    )
                    for window in ("5m", "30m", "1h", "6h")
                ),
                unit="percentunit",
                description="The objective is 1 %.",
                alarm_from=_BUDGET,
            )
        )
        .with_panel(
            graph(
                "Slack",
                Query(
                    f"min by (fleet) (batch_deadline_slack_seconds{{{_FLEET}}} < +Inf)", "{{fleet}}"
                ),
                unit="s",
            )
        )
        .with_panel(
            graph(
                "Requests moved between pools and fleets",
                Query(
                    f"sum(increase(escalations_total{{{_HERE}}}[$__rate_interval]))",
                    "to dedicated",
                ),
                Query(
                    f"sum(increase(revocations_total{{{_HERE}}}[$__rate_interval]))",
                    "revoked from spot workers",
                ),
                Query(
                    f"sum(increase(deescalations_total{{{_HERE}}}[$__rate_interval]))",
                    "back to spot",
                ),
                Query(
                    f"sum by (fleet) (increase(fallbacks_total{{{_FLEET}}}[$__rate_interval])) > 0",
                    "from {{fleet}} to its fallback",
                ),
                description="Requests move as late as is safe, and back when spot catches up.",
            )
        )
        .with_row(row("At risk"))
        .with_panel(
            graph(
                "Time to deadline of batches at risk",
                Query(
                    f"max by (tenant, batch) (batch_at_risk_seconds_left{{{_BATCHES}}})",
                    "{{batch}} of {{tenant}}",
                ),
                unit="s",
                span=24,
            )
        )
        .with_panel(
            rows(
                "Batches at risk now",
                f"max by (namespace, tenant, batch) (batch_at_risk_seconds_left{{{_BATCHES}}})",
                description="The most urgent 50.",
            )
        )
    )
