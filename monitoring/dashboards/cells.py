"""The state of all cells, for the Prometheus of all cells, which has their aggregated series."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from monitoring.dashboards.parts import Query, board, graph, number, row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from grafana_foundation_sdk.builders.dashboard import Dashboard
    from grafana_foundation_sdk.builders.stat import Panel as Number
    from grafana_foundation_sdk.builders.timeseries import Panel as Graph

    _Panel = Graph | Number

_HERE: Final = '{cell=~"$cell"}'
_MOST: Final = 10
"""Lines in a graph: with a thousand cells, those that stand out."""


def _name(series: str) -> str:
    return f"lowtide_cell:{series}{_HERE}"


def _by_cell(
    title: str, aggregation: str, series: str, unit: str = "short", alarm_from: float | None = None
) -> Graph:
    """Return the cells with the highest values."""
    query = Query(f"topk({_MOST}, {aggregation} by (cell) ({_name(series)}))", "{{cell}}")
    return graph(title, query, unit=unit, alarm_from=alarm_from)


def build() -> Dashboard:
    """Return the overview of all cells."""
    made = board(
        "lowtide-cells",
        "Lowtide / Cells",
        "Work, deadlines and health by cell; graphs show the ten highest.",
        variables=("cell",),
        since="now-6h",
    )
    for panel in (
        number("Cells", f"count({_name('batches_at_risk:max')})"),
        number("Queued requests", f"sum({_name('queue_depth:max')})"),
        number("Throughput", f"sum({_name('worker_completed:rate5m')})", unit="cps"),
        number("Batches at risk", f"sum({_name('batches_at_risk:max')})", alarm_from=1),
        number("Open batches", f"sum({_name('open_batches:sum')})"),
        number(
            "Cost per hour",
            f"3600 * sum({_name('cost:rate1h')})",
            description="If all cells have the same currency.",
        ),
    ):
        made = made.with_panel(panel)
    for title, panels in _ROWS.items():
        made = made.with_row(row(title))
        for each in panels:
            made = made.with_panel(each)
    return made


_ROWS: Final[Mapping[str, Sequence[_Panel]]] = {
    "Deadlines": [
        _by_cell("Batches at risk by cell", "max", "batches_at_risk:max", alarm_from=1),
        _by_cell(
            "Missed deadlines, last hour",
            "max",
            "requests_sla_violated:ratio_rate1h",
            "percentunit",
            0.01,
        ),
        graph(
            "Least slack",
            Query(
                f"bottomk({_MOST}, min by (cell) ({_name('batch_deadline_slack_seconds:min')}))",
                "{{cell}}",
            ),
            unit="s",
        ),
        _by_cell("Oldest queued request", "max", "queue_oldest_age_seconds:max", "s"),
        _by_cell("Wait for a worker, p99", "max", "queue_wait_time_seconds:p99_5m", "s"),
        _by_cell("Tenants with open batches", "max", "tenants:count"),
    ],
    "Work": [
        _by_cell("Queued requests by cell", "sum", "queue_depth:max"),
        _by_cell("Throughput by cell", "sum", "worker_completed:rate5m", "cps"),
        graph(
            "Ended requests",
            Query(f"sum by (outcome) ({_name('requests_ended:rate5m')})", "{{outcome}}"),
            unit="cps",
            stacked=True,
        ),
        graph(
            "Replicas",
            Query(f"sum({_name('autoscaler_desired_replicas:max')})", "desired"),
            Query(f"sum({_name('workers_alive:max')})", "running"),
            Query(f"sum({_name('autoscaler_max_replicas:max')})", "max"),
        ),
        _by_cell("Interrupted requests", "sum", "spot_interruptions:rate15m", "cps"),
        _by_cell("Paused pools", "sum", "pool_paused:max"),
    ],
    "Engines": [
        graph(
            "Answers by status",
            Query(f"sum by (status) ({_name('engine_answers:rate5m')})", "{{status}}"),
            unit="cps",
            stacked=True,
        ),
        _by_cell("Workers without engine", "sum", "engines_unavailable:count", alarm_from=1),
        graph(
            "Tokens",
            Query(f"sum({_name('engine_prompt_tokens:rate5m')})", "input"),
            Query(f"sum({_name('engine_output_tokens:rate5m')})", "output"),
            unit="cps",
        ),
        _by_cell("KV cache in use", "max", "engine_kv_cache_usage_ratio:avg", "percentunit"),
    ],
    "Service": [
        graph(
            "API responses by status",
            Query(f"sum by (status) ({_name('api_requests:rate5m')})", "{{status}}"),
            unit="reqps",
            stacked=True,
        ),
        _by_cell("API latency, p99", "max", "api_request_seconds:p99_5m", "s"),
        _by_cell("Time since last tick", "max", "scheduler_tick_age_seconds:min", "s", 60),
        _by_cell("Oldest pending event", "max", "outbox_oldest_age_seconds:max", "s", 60),
        _by_cell("Dead letters, last hour", "max", "dead_letters:increase1h"),
        number(
            "Cells away",
            f"max({_name('cells_away:count')})",
            description="Cells that a front does not reach.",
            alarm_from=1,
        ),
        _by_cell("Processes that do not answer", "max", "processes_down:count", alarm_from=1),
        graph(
            "Processes by version",
            Query(f"sum by (version) ({_name('processes:count')})", "{{version}}"),
        ),
        _by_cell("Overdue deletion", "max", "retention_oldest_overdue_seconds:max", "s"),
    ],
}
