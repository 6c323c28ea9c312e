"""Time series charts, drawn by the browser; lines break where samples are missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nicegui import ui

from lowtide.core.pools import DEFAULT_FLEET, Pool
from lowtide.status.history import HistoryRange
from portal import theme
from portal.components.basics import heading

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence
    from datetime import datetime

    from lowtide.status.history import History, HistoryPoint, PauseSpan, PoolPoint, SlaBar
    from lowtide.status.snapshot import LostEngine


_NAMES: Final = {
    HistoryRange.HOUR: "1 h",
    HistoryRange.SIX_HOURS: "6 h",
    HistoryRange.DAY: "24 h",
    HistoryRange.WEEK: "7 d",
}


def range_choice(chosen: HistoryRange, on_change: Callable[[HistoryRange], object]) -> None:
    """Show the choice of ranges."""
    with ui.element("div").props('role=group aria-label="Time range"'):
        ui.toggle(
            {each.value: name for each, name in _NAMES.items()},
            value=chosen.value,
            on_change=lambda event: on_change(HistoryRange(event.value)),
        ).props("no-caps unelevated dense toggle-color=primary padding='3px 12px'").classes(
            "ranges"
        )


NOT_ENOUGH: Final = "No samples in this time range. The scheduler takes one per minute."


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: a value of a pool over time; None is a gap."""

    name: str
    pool: Pool
    value: Callable[[PoolPoint], float | None]
    dashed: bool = False


def lines_by_pool(value: Callable[[PoolPoint], float | None]) -> tuple[Line, ...]:
    """Return one line per pool."""
    return tuple(Line(pool.value, pool, value) for pool in Pool)


@dataclass(frozen=True, slots=True)
class Mark:
    """A span of time that explains a chart, until now if `until` is None."""

    text: str
    since: datetime
    until: datetime | None


def marks_of(history: History, lost_engines: Iterable[LostEngine] = ()) -> tuple[Mark, ...]:
    """Return the marks of a history: pauses of pools, and engines that are away now."""
    return (
        *(Mark(f"{_place(each)} paused", each.since, each.until) for each in history.pauses),
        *(Mark(f"{_place(each)} engine away", each.since, None) for each in lost_engines),
    )


def _place(part: PauseSpan | LostEngine) -> str:
    return part.pool.value if part.fleet == DEFAULT_FLEET else f"{part.fleet} {part.pool}"


class TimeChart:
    """A line chart of a history; `integers` restricts the axis to whole numbers."""

    def __init__(
        self,
        title: str,
        unit: str,
        lines: Sequence[Line],
        *,
        filled: bool = False,
        integers: bool = False,
    ) -> None:
        self._lines = lines
        self._content: Hashable = None
        with ui.element("section").classes("card section"):
            with ui.element("div").classes("chart-head"):
                heading(title)
                ui.label(unit).classes("muted small")
            options = _options([_series(line, filled=filled) for line in lines], integers=integers)
            options["series"][0]["markArea"] = _MARK_AREA | {"data": []}
            self._chart = ui.echart(options).classes("chart")
            self._chart.props("role=img")
            self._title = title
            self._empty_note = ui.label(NOT_ENOUGH).classes("muted small")

    def show(self, history: History, marks: Sequence[Mark] = ()) -> None:
        """Draw a history and marks; nothing is sent while they stay the same."""
        until = history.until.replace(second=0, microsecond=0)
        content = (history.range, history.points, until, tuple(marks))
        if content == self._content:
            return
        self._content = content
        self._empty_note.set_visibility(not history.points)
        runs = history.runs()
        for series, line in zip(self._chart.options["series"], self._lines, strict=True):
            series["data"] = drawn(runs, line)
        begin = history.until - history.range.span
        _span(self._chart, begin, history.until)
        self._chart.options["series"][0]["markArea"]["data"] = [
            _area(mark, begin, history.until, row) for row, mark in enumerate(marks)
        ]
        texts = [*self._last_values(history), *dict.fromkeys(mark.text for mark in marks)]
        self._chart.props["aria-label"] = f"{self._title}: {', '.join(texts)}"
        self._chart.update()

    def _last_values(self, history: History) -> Iterable[str]:
        for line in self._lines:
            last = history.points[-1].pools.get(line.pool) if history.points else None
            value = None if last is None else line.value(last)
            yield line.name if value is None else f"{line.name} {value:.6g}"


