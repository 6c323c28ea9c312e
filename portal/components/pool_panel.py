"""What waits and what runs in each pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.domain.pools import Pool
from portal.components.badges import POOL_TONES, pool_badge
from portal.components.headings import heading
from portal.formats import counted, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.domain.overview import PoolLoad


class PoolPanel:
    """Queue depth by pool; the bars share one scale."""

    def __init__(self) -> None:
        with ui.element("section").classes("card section"):
            heading("Queue by pool")
            self._rows = {pool: _PoolRow(pool) for pool in Pool}

    def show(self, pools: Sequence[PoolLoad]) -> None:
        """Show new figures."""
        longest = max((load.queued + load.running for load in pools), default=0)
        for load in pools:
            self._rows[load.pool].show(load, longest)


class _PoolRow:
    def __init__(self, pool: Pool) -> None:
        with ui.element("div").classes("pool"):
            with ui.element("div").classes("pool-head"):
                pool_badge(pool)
                self._workers = ui.label("").classes("muted small")
            with ui.element("div").classes("bar").props("aria-hidden=true"):
                self._running = ui.element("div").classes("fill-info")
                self._queued = ui.element("div").classes(f"fill-{POOL_TONES[pool]}")
            self._figures = ui.label("—").mark(f"{pool} figures")

    def show(self, load: PoolLoad, longest: int) -> None:
        self._workers.text = counted(load.workers, "live worker")
        self._figures.text = f"{number(load.queued)} queued · {number(load.running)} running"
        for bar, value in ((self._running, load.running), (self._queued, load.queued)):
            bar.style(f"width: {value / longest:.1%}" if longest else "width: 0")
