"""A pool with its replicas, and the button that pauses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import ui

from portal.components.badges import pool_badge
from portal.formats import number
from portal.theme import Tone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lowtide.domain.operations import Operations
    from lowtide.domain.pools import Pool


class PoolControl:
    """One pool; only who may act on the whole installation has a button."""

    def __init__(
        self, pool: Pool, *, may_act: bool, on_pause: Callable[[Pool, bool], Awaitable[None]]
    ) -> None:
        self._pool = pool
        self._paused = False
        with ui.element("div").classes("pool"):
            with ui.element("div").classes("pool-head"):
                with ui.element("span").classes("badges"):
                    pool_badge(pool)
                    self._state = ui.label("").classes("badge").mark(f"{pool} state")
                self._button = self._add_button(on_pause) if may_act else None
            self._figures = ui.label("")
        self._show_state(paused=False)

    def _add_button(self, on_pause: Callable[[Pool, bool], Awaitable[None]]) -> ui.button:
        button = ui.button("", on_click=lambda: on_pause(self._pool, not self._paused), color=None)
        return button.props("outline dense no-caps padding='4px 12px'")

    def show(self, reading: Operations, desired: int) -> None:
        """Show how the pool stands."""
        pool = self._pool
        live = reading.workers.get(pool, 0)
        self._figures.text = (
            f"{number(reading.queued(pool))} queued · {number(reading.running(pool))} running · "
            f"{number(live)} live of {number(desired)} desired"
        )
        paused = reading.pause(pool) is not None
        if paused != self._paused:
            self._show_state(paused=paused)

    def _show_state(self, *, paused: bool) -> None:
        self._paused = paused
        tone, other = (Tone.WARN, Tone.GOOD) if paused else (Tone.GOOD, Tone.WARN)
        self._state.text = "Paused" if paused else "Open"
        self._state.classes(remove=f"badge-{other}", add=f"badge-{tone}")
        if self._button is not None:
            self._button.text = f"Resume {self._pool}" if paused else f"Pause {self._pool} …"
