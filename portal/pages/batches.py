"""The list of batches: filters, paging and bulk cancellation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from fastapi import Request  # noqa: TC002 - read at run time, to know what the page takes
from nicegui import ui

from lowtide.batches.model import BatchStatus, SlaState
from lowtide.batches.views import mark_of
from lowtide.core.errors import LowtideError
from lowtide.core.ids import parse_batch_id
from portal.components.basics import empty_state
from portal.components.batch_actions import BatchToolbar, cancel_batches
from portal.components.batch_table import BatchTable
from portal.components.frame import page
from portal.listing import Pager
from portal.live import Live
from portal.pages.landing import FIRST_COMMAND
from portal.polling import Readings, Subject
from portal.queries import ORDERS, BatchQuery, clean
from portal.services import in_thread, services_for
from portal.sessions import current_visitor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from lowtide.batches.model import Batch
    from lowtide.core.ids import BatchId, TenantId
    from lowtide.tenants.sign_in import Principal
    from portal.polling import Poller


class BatchFilters:
    """Filters by status, SLA, user and tenant, and the order; a change leads to the first page."""

    def __init__(
        self,
        query: BatchQuery,
        tenants: Sequence[str],
        *,
        on_change: Callable[[BatchQuery], Awaitable[None]],
    ) -> None:
        self._query = query
        self._on_change = on_change
        with ui.element("div").classes("filters"):
            user = ui.input("User", value=query.user, on_change=self._handler(_with_user))
            user.props("dense outlined clearable debounce=350 data-search maxlength=256")
            self._select(
                "Status",
                {status: status.value.replace("_", " ").capitalize() for status in BatchStatus},
                list(query.statuses),
                self._handler(lambda query, chosen: replace(query, statuses=tuple(chosen or ()))),
                multiple=True,
            )
            self._select(
                "SLA",
                {state: state.value for state in SlaState},
                list(query.sla),
                self._handler(lambda query, chosen: replace(query, sla=tuple(chosen or ()))),
                multiple=True,
            )
            if len(tenants) > 1:
                names = {"": "All tenants", **{name: name for name in tenants}}
                tenant = query.tenant if query.tenant in names else ""
                self._select(
                    "Tenant",
                    names,
                    tenant,
                    self._handler(lambda query, name: replace(query, tenant=name)),
                )
            self._select(
                "Sort",
                dict(ORDERS),
                query.order,
                self._handler(lambda query, order: replace(query, order=order)),
            )

    def _select(
        self,
        label: str,
        options: dict[Any, str],
        value: object,
        change: Callable[[Any], Awaitable[None]],
        *,
        multiple: bool = False,
    ) -> None:
        ui.select(options, value=value, label=label, multiple=multiple, on_change=change).props(
            "dense outlined options-dense" + (" clearable" if multiple else "")
        )

    def _handler(
        self, change: Callable[[BatchQuery, Any], BatchQuery]
    ) -> Callable[[Any], Awaitable[None]]:
        async def handle(event: Any) -> None:
            self._query = change(self._query.at_first_page(), event.value)
            await self._on_change(self._query)

        return handle


def _with_user(query: BatchQuery, text: str | None) -> BatchQuery:
    return replace(query, user=clean(text or ""))


PAGE_SIZE: Final = 50


def install(poller: Poller, readings: Readings, *, api_url: str) -> None:
    """Serve the list of batches."""

    @page("/batches")
    async def batches(request: Request) -> None:
        query = BatchQuery.read(request.query_params)
        await BatchesPage(poller, readings, query).open(api_url)


@dataclass(frozen=True, slots=True)
class Listed:
    """One page of batches, `more` if others follow, and the `count` of all, up to COUNTED + 1."""

    batches: Sequence[Batch]
    more: bool
    count: int


class BatchesPage:
    """An open list of batches."""

    def __init__(self, poller: Poller, readings: Readings, query: BatchQuery) -> None:
        self._readings = readings
        self._live = Live(poller)
        self._query = query
        self._principal: Principal = current_visitor()
        self._services = services_for(self._principal)
        self._follower = ui.context.client.id
        self._tenants: Mapping[TenantId, str] = {}
        self._previous: list[BatchQuery] = []
        self._selection: list[BatchId] = []
        self._subject: Subject[Listed]

    async def open(self, api_url: str) -> None:
        """Build the page and keep it current until it is closed."""
        problem = ""
        try:
            self._tenants = await in_thread(lambda: self._services.lists.tenants(self._principal))
        except LowtideError as error:
            problem = error.message
        with self._live.page("Batches", api_url=api_url):
            self._build()
        if problem:
            self._show_problem(problem)
            return
        ui.context.client.on_delete(lambda: self._readings.unfollow(self._follower))
        await self._read()
        self._live.keep(self._show, self._reread)

    def _build(self) -> None:
        self._problem = ui.label("").classes("banner").props("role=status")
        self._problem.set_visibility(False)
        with ui.element("section").classes("card table-card"):
            self._filters = BatchFilters(
                self._query, list(self._tenants.values()), on_change=self._narrow
            )
            self._toolbar = BatchToolbar(
                may_act=self._principal.may_act, on_cancel=self._cancel, on_clear=self._choose_none
            )
            self._table = BatchTable(self._choose if self._principal.may_act else None)
            with ui.element("div") as self._no_matches:
                ui.label("No batches match these filters.").classes("empty")
            self._empty = empty_state(
                "No batches yet", "Submit a JSONL file with one request per line:", FIRST_COMMAND
            )
            self._pager = Pager(on_first=self._first, on_back=self._back, on_next=self._next)

    async def _read(self) -> None:
        """Follow the query from now on, and read it once."""
        principal, query, lists = self._principal, self._query, self._services.lists

        def read() -> Listed:
            batch_filter = query.filter(self._tenants)
            batches, more = lists.page(
                principal, batch_filter, query.order, after=query.after, limit=PAGE_SIZE
            )
            return Listed(batches, more, lists.count(principal, batch_filter))

        key = ("batches", principal.tenant, query)
        subject = Subject(key, read)
        self._subject = self._readings.follow(self._follower, subject, lambda: self._live.paused)
        await in_thread(self._subject.look)

    def _reread(self) -> None:
        self._subject.look()

    def _show(self) -> None:
        reading = self._subject.reading
        self._show_problem("" if reading.problem is None else reading.problem.message)
        if (listed := reading.value) is None:
            return
        self._table.show(listed.batches, datetime.now(UTC))
        self._toolbar.show(listed.count, len(self._selection), len(listed.batches))
        has_batches, narrows = bool(listed.batches), self._query.narrows
        self._table.set_visibility(has_batches)
        self._no_matches.set_visibility(not has_batches and narrows)
        self._empty.set_visibility(not has_batches and not narrows)
        self._pager.show(first=self._query.after is None, more=listed.more)

    def _show_problem(self, problem: str) -> None:
        self._problem.text = problem
        self._problem.set_visibility(bool(problem))

    async def _navigate(self, query: BatchQuery) -> None:
        self._query = query
        ui.navigate.history.replace(query.address())
        self._choose_none()
        await self._read()
        self._show()

    async def _narrow(self, query: BatchQuery) -> None:
        self._previous.clear()
        await self._navigate(query)

    async def _first(self) -> None:
        self._previous.clear()
        await self._navigate(self._query.at_first_page())

    async def _back(self) -> None:
        await self._navigate(
            self._previous.pop() if self._previous else self._query.at_first_page()
        )

    async def _next(self) -> None:
        listed = self._subject.reading.value
        if listed is not None and listed.batches:
            self._previous.append(self._query)
            await self._navigate(replace(self._query, after=mark_of(listed.batches[-1])))

    def _choose(self, ids: Sequence[str]) -> None:
        self._selection = [batch for text in ids if (batch := parse_batch_id(text)) is not None]
        listed = self._subject.reading.value
        if listed is not None:
            self._toolbar.show(listed.count, len(self._selection), len(listed.batches))

    def _choose_none(self) -> None:
        self._selection = []
        self._table.choose_none()
        self._toolbar.choose_none()

    async def _cancel(self, *, everything: bool) -> None:
        selection = self._query.filter(self._tenants) if everything else self._selection
        if await cancel_batches(self._services.desk, selection):
            self._choose_none()
            await in_thread(self._subject.look)
            self._show()
