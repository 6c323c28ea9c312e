"""The controls above the list of batches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nicegui import ui

from lowtide.domain.statuses import BatchStatus, SlaState
from portal.batch_query import ORDERS, clean

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from portal.batch_query import BatchQuery


class BatchFilters:
    """Status, SLA, user, tenant and order; each change asks for the first page of something else."""

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
            user = ui.input("User", value=query.user, on_change=self._changer(_with_user))
            user.props("dense outlined clearable debounce=350 data-search maxlength=256")
            self._select(
                "Status",
                {status: status.value.replace("_", " ") for status in BatchStatus},
                list(query.statuses),
                self._changer(lambda query, chosen: replace(query, statuses=tuple(chosen or ()))),
                multiple=True,
            )
            self._select(
                "SLA",
                {state: state.value for state in SlaState},
                list(query.sla),
                self._changer(lambda query, chosen: replace(query, sla=tuple(chosen or ()))),
                multiple=True,
            )
            if len(tenants) > 1:
                names = {"": "All tenants", **{name: name for name in tenants}}
                known = query.tenant if query.tenant in names else ""
                self._select(
                    "Tenant",
                    names,
                    known,
                    self._changer(lambda query, name: replace(query, tenant=name)),
                )
            self._select(
                "Order",
                dict(ORDERS),
                query.order,
                self._changer(lambda query, order: replace(query, order=order)),
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

    def _changer(
        self, change: Callable[[BatchQuery, Any], BatchQuery]
    ) -> Callable[[Any], Awaitable[None]]:
        async def changed(event: Any) -> None:
            self._query = change(self._query.at_first_page(), event.value)
            await self._on_change(self._query)

        return changed


def _with_user(query: BatchQuery, text: str | None) -> BatchQuery:
    return replace(query, user=clean(text or ""))
