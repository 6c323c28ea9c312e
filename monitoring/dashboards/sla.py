"""Were the promises kept, and will they be?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring.dashboards.parts import Query, board, graph, number, row, rows

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

_HERE = 'namespace=~"$namespace"'
_BATCHES = f'{_HERE},tenant=~"$tenant",batch=~"$batch"'
_BUDGET = 0.01


def build() -> Dashboard:
    """Return the history of deadlines."""
    return (
        board(
            "lowtide-sla",
            "Lowtide / SLA history",
            "Deadlines met and missed, the budget's burn, and what is at risk now.",
            variables=("namespace", "tenant", "batch"),
            since="now-7d",
        )
        .with_panel(
            number(
                "Met in this time",
                f"1 - sum(increase(requests_sla_violated_total{{{_HERE}}}[$__range])) / "
                f"(sum(increase(requests_sla_met_total{{{_HERE}}}[$__range]))"
                f" + sum(increase(requests_sla_violated_total{{{_HERE}}}[$__range])))",
                unit="percentunit",
            )
        )
        .with_panel(
            number(
                "Missed in this time",
                f"sum(increase(requests_sla_violated_total{{{_HERE}}}[$__range]))",
                alarm_from=1,
            )
        )
        .with_panel(number("Batches at risk", f"max(batches_at_risk{{{_HERE}}})", alarm_from=1))
        .with_panel(
            number(
                "Least slack",
                f"min(batch_deadline_slack_seconds{{{_HERE}}} < +Inf)",
                unit="s",
                description="Time until every dedicated replica must run; below 0 a deadline is lost.",
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
                "Share that missed",
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
                Query(f"min(batch_deadline_slack_seconds{{{_HERE}}} < +Inf)", "least of all"),
                unit="s",
            )
        )
        .with_panel(
            graph(
                "Moved between pools",
                Query(
                    f"sum(increase(escalations_total{{{_HERE}}}[$__rate_interval]))",
                    "to dedicated",
                ),
                Query(
                    f"sum(increase(revocations_total{{{_HERE}}}[$__rate_interval]))",
                    "taken from spot workers",
                ),
                Query(
                    f"sum(increase(deescalations_total{{{_HERE}}}[$__rate_interval]))",
                    "back to spot",
                ),
                description="Lines. They move as late as is safe, and back when spot catches up.",
            )
        )
        .with_row(row("At risk"))
        .with_panel(
            graph(
                "Seconds left of batches at risk",
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
