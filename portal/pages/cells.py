"""The page of all cells: which are well, their load in total, and their fleets."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from nicegui import ui

from portal.cells import PATH
from portal.components.basics import StatCard
from portal.components.frame import page
from portal.formats import number
from portal.live import Live
from portal.pages.cell_table import CellTable, reports_of, rows_of, wait_of
from portal.services import known_cells

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowtide.cells.model import Quote
    from portal.cells import CellWatch, SeenCell
    from portal.watching import Watching


_HOW: Final = (
    "This portal asks every cell for its heartbeat every 5 s. The price is that of the replica time of "
    "1,000 requests, and the lowest one is marked among fleets of the same models; the wait is the time "
    "until what is queued now has run; interruptions are per spot worker, in the last hour. The bars of "
    "a column have one scale; figures of a cell that is away are the last that it reported. New batches "
    "go to the cheapest cells that meet their deadlines."
)


def install(watching: Watching, watch: CellWatch, *, api_url: str) -> None:
    """Serve the page of cells."""

    @page(PATH)
    def cells() -> None:
        live = Live(watching.poller, lambda: watch.looked_at)
        with live.page("Cells", api_url=api_url):
            view = _Cells(watch)
        live.keep(view.show)


class _Cells:
    def __init__(self, watch: CellWatch) -> None:
        self._watch = watch
        with ui.element("div").classes("cards"):
            titles = ("Cells", "Unfinished requests", "Workers", "Longest wait")
            self._cards = {title: StatCard(title) for title in titles}
        with ui.element("section").classes("card table-card"):
            self._table = CellTable()
        ui.label(_HOW).classes("muted small")

    def show(self) -> None:
        seen = self._watch.seen
        if seen:
            show_cards(self._cards, seen)
        self._table.show(rows_of(seen, datetime.now(UTC), known_cells().names.own))


def show_cards(cards: Mapping[str, StatCard], seen: Sequence[SeenCell]) -> None:
    """Show the totals of the cells that answer."""
    away = [each.heartbeat.cell.name for each in seen if each.is_away]
    quotes = [
        (f"{cell.heartbeat.cell.name}, {quote.fleet}", quote)
        for cell, report in reports_of(seen)
        if not cell.is_away
        for quote in report.quotes
    ]
    answering = len(seen) - len(away)
    where = "of the cells that answer" if away else "of all cells"
    spot = sum(quote.spot_workers for _, quote in quotes)
    dedicated = sum(quote.dedicated_workers for _, quote in quotes)
    cards["Cells"].show(
        f"{answering} / {len(seen)}",
        f"away: {', '.join(away)}" if away else "all answer",
        alarming=bool(away),
    )
    cards["Unfinished requests"].show(number(sum(quote.unfinished for _, quote in quotes)), where)
    cards["Workers"].show(
        number(spot + dedicated), f"{number(spot)} spot · {number(dedicated)} dedicated"
    )
    value, note, alarming = longest_wait(quotes)
    cards["Longest wait"].show(value, note, alarming=alarming)


def longest_wait(quotes: Sequence[tuple[str, Quote]]) -> tuple[str, str, bool]:
    """Return the longest wait of fleets, given with their places, its place, and if it is alarming.

    It is if requests wait for a fleet without any capacity.
    """
    stuck = [place for place, quote in quotes if quote.wait is None and quote.unfinished]
    if stuck:
        return "No capacity", f"in {stuck[0]}", True
    waiting = [(place, quote) for place, quote in quotes if quote.wait is not None]
    if not waiting:
        return "—", "", False
    place, longest = max(waiting, key=lambda each: each[1].seconds)
    return wait_of(longest), f"in {place}", False