class SlaChart:
    """A bar chart of ended batches, by deadline met or missed."""

    def __init__(self) -> None:
        self._content: Hashable = None
        with ui.element("section").classes("card section"):
            with ui.element("div").classes("chart-head"):
                heading("Deadlines")
                ui.label("ended batches").classes("muted small")
            bars = [_bars("met", theme.CHART_GOOD), _bars("missed", theme.CHART_BAD)]
            self._chart = ui.echart(_options(bars, integers=True)).classes("chart")
            self._chart.props("role=img")

    def show(self, history: History) -> None:
        """Draw a history; nothing is sent while it stays the same."""
        content = (history.range, history.sla, history.until.replace(second=0, microsecond=0))
        if content == self._content:
            return
        self._content = content
        met, missed = self._chart.options["series"]
        met["data"] = [[_middle(each, history), each.met] for each in history.sla]
        missed["data"] = [[_middle(each, history), each.missed] for each in history.sla]
        _span(self._chart, *whole_bars(history))
        self._chart.props["aria-label"] = (
            f"Deadlines of the last {history.range.value}: "
            f"{sum(each.met for each in history.sla)} met, "
            f"{sum(each.missed for each in history.sla)} missed"
        )
        self._chart.update()


def _area(mark: Mark, begin: datetime, until: datetime, row: int) -> list[dict[str, Any]]:
    """Return the data of a mark; its text stays inside the chart, in one of a few rows."""
    since = max(mark.since, begin)
    side = "Right" if since - begin > until - since else "Left"
    label = {"position": f"insideTop{side}", "offset": [0, 14 * (row % _MARK_ROWS)]}
    return [
        {"name": mark.text, "label": label, "xAxis": _milliseconds(since)},
        {"xAxis": _milliseconds(mark.until or until)},
    ]


def drawn(runs: Sequence[Sequence[HistoryPoint]], line: Line) -> list[Any]:
    """Return the data of a line: a null between two runs, a dot for a single point."""
    parts: list[list[list[float]]] = []
    for run in runs:
        parts.append([])
        for point in run:
            pool = point.pools.get(line.pool)
            value = None if pool is None else line.value(pool)
            if value is not None:
                parts[-1].append([_milliseconds(point.at), round(value, 3)])
            elif parts[-1]:
                parts.append([])
    data: list[Any] = []
    for part in filter(None, parts):
        if data:
            data.append([part[0][0], None])
        data += [{"value": part[0], "symbol": "circle"}] if len(part) == 1 else part
    return data


def whole_bars(history: History) -> tuple[datetime, datetime]:
    """Return the bounds of an axis that cuts no bar; the newest bar may end after now."""
    begin, end = history.until - history.range.span, history.until
    if history.sla:
        begin = min(begin, history.sla[0].at)
        end = max(end, history.sla[-1].at + history.range.bar)
    return begin, end


def _span(chart: ui.echart, begin: datetime, end: datetime) -> None:
    """Make the axis cover the whole range, even without data."""
    chart.options["xAxis"] |= {"min": _milliseconds(begin), "max": _milliseconds(end)}


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _middle(bar: SlaBar, history: History) -> int:
    # A bar is drawn centred on its time span.
    return _milliseconds(bar.at + history.range.bar / 2)


# As portal.formats.absolute; the tooltip of a time axis shows the label of its pointer.
_MOMENT: Final = """params => {
  const at = new Date(params.value), two = (part) => String(part).padStart(2, "0");
  return `${at.getDate()} ${at.toLocaleString("en-US", { month: "short" })} ${at.getFullYear()}, `
    + [at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(":");
}"""
_MARK_ROWS: Final = 6
_MARK_AREA: Final = {
    "silent": True,
    "itemStyle": {"color": theme.CHART_MARK},
    "label": {"color": theme.CHART_INK, "fontSize": 11},
}


def _options(series: list[dict[str, Any]], *, integers: bool) -> dict[str, Any]:
    text_style = {"color": theme.CHART_INK}
    return {
        "animation": False,
        "aria": {"enabled": False},
        "textStyle": {"fontFamily": "system-ui, sans-serif"},
        # A legend of more than two lines takes two rows on a phone.
        "grid": {
            "left": 8,
            "right": 16,
            "top": 34 if len(series) <= 2 else 52,
            "bottom": 4,
            "containLabel": True,
        },
        "legend": {"top": 0, "left": 0, "itemHeight": 8, "textStyle": text_style},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {
            "type": "time",
            "axisLabel": text_style | {"hideOverlap": True},
            "axisLine": {"lineStyle": {"color": theme.CHART_RULE}},
            "axisPointer": {"label": {":formatter": _MOMENT}},
        },
        "yAxis": {
            "type": "value",
            "minInterval": 1 if integers else 0,
            "axisLabel": text_style,
            "splitLine": {"lineStyle": {"color": theme.CHART_RULE}},
        },
        "series": series,
    }


def _series(line: Line, *, filled: bool) -> dict[str, Any]:
    colour = theme.CHART_POOLS[line.pool]
    series: dict[str, Any] = {
        "name": line.name,
        "type": "line",
        "symbol": "none",
        "symbolSize": 6,
        "color": colour,
        "lineStyle": {"width": 2, "type": "dashed" if line.dashed else "solid"},
        "data": [],
    }
    if filled:
        series["areaStyle"] = {"opacity": 0.16}
    return series


def _bars(name: str, colour: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "bar",
        "stack": "batches",
        "color": colour,
        "barMaxWidth": 18,
        "data": [],
    }
