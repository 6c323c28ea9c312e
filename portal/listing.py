"""Live, paged lists with their filters in the URL."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Protocol, Self, TypeVar

from nicegui import ui

from lowtide.core.errors import LowtideError
from portal.live import Live
from portal.loading import load
from portal.polling import Subject
from portal.pulse import PULSE
from portal.services import in_thread
from portal.sessions import current_principal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from portal.polling import Poller, Readings


PAGE_SIZE: Final = 50


class Query(Protocol):
    """The filters and the cursor in a page's URL."""

    @property
    def after(self) -> str:
        """The cursor at the end of the previous page."""
        ...

    @property
    def narrows(self) -> bool:
        """True if any filter is set."""
        ...

    def address(self) -> str:
        """Return the URL of this query."""
        ...

    def behind(self, after: str) -> Self:
        """Return the same query after a cursor; an empty one is the first page."""
        ...


_Query = TypeVar("_Query", bound=Query)
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Listed(Generic[_Item]):
    """One page of items, `more` if others follow, and the `count` of all where it is shown."""

    items: Sequence[_Item]
    more: bool
    count: int = 0


class ListPage(ABC, Generic[_Query, _Item]):
    """An open list. The poller reads it once for all pages with the same tenant and query.

    `NOTHING` is shown for an empty list, `NO_MATCHES` for filters that nothing matches.
    """

    TITLE: str
    NOTHING: str
    NO_MATCHES = "Nothing matches these filters."

    def __init__(self, poller: Poller, readings: Readings, query: _Query) -> None:
        self.query = query
        self.principal = current_principal()
        self._live = Live(poller)
        self._readings = readings
        self._follower = ui.context.client.id
        self._previous: list[_Query] = []
        self._subject: Subject[Listed[_Item]] | None = None

    def heading(self) -> None:
        """Build what stands above the list."""
        administration_tabs(ui.context.client.page.path)

    @abstractmethod
    def prepare(self) -> None:
        """Read what the controls need; runs in a thread and may raise LowtideError."""

    @abstractmethod
    def controls(self) -> None:
        """Build the controls above the list."""

    @abstractmethod
    def table(self) -> None:
        """Build the list."""

    @abstractmethod
    def reader(self) -> Callable[[], Listed[_Item]]:
        """Return a function that reads the query's page; raises LowtideError if it is invalid."""

    @abstractmethod
    def show(self, listed: Listed[_Item]) -> None:
        """Show a page."""

    @abstractmethod
    def mark(self, item: _Item) -> str:
        """Return the cursor after this item."""

    async def open(self, api_url: str) -> None:
        """Build the page and keep it current until it is closed."""
        with self._live.page(self.TITLE, api_url=api_url):
            self.heading()
            self._problem = ui.label("").classes("banner").props("role=status")
            self._show_problem("")
            await load(self.prepare)
            with ui.element("section").classes("card table-card"):
                self.controls()
                self.table()
                with ui.element("div").classes("empty-line") as self._empty:
                    self._empty_label = ui.label("")
                    self._clear = ui.link("Clear filters", ui.context.client.page.path)
                self._pager = Pager(on_first=self._first, on_back=self._back, on_next=self._next)
        ui.context.client.on_delete(lambda: self._readings.unfollow(self._follower))
        subject = self._follow()
        if subject is not None:
            # `_draw` shows the error.
            with suppress(LowtideError):
                await load(subject.first)
        self._live.keep(self._draw, self._reread)

    @property
    def listed(self) -> Listed[_Item] | None:
        """The page as last read; None before it was."""
        return None if self._subject is None else self._subject.reading.value

    async def narrow(self, query: _Query) -> None:
        """Show the first page of another query."""
        self._previous.clear()
        await self.navigate(query.behind(""))

    async def reload(self) -> None:
        """Read and show the list now, after a change."""
        await in_thread(self._reread)
        self._draw()

    def _reread(self) -> None:
        if self._subject is not None:
            self._subject.look()

    def _follow(self) -> Subject[Listed[_Item]] | None:
        """Follow the query from now on; None if it is invalid."""
        try:
            read = self.reader()
        except LowtideError as error:
            self._subject = None
            self._readings.unfollow(self._follower)
            self._show_problem(error.message)
            return None
        subject = Subject((type(self).__name__, self.principal.tenant, self.query), read)
        self._subject = self._readings.follow(self._follower, subject, lambda: self._live.paused)
        return self._subject

    def _draw(self) -> None:
        reading = None if self._subject is None else self._subject.reading
        if reading is None:
            self._list(Listed((), more=False))
            return
        # During an outage the frame has a banner.
        problem = reading.problem if PULSE.answering else None
        self._show_problem("" if problem is None else problem.message)
        if reading.value is not None:
            self._list(reading.value)
        else:
            # The items shown so far belong to another query; this one may well have some.
            self._list(Listed((), more=False))
            self.show_empty("" if reading.problem is not None else "Loading…")

    def _list(self, listed: Listed[_Item]) -> None:
        self.show(listed)
        text = self.NO_MATCHES if self.query.narrows else self.NOTHING
        self.show_empty("" if listed.items else text)
        self._pager.show(first=not self.query.after, more=listed.more)

    def show_empty(self, text: str) -> None:
        """Show a text instead of items; "" if there are some, or none can be read."""
        self._empty_label.text = text
        self._empty.set_visibility(bool(text))
        self._clear.set_visibility(self.query.narrows)

    def _show_problem(self, problem: str) -> None:
        self._problem.text = problem
        self._problem.set_visibility(bool(problem))

    async def navigate(self, query: _Query) -> None:
        """Show another page, or the same one of another query."""
        self.query = query
        ui.navigate.history.replace(query.address())
        if (subject := self._follow()) is not None:
            await subject.read()
        self._draw()

    async def _first(self) -> None:
        self._previous.clear()
        await self.navigate(self.query.behind(""))

    async def _back(self) -> None:
        await self.navigate(self._previous.pop() if self._previous else self.query.behind(""))

    async def _next(self) -> None:
        if (listed := self.listed) is not None and listed.items:
            self._previous.append(self.query)
            await self.navigate(self.query.behind(self.mark(listed.items[-1])))


