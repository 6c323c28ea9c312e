"""The dead letter page: search, requeue, discard and download."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nicegui import ui

from lowtide.core.errors import LowtideError
from lowtide.dead_letters.model import LetterId, LetterSummary
from portal import downloads
from portal.components.basics import heading
from portal.components.frame import frame, page
from portal.formats import number
from portal.listing import PAGE_SIZE
from portal.loading import load
from portal.pages.letter_actions import LetterActions
from portal.pages.letter_table import LetterTable, read_excerpts, show_letter
from portal.queries import STATES, LetterQuery
from portal.services import in_thread, services_for, tenants_for
from portal.sessions import current_principal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from lowtide.core.ids import TenantId
    from lowtide.dead_letters.model import DeadLetter, ErrorGroup, LetterFilter

    Page = tuple[Sequence[DeadLetter], bool, LetterSummary, LetterSummary]
    Run = Callable[[Callable[[], Page]], Awaitable[Page]]


class LetterFilters:
    """Filters by batch, error code and state, and by tenant if there are several."""

    def __init__(
        self,
        query: LetterQuery,
        tenants: Sequence[str],
        *,
        on_change: Callable[[LetterQuery], Awaitable[None]],
    ) -> None:
        self._query = query
        self._on_change = on_change
        with ui.element("div").classes("filters").props("role=search"):
            batch = ui.input("Batch id", value=query.batch).props("clearable")
            code = ui.input("Error code", value=query.code).props("clearable")
            state = ui.select(
                dict(STATES),
                value=query.state if query.state in STATES else None,
                label="State",
                on_change=lambda event: self._change(state=event.value or ""),
            )
            fields = [batch, code, state]
            if len(tenants) > 1:
                names = {"": "All tenants", **{name: name for name in tenants}}
                fields.append(
                    ui.select(
                        names,
                        value=query.tenant if query.tenant in names else "",
                        label="Tenant",
                        on_change=lambda event: self._change(tenant=event.value),
                    )
                )
        for field in fields:
            field.props("dense outlined")
        batch.on_value_change(lambda event: self._change(batch=(event.value or "").strip()))
        code.on_value_change(lambda event: self._change(code=(event.value or "").strip()))
        for box in (batch, code):
            box.props("debounce=400")

    async def _change(self, **changes: str) -> None:
        # A message belongs to the code that it was chosen with.
        message = "" if "code" in changes else self._query.message
        changed = replace(self._query, **changes, message=message)
        if changed != self._query:
            self._query = changed
            await self._on_change(changed)


PATH: Final = "/dead-letters"


class ErrorGroups:
    """The most frequent errors, each with its count and a link that filters by it."""

    def __init__(self) -> None:
        self._section = ui.element("section").classes("card section")
        self._section.props('aria-label="Errors"')

    def show(self, summary: LetterSummary, query: LetterQuery) -> None:
        """Show the errors of a summary; the one that the query filters by is marked."""
        self._section.clear()
        self._section.set_visibility(bool(summary.groups))
        with self._section:
            with ui.element("div").classes("section-head"):
                heading("Errors")
                ui.label(f"{_total(summary)} in total").classes("muted small")
            with ui.element("ul").classes("errors"):
                for group in summary.groups:
                    _show_group(group, query)


def _show_group(group: ErrorGroup, query: LetterQuery) -> None:
    code, message = group.error_code or "", group.error_message or ""
    is_chosen = (query.code, query.message) == (code, message)
    target = replace(query, code="" if is_chosen else code, message="" if is_chosen else message)
    with ui.element("li"):
        ui.label(number(group.letters)).classes("count")
        if not code:
            ui.label("unknown").classes("mono small")
            return
        link = ui.element("a").classes("link")
        link.props["href"] = target.address(PATH)
        if is_chosen:
            link.props["aria-current"] = "true"
        with link:
            ui.label(code).classes("mono small")
        ui.label(message).classes("muted small ellipsis")


def _total(summary: LetterSummary) -> str:
    return f"{number(summary.total)}{'+' if summary.is_capped else ''}"


def install(*, api_url: str) -> None:
    """Serve the dead letter page and its downloads."""
    downloads.install_dead_letters()

    @page(PATH)
    async def dead_letters() -> None:
        request = ui.context.client.request
        query = LetterQuery.read(dict(request.query_params) if request else {})
        principal = current_principal()
        page = _LetterPage(query)
        with frame("Dead letters", api_url=api_url, on_interval=None, on_refresh=page.reload):
            page.head()
            page.build(await load(lambda: tenants_for(principal)))
            await page.show(load)


class _LetterPage:
    """An open page; it reads on user actions only, never by itself."""

    def __init__(self, query: LetterQuery) -> None:
        self._query = query
        self._tenants: Mapping[TenantId, str] = {}
        self._services = services_for(current_principal())
        # The cursor of each page: the last dead letter of the previous page.
        self._pages: list[LetterId | None] = [None]
        self._last: LetterId | None = None
        self._built = False

    def head(self) -> None:
        """Build what needs no data."""
        with ui.element("div").classes("titlebar"):
            heading("Dead letters", 1)
            ui.label("Requests that failed permanently or crashed several workers").classes(
                "muted small"
            )

    def build(self, tenants: Mapping[TenantId, str]) -> None:
        """Build the page with a choice of these tenants."""
        self._tenants = tenants
        self._problem = ui.label("").classes("banner").props("role=alert")
        self._problem.set_visibility(False)
        self._groups = ErrorGroups()
        with ui.element("section").classes("card table-card"):
            LetterFilters(self._query, list(self._tenants.values()), on_change=self._narrow)
            self._actions = LetterActions(self._services, on_done=self.reload)
            self._table = LetterTable(
                self._tenants, on_choice=self._update_selection, on_inside=self._open_letter
            )
            self._empty = ui.label("").classes("empty muted")
            with ui.element("nav").classes("pager").props('aria-label="Pages of dead letters"'):
                self._newer = ui.button("Newer", on_click=self._back, color=None)
                self._range_label = ui.label("").classes("muted small")
                self._older = ui.button("Older", on_click=self._forward, color=None)
                for button in (self._newer, self._older):
                    button.props("flat no-caps")
        self._built = True

    async def reload(self) -> None:
        """Read and show the current page, once the page is built."""
        if self._built:
            await self.show(in_thread)

    async def show(self, run: Run) -> None:
        """Read with `run`, and show, the current page."""
        try:
            tenant, letter_filter = self._query.chosen_tenant(self._tenants), self._query.filter()
            after = self._pages[-1]
            letters, more, summary, groups = await run(
                lambda: self._read(tenant, letter_filter, after)
            )
        except LowtideError as error:
            self.complain(error.message)
            return
        self._problem.set_visibility(False)
        self._table.show(letters)
        self._groups.show(groups, self._query)
        self._last = None if not letters else LetterId(letters[-1].batch, letters[-1].line)
        self._actions.aim(tenant, self._query)
        self._update_selection()
        self._empty.set_visibility(not letters)
        self._empty.text = _empty_text(self._query)
        self._newer.set_enabled(len(self._pages) > 1)
        self._older.set_enabled(more)
        first = (len(self._pages) - 1) * PAGE_SIZE + 1
        self._range_label.text = ""
        if letters:
            last = first + len(letters) - 1
            self._range_label.text = f"{first:,} to {last:,} of {_total(summary)}"

    def _read(
        self, tenant: TenantId | None, letter_filter: LetterFilter, after: LetterId | None
    ) -> Page:
        """Return a page of letters, whether more follow, their summary, and the errors to choose from."""
        service = self._services.dead_letters
        letters, more = service.page(tenant, letter_filter, after=after, limit=PAGE_SIZE)
        summary = groups = service.summary(tenant, letter_filter)
        if letter_filter.error_code is not None:
            # The other errors stay in the list, so that one can be chosen instead.
            any_error = replace(letter_filter, error_code=None, error_message=None)
            groups = service.summary(tenant, any_error)
        return letters, more, summary, groups

    def complain(self, problem: str) -> None:
        """Show an error instead of dead letters."""
        self._problem.text = problem
        self._problem.set_visibility(True)
        self._table.show([])
        self._groups.show(LetterSummary(), self._query)
        self._empty.set_visibility(False)
        self._actions.rest()

    async def _narrow(self, query: LetterQuery) -> None:
        self._query, self._pages = query, [None]
        ui.navigate.history.replace(query.address(PATH))
        await self.reload()

    async def _forward(self) -> None:
        if self._last is not None:
            self._pages.append(self._last)
            await self.reload()

    async def _back(self) -> None:
        if len(self._pages) > 1:
            self._pages.pop()
            await self.reload()

    def _update_selection(self) -> None:
        self._actions.choose(self._table.chosen)

    async def _open_letter(self, letter: LetterId, tenant: TenantId) -> None:
        try:
            excerpts = await in_thread(
                lambda: read_excerpts(self._services.dead_letters.get(tenant, letter))
            )
        except LowtideError as error:
            ui.notify(error.message, type="negative")
            return
        show_letter(excerpts)


def _empty_text(query: LetterQuery) -> str:
    if query == LetterQuery(tenant=query.tenant):
        return "No open dead letters."
    return "No dead letters match these filters."
