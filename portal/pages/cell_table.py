"""The table of the fleets of all cells: their health, load and quotes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Self, TypedDict

from nicegui import ui

from portal.components.basics import BADGE_CELL, Badge
from portal.components.batch_table import Part
from portal.formats import duration, hint, milliseconds, models_in_words, number, rough
from portal.theme import Tone

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lowtide.cells.model import Quote, Report
    from portal.cells import SeenCell


class Figures(TypedDict):
    """The load and the quote of a fleet; widths are shares of the largest value of a column."""

    fleet: str
    models: str
    unfinished: str
    unfinished_width: str
    workers: str
    parts: list[Part]
    price: str
    price_width: str
    lowest: bool
    wait: str
    wait_width: str
    interruptions: str
    interruptions_width: str


class CellRow(TypedDict):
    """A fleet of a cell as a table row, without figures for a cell that has reported no fleet.

    `first` and `last` are those of a cell's rows; figures of a cell that is away are `stale`.
    """

    key: str
    cell: str
    portal: str
    region: str
    own: bool
    first: bool
    last: bool
    state: Badge
    note: str
    since: str
    stale: bool
    figures: Figures | None


_LABELS: Final = {
    "cell": "Cell",
    "state": "Health",
    "fleet": "Fleet",
    "unfinished": "Unfinished",
    "workers": "Workers",
    "price": "Price per 1,000",
    "wait": "Wait",
    "interruptions": "Interruptions",
}
_FIGURES: Final = ("unfinished", "workers", "price", "wait", "interruptions")
_NAME: Final = """
<span class="cell-head">
  <a v-if="props.row.portal" class="link" :href="props.row.portal" rel="noreferrer"
    :title="`Portal of ${props.row.cell}`">{{ props.row.cell }}</a>
  <span v-else>{{ props.row.cell }}</span>
  <span v-if="props.row.own" class="badge badge-info">this cell</span></span>
<span class="muted small">{{ props.row.region }}</span>
"""
_STATE: Final = (
    BADGE_CELL.replace("badge.", "props.row.state.")
    + '<span class="muted small note" :title="props.row.since">{{ props.row.note }}</span>'
)
_FLEET: Final = """
<span class="fleet-name ellipsis" :title="props.row.figures.fleet">{{ props.row.figures.fleet }}</span>
<span class="muted small fleet-name ellipsis" :title="props.row.figures.models">
  {{ props.row.figures.models }}</span>
"""
_BAR: Final = (
    '<span class="bar" aria-hidden="true">'
    '<span class="fill-TONE" :style="{ width: props.row.figures.NAME_width }"></span></span>'
)
_WORKERS: Final = """
<span class="nowrap">{{ props.row.figures.workers }}</span>
<span class="bar" aria-hidden="true"><span v-for="part in props.row.figures.parts" :key="part.tone"
  :class="`fill-${part.tone}`" :style="{ width: part.width }"></span></span>
"""
_LOWEST: Final = '<span v-if="props.row.figures.lowest" class="badge badge-good">lowest</span>'


def _with_bar(name: str, tone: Tone, more: str = "") -> str:
    """Return the template of a figure with its bar."""
    value = f"props.row.figures.{name}"
    text = (
        f'<span class="figure"><span class="ellipsis" :title="{value}">{{{{ {value} }}}}</span>'
        f"{more}</span>"
    )
    return text + _BAR.replace("TONE", tone).replace("NAME", name)


_CELLS: Final = {
    "fleet": _FLEET,
    "unfinished": _with_bar("unfinished", Tone.INFO),
    "workers": _WORKERS,
    "price": _with_bar("price", Tone.NEUTRAL, _LOWEST),
    "wait": _with_bar("wait", Tone.WARN),
    "interruptions": _with_bar("interruptions", Tone.BAD),
}
_NARROW: Final = (
    '<div class="batch-item"><div class="batch-line">'
    f'<span class="stack">{_NAME}</span><span class="stack ending">{_STATE}</span></div>'
    '<template v-if="props.row.figures">'
    f'<div class="stack" :class="{{ stale: props.row.stale }}">{_FLEET}</div>'
    '<dl class="figures" :class="{ stale: props.row.stale }">'
    + "".join(
        f'<div class="figure-line"><dt class="muted small">{_LABELS[name]}</dt>'
        f'<dd class="stack">{_CELLS[name]}</dd></div>'
        for name in _FIGURES
    )
    + "</dl></template></div>"
)


class CellTable:
    """The fleets of all cells, in the order of their file."""

    def __init__(self) -> None:
        self._rows: list[CellRow] = []
        columns = [
            {"name": name, "label": label, "field": name, "align": "left"}
            for name, label in _LABELS.items()
        ]
        self._table = ui.table(rows=[], columns=columns, row_key="key").props(
            'flat hide-pagination :rows-per-page-options="[0]" :grid="Quasar.Screen.width < 1240"'
        )
        self._table.classes("cell-table")
        for name, cell in (("cell", _NAME), ("state", _STATE)):
            self._add(
                name,
                f'<div v-if="props.row.first" class="stack">{cell}</div>',
                ':class="{ continued: !props.row.last }"',
            )
        for name, cell in _CELLS.items():
            stale = ':class="{ stale: props.row.stale }"'
            self._add(name, f'<div v-if="props.row.figures" class="stack" {stale}>{cell}</div>')
        self._table.add_slot("item", _NARROW)
        self._table.add_slot("no-data", '<span class="muted">Asking the cells…</span>')

    def _add(self, name: str, content: str, more: str = "") -> None:
        self._table.add_slot(f"body-cell-{name}", f'<q-td :props="props" {more}>{content}</q-td>')

    def show(self, rows: list[CellRow]) -> None:
        """Show these rows; nothing is sent while they stay the same."""
        if rows != self._rows:
            self._rows = rows
            self._table.rows = [dict(row) for row in rows]


@dataclass(frozen=True, slots=True)
class Scale:
    """The largest values of all fleets, and the lowest of several prices for the same models.

    Prices are by currency.
    """

    unfinished: int
    workers: int
    wait: float
    interruptions: float
    price: Mapping[str, float]
    lowest: Mapping[tuple[str, ...], float]

    @classmethod
    def of(cls, seen: Sequence[SeenCell]) -> Self:
        """Return the scale of cells; those that are away offer no lowest price."""
        price: dict[str, float] = {}
        offers: dict[tuple[str, ...], list[float]] = {}
        quotes: list[Quote] = []
        for cell, report in reports_of(seen):
            for quote in report.quotes:
                quotes.append(quote)
                price[report.currency] = max(quote.price, price.get(report.currency, 0.0))
                if not cell.is_away:
                    offers.setdefault((report.currency, *quote.models), []).append(quote.price)
        return cls(
            max((quote.unfinished for quote in quotes), default=0),
            max((quote.spot_workers + quote.dedicated_workers for quote in quotes), default=0),
            max((quote.wait or 0.0 for quote in quotes), default=0.0),
            max((quote.interruptions for quote in quotes), default=0.0),
            price,
            {key: min(prices) for key, prices in offers.items() if len(prices) > 1},
        )


def rows_of(seen: Sequence[SeenCell], now: datetime, own: int | None) -> list[CellRow]:
    """Return the table rows of all cells; `own` is the number of this portal's."""
    scale = Scale.of(seen)
    return [row for each in seen for row in _rows_of(each, scale, now, own)]