_TABS: Final = (
    ("/tenants", "Tenants"),
    ("/keys", "Keys"),
    ("/usage", "Usage"),
    ("/audit", "Audit log"),
)


def administration_tabs(current: str) -> None:
    """Show links to the administration pages."""
    with ui.element("nav").classes("tabs apart").props('aria-label="Administration"'):
        for path, name in _TABS:
            link = ui.element("a").classes("tab").props(f'href="{path}"')
            if path == current:
                link.props("aria-current=page")
            with link:
                ui.label(name)


def tenant_choice(
    tenants: Sequence[str],
    chosen: str,
    on_change: Callable[[str], Awaitable[None] | None],
    *,
    with_all: bool = True,
) -> None:
    """Show a searchable choice of tenants by name; the empty name means all tenants, or none yet."""
    names = {name: name for name in tenants}
    if with_all:
        names = {"": "All tenants", **names}
    ui.select(
        names,
        value=chosen if chosen in names else "" if with_all else None,
        label="Tenant",
        with_input=True,
        on_change=lambda event: on_change(event.value or ""),
    ).props("dense outlined options-dense hide-bottom-space")


class Pager:
    """Buttons for the first, previous and next page; hidden if everything fits on one page."""

    def __init__(
        self,
        *,
        on_first: Callable[[], Awaitable[None]],
        on_back: Callable[[], Awaitable[None]],
        on_next: Callable[[], Awaitable[None]],
    ) -> None:
        with ui.element("div").classes("pager") as self._all:
            self._first = ui.button("First page", on_click=on_first, color=None)
            self._back = ui.button("Previous page", on_click=on_back, color=None)
            self._next = ui.button("Next page", on_click=on_next, color=None)
        for button in (self._first, self._back, self._next):
            button.props("flat no-caps")

    def show(self, *, first: bool, more: bool) -> None:
        """Enable the buttons that lead to another page."""
        self._all.set_visibility(more or not first)
        self._first.set_enabled(not first)
        self._back.set_enabled(not first)
        self._next.set_enabled(more)
