"""What the dashboards are made of: a frame with variables, and panels of one query or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from grafana_foundation_sdk.builders import common as options
from grafana_foundation_sdk.builders import dashboard as frame
from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

_SOURCE: Final = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
_WIDTH: Final = 24
ALARM: Final = "red"
# What each variable offers: the labels of a series that every installation, or every pool, has.
_VARIABLES: Final = {
    "namespace": "label_values(lowtide_build_info, namespace)",
    "fleet": 'label_values(queue_depth{namespace=~"$namespace"}, fleet)',
    "pool": 'label_values(queue_depth{namespace=~"$namespace"}, pool)',
    "tenant": 'label_values(tenant_open_batches{namespace=~"$namespace"}, tenant)',
    "cell": "label_values(lowtide_cell:batches_at_risk:max, cell)",
    "batch": 'label_values(batch_at_risk_seconds_left{namespace=~"$namespace"}, batch)',
}


@dataclass(frozen=True, slots=True)
class Query:
    """One expression; `legend` may name labels, as `{{pool}}`."""

    expr: str
    legend: str = ""


def board(
    uid: str, title: str, description: str, *, variables: Sequence[str], since: str
) -> frame.Dashboard:
    """Return an empty dashboard that knows its neighbours."""
    made = (
        frame.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["lowtide"])
        .time(since, "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(
            frame.DashboardLink("Lowtide")
            .type(dashboard.DashboardLinkType.DASHBOARDS)
            .tags(["lowtide"])
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(
            frame.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
    )
    for name in variables:
        made = made.with_variable(_variable(name))
    return made


def _variable(name: str) -> frame.QueryVariable:
    return (
        frame.QueryVariable(name)
        .label(name.capitalize())
        .query(_VARIABLES[name])
        .datasource(_SOURCE)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def graph(
    title: str,
    *queries: Query,
    unit: str = "short",
    description: str = "",
    span: int = 12,
    stacked: bool = False,
    alarm_from: float | None = None,
) -> timeseries.Panel:
    """Return lines over time; from `alarm_from` on the background is red."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(_SOURCE)
        .unit(unit)
        .min(0)
        .span(span)
        .height(8)
        .line_width(2)
        .fill_opacity(20 if stacked else 5)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            options.VizLegendOptions()
            .show_legend(True)
            .placement(common.LegendPlacement.BOTTOM)
            .display_mode(common.LegendDisplayMode.LIST)
        )
    )
    if stacked:
        panel = panel.stacking(options.StackingConfig().mode(common.StackingMode.NORMAL))
    if alarm_from is not None:
        panel = panel.thresholds(_steps(alarm_from)).thresholds_style(
            options.GraphThresholdsStyleConfig().mode(common.GraphTresholdsStyleMode.DASHED)
        )
    for query in _targets(queries):
        panel = panel.with_target(query)
    return panel


def number(
    title: str,
    expr: str,
    *,
    unit: str = "short",
    description: str = "",
    alarm_from: float | None = None,
) -> stat.Panel:
    """Return one number as it is now; from `alarm_from` on it is red."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(_SOURCE)
        .unit(unit)
        .span(4)
        .height(4)
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.AREA)
        .no_value("-")
        .with_target(prometheus.Dataquery().expr(expr).datasource(_SOURCE))
    )
    return panel.thresholds(_steps(alarm_from))


def rows(title: str, expr: str, *, description: str = "", span: int = _WIDTH) -> table.Panel:
    """Return the series of a query as they are now, a row each."""
    hidden = {"Time": True, "__name__": True, "job": True, "instance": True}
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(_SOURCE)
        .span(span)
        .height(8)
        .with_target(
            prometheus.Dataquery()
            .expr(expr)
            .instant()
            .format(PromQueryFormat.TABLE)
            .datasource(_SOURCE)
        )
        .with_transformation(
            dashboard.DataTransformerConfig(id_val="organize", options={"excludeByName": hidden})
        )
    )


def row(title: str) -> frame.Row:
    """Return a heading."""
    return frame.Row(title)


def _targets(queries: Sequence[Query]) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery()
        .expr(query.expr)
        .legend_format(query.legend)
        .datasource(_SOURCE)
        .ref_id(chr(ord("A") + place))
        for place, query in enumerate(queries)
    ]


def _steps(alarm_from: float | None) -> frame.ThresholdsConfig:
    steps = [dashboard.Threshold(value=None, color="green")]
    if alarm_from is not None:
        steps.append(dashboard.Threshold(value=alarm_from, color=ALARM))
    return frame.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)