def _rows_of(each: SeenCell, scale: Scale, now: datetime, own: int | None) -> Iterator[CellRow]:
    cell, report = each.heartbeat.cell, each.report
    since = datetime.fromtimestamp(each.heartbeat.since, UTC)
    state, note = health_of(each, now)
    figures: Sequence[Figures | None] = (None,)
    if report is not None and report.quotes:
        figures = [_figures(quote, report, scale, away=each.is_away) for quote in report.quotes]
    for place, fleet in enumerate(figures):
        yield CellRow(
            key=f"{cell.name} {place}",
            cell=cell.name,
            portal=cell.portal or "",
            region=cell.region,
            own=cell.number == own,
            first=place == 0,
            last=place == len(figures) - 1,
            state=state,
            note=note,
            since=f"Since {hint(since)}",
            stale=each.is_away,
            figures=fleet,
        )


def health_of(each: SeenCell, now: datetime) -> tuple[Badge, str]:
    """Return the badge of a cell, and why it is away or how soon it answers."""
    heartbeat = each.heartbeat
    if each.is_away:
        span = now - datetime.fromtimestamp(heartbeat.since, UTC)
        return Badge(text="Away", tone=Tone.BAD), f"for {rough(span)}: {heartbeat.problem}"
    answer = f"answers in {milliseconds(heartbeat.seconds)}"
    if not heartbeat.cell.accepts_work:
        return Badge(text="Finishing", tone=Tone.NEUTRAL), f"takes no new work, {answer}"
    return Badge(text="Well", tone=Tone.GOOD), answer


def _figures(quote: Quote, report: Report, scale: Scale, *, away: bool) -> Figures:
    pools = ((Tone.SPOT, quote.spot_workers), (Tone.DEDICATED, quote.dedicated_workers))
    lowest = scale.lowest.get((report.currency, *quote.models))
    return Figures(
        fleet=quote.fleet,
        models=models_in_words(quote.models),
        unfinished=number(quote.unfinished),
        unfinished_width=_share(quote.unfinished, scale.unfinished),
        workers=" · ".join(f"{number(count)} {pool}" for pool, count in pools if count) or "none",
        parts=[Part(tone=tone, width=_share(count, scale.workers)) for tone, count in pools],
        price=f"{quote.price * 1000:.3g} {report.currency}",
        price_width=_share(quote.price, scale.price[report.currency]),
        lowest=not away and quote.price == lowest,
        wait=wait_of(quote),
        wait_width=_share(quote.wait or 0.0, scale.wait),
        interruptions=f"{quote.interruptions:.2g} per hour" if quote.interruptions else "none",
        interruptions_width=_share(quote.interruptions, scale.interruptions),
    )


def wait_of(quote: Quote) -> str:
    """Return the wait of a fleet in words."""
    if quote.wait is None:
        return "no capacity"
    return duration(timedelta(seconds=quote.wait)) if quote.wait >= 1 else "none"


def _share(value: float, largest: float) -> str:
    return f"{value / largest:.1%}" if largest > 0 else "0%"


def reports_of(seen: Sequence[SeenCell]) -> Iterator[tuple[SeenCell, Report]]:
    """Yield the cells that ever reported, with their last reports."""
    for each in seen:
        if each.report is not None:
            yield each, each.report
