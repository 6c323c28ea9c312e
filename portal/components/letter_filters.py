"""The filters above dead letters."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nicegui import ui

from portal.letter_query import STATES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from portal.letter_query import LetterQuery


class LetterFilters:
    """Batch, error code, state, and the tenant where there are several."""

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
            batch = ui.input("Batch id", value=query.batch).props("data-search clearable")
            code = ui.input("Error code", value=query.code).props("clearable")
            state = ui.select(
                dict(STATES),
                value=query.state if query.state in STATES else None,
                label="State",
                on_change=lambda event: self._change(state=event.value or ""),
            )
            chosen = [batch, code, state]
            if len(tenants) > 1:
                chosen.append(
                    ui.select(
                        list(tenants),
                        value=query.tenant if query.tenant in tenants else tenants[0],
                        label="Tenant",
                        on_change=lambda event: self._change(tenant=event.value),
                    )
                )
        for each in chosen:
            each.props("dense outlined")
        batch.on_value_change(lambda event: self._change(batch=(event.value or "").strip()))
        code.on_value_change(lambda event: self._change(code=(event.value or "").strip()))
        for box in (batch, code):
            box.props("debounce=400")

    async def _change(self, **changes: str) -> None:
        changed = replace(self._query, **changes)
        if changed != self._query:
            self._query = changed
            await self._on_change(changed)
