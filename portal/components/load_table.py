"""What waits and runs by tenant and pool."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypedDict

from nicegui import ui

from portal.components.badges import BADGE_CELL, Badge, pool_of
from portal.formats import duration, number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from lowtide.domain.operations import TenantLoad


class LoadRow(TypedDict):
    """A tenant's lines in a pool, as the table shows them."""

    key: str
    tenant: str
    pool: Badge
    queued: str
    running: str
    oldest: str


_LABELS: Final = {
    "tenant": "Tenant",
    "pool": "Pool",
    "queued": "Queued",
    "running": "Running",
    "oldest": "Oldest waits",
}
_POOL: Final = BADGE_CELL.replace("badge.", "props.row.pool.")
_NARROW: Final = f"""
<div class="batch-item">
  <div class="batch-line"><span class="user ellipsis">{{{{ props.row.tenant }}}}</span>{_POOL}</div>
  <div class="batch-notes">
    <span>{{{{ props.row.queued }}}} queued · {{{{ props.row.running }}}} running</span>
    <span class="muted">oldest {{{{ props.row.oldest }}}}</span>
  </div>
</div>
"""
_NUMERIC: Final = ("queued", "running", "oldest")


class LoadTable:
    """Queues by tenant; it says so while nothing waits."""

    def __init__(self) -> None:
        self._rows: list[LoadRow] | None = None
        columns = [
            {
                "name": name,
                "label": label,
                "field": name,
                "align": "right" if name in _NUMERIC else "left",
            }
            for name, label in _LABELS.items()
        ]
        self._table = ui.table(rows=[], columns=columns, row_key="key").props(
            'flat hide-pagination :rows-per-page-options="[0]" :grid="Quasar.Screen.width < 700"'
        )
        self._table.add_slot("body-cell-pool", f'<q-td :props="props">{_POOL}</q-td>')
        self._table.add_slot("item", _NARROW)
        self._table.add_slot(
            "no-data", '<span class="muted">Nothing waits and nothing runs.</span>'
        )

    def show(self, loads: Sequence[TenantLoad], now: datetime) -> None:
        """Show these loads; nothing is sent while nothing changes."""
        rows = [row_of(load, now) for load in loads]
        if rows != self._rows:
            self._rows = rows
            self._table.rows = [dict(row) for row in rows]


def row_of(load: TenantLoad, now: datetime) -> LoadRow:
    """Return how a load is shown."""
    return LoadRow(
        key=f"{load.tenant} {load.pool}",
        tenant=load.name,
        pool=pool_of(load.pool),
        queued=number(load.queued),
        running=number(load.running),
        oldest="—" if load.oldest is None else duration(max(now - load.oldest, timedelta())),
    )
