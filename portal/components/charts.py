"""Charts over time, drawn by the browser from samples of this process."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from nicegui import ui

from lowtide.domain.pools import Pool
from portal import theme
from portal.components.headings import heading

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowtide.domain.operations import PoolSample, Sample, SlaHour

NOT_ENOUGH: Final = "Samples are being collected; the first line appears within a minute."


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: whose, what of it, and how it looks."""

    name: str
    pool: Pool
    value: Callable[[PoolSample], float]
    dashed: bool = False


def lines_by_pool(value: Callable[[PoolSample], float]) -> tuple[Line, ...]:
    """Return a line for each pool."""
    return tuple(Line(pool.value, pool, value) for pool in Pool)


class TimeChart:
    """Lines over the samples there are."""

    def __init__(
        self, title: str, unit: str, lines: Sequence[Line], *, filled: bool = False
    ) -> None:
        self._lines = lines
        self._shown: object = None
        with ui.element("section").classes("card section"):
            with ui.element("div").classes("chart-head"):
                heading(title)
                ui.label(unit).classes("muted small")
            self._chart = ui.echart(
                _options([_series(line, filled=filled) for line in lines])
            ).classes("chart")
            self._chart.props("role=img")
            self._title = title
            self._waiting = ui.label(NOT_ENOUGH).classes("muted small")

    def show(self, samples: Sequence[Sample]) -> None:
        """Draw samples; nothing is sent while there is no new one."""
        newest = samples[-1].at if samples else None
        if newest == self._shown and self._shown is not None:
            return
        self._shown = newest
        self._waiting.set_visibility(len(samples) < 2)
        for series, line in zip(self._chart.options["series"], self._lines, strict=True):
            series["data"] = [
                [
                    int(sample.at.timestamp() * 1000),
                    round(line.value(sample.pools[line.pool]), 2),
                ]
                for sample in samples
            ]
        last = samples[-1] if samples else None
        values = [
            f"{line.name} {line.value(last.pools[line.pool]):.6g}" if last else line.name
            for line in self._lines
        ]
        self._chart.props["aria-label"] = f"{self._title}: {', '.join(values)}"
        self._chart.update()


class SlaChart:
    """Deadlines held and missed, hour by hour."""

    def __init__(self) -> None:
        self._shown: object = None
        with ui.element("section").classes("card section"):
            with ui.element("div").classes("chart-head"):
                heading("Deadlines")
                ui.label("batches an hour, last 24 hours").classes("muted small")
            self._chart = ui.echart(
                _options([_bars("met", theme.CHART_GOOD), _bars("violated", theme.CHART_BAD)])
            ).classes("chart")
            self._chart.props("role=img")

    def show(self, hours: Sequence[SlaHour]) -> None:
        """Draw hours; nothing is sent while they stay the same."""
        if tuple(hours) == self._shown:
            return
        self._shown = tuple(hours)
        met, violated = self._chart.options["series"]
        met["data"] = [[_milliseconds(each), each.met] for each in hours]
        violated["data"] = [[_milliseconds(each), each.violated] for each in hours]
        last = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        axis = self._chart.options["xAxis"]
        axis["min"] = int((last - timedelta(hours=23)).timestamp() * 1000)
        axis["max"] = int((last + timedelta(hours=1)).timestamp() * 1000)
        self._chart.props["aria-label"] = (
            f"Deadlines of the last 24 hours: {sum(each.met for each in hours)} met, "
            f"{sum(each.violated for each in hours)} violated"
        )
        self._chart.update()


def _milliseconds(hour: SlaHour) -> int:
    # In the middle of its hour, where a reader looks for a bar.
    return int(hour.hour.timestamp() * 1000) + 1_800_000


def _options(series: list[dict[str, Any]]) -> dict[str, Any]:
    words = {"color": theme.CHART_INK}
    return {
        "animation": False,
        "aria": {"enabled": False},
        "textStyle": {"fontFamily": "system-ui, sans-serif"},
        "grid": {"left": 8, "right": 16, "top": 34, "bottom": 4, "containLabel": True},
        "legend": {"top": 0, "left": 0, "itemHeight": 8, "textStyle": words},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {
            "type": "time",
            "axisLabel": words | {"hideOverlap": True},
            "axisLine": {"lineStyle": {"color": theme.CHART_RULE}},
        },
        "yAxis": {
            "type": "value",
            "minInterval": 0,
            "axisLabel": words,
            "splitLine": {"lineStyle": {"color": theme.CHART_RULE}},
        },
        "series": series,
    }


def _series(line: Line, *, filled: bool) -> dict[str, Any]:
    colour = theme.CHART_POOLS[line.pool]
    found: dict[str, Any] = {
        "name": line.name,
        "type": "line",
        "showSymbol": False,
        "color": colour,
        "lineStyle": {"width": 2, "type": "dashed" if line.dashed else "solid"},
        "data": [],
    }
    if filled:
        found["areaStyle"] = {"opacity": 0.16}
    return found


def _bars(name: str, colour: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "bar",
        "stack": "batches",
        "color": colour,
        "barMaxWidth": 18,
        "data": [],
    }
