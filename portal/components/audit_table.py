"""What was done, by whom."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypedDict
from urllib.parse import urlencode

from nicegui import ui

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.domain.audit import AuditEntry

_BATCH: Final = re.compile(r"batch_[0-9a-f]{32}")


class AuditRow(TypedDict):
    """An entry as the table shows it."""

    id: int
    at: str
    tenant: str
    actor: str
    by_actor: str
    action: str
    subject: str
    batch: str


_LABELS: Final = {
    "at": "When",
    "actor": "Who",
    "action": "What",
    "subject": "About",
    "tenant": "Tenant",
}
_CELLS: Final = {
    "at": '<span class="nowrap" :title="props.row.at">{{ new Date(props.row.at).toLocaleString() }}</span>',
    "actor": '<a class="link break" :href="props.row.by_actor">{{ props.row.actor }}</a>',
    "action": '<span class="mono small nowrap">{{ props.row.action }}</span>',
    "subject": '<span class="break small">{{ props.row.subject }}</span>'
    '<a v-if="props.row.batch" class="link small" :href="props.row.batch">See the batch</a>',
    "tenant": '<span class="user ellipsis" :title="props.row.tenant">{{ props.row.tenant }}</span>',
}
_NARROW: Final = f"""
<div class="batch-item">
  <div class="batch-line">{_CELLS["action"]}<span class="muted small">{_CELLS["at"]}</span></div>
  {_CELLS["subject"]}
  <div class="batch-line">{_CELLS["actor"]}{_CELLS["tenant"]}</div>
</div>
"""


class AuditTable:
    """Entries as they come."""

    def __init__(self) -> None:
        self._rows: list[AuditRow] | None = None
        columns = [
            {"name": name, "label": label, "field": name, "align": "left"}
            for name, label in _LABELS.items()
        ]
        self._table = ui.table(rows=[], columns=columns, row_key="id").props(
            'flat hide-pagination :rows-per-page-options="[0]" :grid="Quasar.Screen.width < 1000"'
        )
        for name, cell in _CELLS.items():
            self._table.add_slot(
                f"body-cell-{name}", f'<q-td :props="props"><div class="stack">{cell}</div></q-td>'
            )
        self._table.add_slot("item", _NARROW)

    def show(self, entries: Sequence[AuditEntry]) -> None:
        """Show these entries; nothing is sent while nothing changes."""
        rows = [row_of(entry) for entry in entries]
        if rows != self._rows:
            self._rows = rows
            self._table.rows = [dict(row) for row in rows]
        self._table.set_visibility(bool(rows))


def row_of(entry: AuditEntry) -> AuditRow:
    """Return how an entry is shown."""
    batch = _BATCH.search(entry.subject)
    return AuditRow(
        id=entry.id,
        at=entry.at.isoformat(),
        tenant=entry.tenant or "all tenants",
        actor=entry.actor,
        by_actor=f"/audit?{urlencode({'actor': entry.actor})}",
        action=entry.action,
        subject=entry.subject,
        batch="" if batch is None else f"/batches/{batch[0]}",
    )
