"""A table of batches, shown as cards on narrow screens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypedDict

from nicegui import ui

from lowtide.batches.model import BatchStatus, SlaState
from lowtide.core.ids import format_batch_id
from portal.components.basics import BADGE_CELL, Badge, pool_of, sla_of, status_of_batch
from portal.formats import absolute, ago, duration, number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from lowtide.batches.model import Batch


class BatchRow(TypedDict):
    """A batch as a table row."""

    id: str
    created: str
    created_at: str
    user: str
    model: str
    status: Badge
    exact: str
    pools: list[Badge]
    sla: Badge
    due: str
    due_at: str
    done: str
    share: str
    failures: str
    completed_width: str
    failed_width: str
    percent: int
    interruptions: int
    escalations: int
    notes: str


_LABELS: Final = {
    "created": "Created",
    "user": "User",
    "status": "Status",
    "pools": "Pool",
    "sla": "SLA",
    "requests": "Requests",
    "interruptions": "Interrupted",
    "escalations": "Escalated",
}
_NUMERIC: Final = ("interruptions", "escalations")

_ONE_BADGE: Final = BADGE_CELL.replace("badge.", "props.row.{field}.")
_POOLS: Final = (
    '<span class="badges">'
    + BADGE_CELL.replace("<span ", '<span v-for="badge in props.row.pools" :key="badge.text" ')
    + '<span v-if="!props.row.pools.length" class="muted">—</span></span>'
)
_CREATED: Final = '<span :title="props.row.created_at">{{ props.row.created }}</span>'
_ID: Final = '<span class="mono muted small" :title="props.row.id">{{ props.row.id.slice(0, 14) }}…{{ props.row.id.slice(-6) }}</span>'
_USER: Final = (
    '<a class="user ellipsis link" :href="`/batches/${props.row.id}`" :title="props.row.user">'
    "{{ props.row.user }}</a>"
)
_MODEL: Final = (
    '<span class="user ellipsis muted small" :title="props.row.model">{{ props.row.model }}</span>'
)
_EXACT: Final = '<span class="muted small">{{ props.row.exact }}</span>'
_DUE: Final = '<span class="muted small" :title="props.row.due_at">{{ props.row.due }}</span>'
_PROGRESS: Final = """
<div class="progress">
  <div class="progress-text">
    <span>{{ props.row.done }}</span>
    <span><span v-if="props.row.failures" class="failures">{{ props.row.failures }}</span>
    <span v-else class="muted">{{ props.row.share }}</span></span>
  </div>
  <div class="bar" role="progressbar" aria-valuemin="0" aria-valuemax="100"
    :aria-valuenow="props.row.percent" :aria-label="`Requests done, batch of ${props.row.user}`">
    <div class="fill-good" :style="{ width: props.row.completed_width }"></div>
    <div class="fill-bad" :style="{ width: props.row.failed_width }"></div>
  </div>
</div>
"""
_STATUS: Final = _ONE_BADGE.replace("{field}", "status")
_SLA: Final = _ONE_BADGE.replace("{field}", "sla")
_CELLS: Final = {
    "created": _CREATED + _ID,
    "user": _USER + _MODEL,
    "status": _STATUS + _EXACT,
    "pools": _POOLS,
    "sla": _SLA + _DUE,
    "requests": _PROGRESS,
    **{
        name: f'<span :class="{{ zero: !props.row.{name} }}">'
        f'{{{{ props.row.{name}.toLocaleString("en-US") }}}}</span>'
        for name in _NUMERIC
    },
}
_NARROW: Final = f"""
<div class="batch-item">CHOOSE
  <div class="batch-line">{_USER}<span class="muted small nowrap">{_CREATED}</span></div>
  <div class="batch-line"><span class="badges">{_STATUS}{_POOLS}</span>{_SLA}</div>
  {_PROGRESS}
  <div class="batch-notes muted small">
    <span>{{{{ props.row.exact }}}}<span v-if="props.row.due"> · {{{{ props.row.due }}}}</span></span>
    <span>{{{{ props.row.notes }}}}</span>
  </div>
</div>
"""


_CHOOSE_ALL: Final = (
    '<q-checkbox v-model="props.selected" dense aria-label="Select all on this page" />'
)
_CHOOSE: Final = (
    '<q-checkbox v-model="props.selected" dense '
    ':aria-label="`Select the batch of ${props.row.user}, created ${props.row.created}`" />'
)


class BatchTable:
    """Batches in the given order; `on_choice` makes them selectable and receives the ids."""

    def __init__(self, on_choice: Callable[[Sequence[str]], None] | None = None) -> None:
        self._rows: list[BatchRow] = []
        columns = [
            {
                "name": name,
                "label": label,
                "field": name,
                "align": "right" if name in _NUMERIC else "left",
            }
            for name, label in _LABELS.items()
        ]
        self._table = ui.table(rows=[], columns=columns, row_key="id").props(
            'flat hide-pagination :rows-per-page-options="[0]" :grid="Quasar.Screen.width < 1240"'
        )
        for name, cell in _CELLS.items():
            self._table.add_slot(
                f"body-cell-{name}",
                f'<q-td :props="props"><div class="{_layout(name)}">{cell}</div></q-td>',
            )
        choose = ""
        if on_choice is not None:
            choose = f'<div class="batch-choice">{_CHOOSE}</div>'
            self._table.selection = "multiple"
            self._table.add_slot("header-selection", _CHOOSE_ALL)
            self._table.add_slot("body-selection", _CHOOSE)
            self._table.on_select(lambda _: on_choice([row["id"] for row in self._table.selected]))
        self._table.add_slot("item", _NARROW.replace("CHOOSE", choose))

    def set_visibility(self, visible: bool) -> None:
        """Show or hide the table."""
        self._table.set_visibility(visible)

    def choose_none(self) -> None:
        """Clear the selection."""
        self._table.selected = []

    def show(self, batches: Sequence[Batch], now: datetime) -> None:
        """Show these batches; nothing is sent while they stay the same."""
        rows = [row_of(batch, now) for batch in batches]
        if rows != self._rows:
            self._rows = rows
            self._table.rows = [dict(row) for row in rows]


def _layout(name: str) -> str:
    return "figure" if name in _NUMERIC else "stack"


def row_of(batch: Batch, now: datetime) -> BatchRow:
    """Return the table row of a batch."""
    done = batch.completed + batch.failed
    percent = 100 * done // batch.total if batch.total else 0
    return BatchRow(
        id=format_batch_id(batch.id),
        created=ago(batch.created_at, now),
        created_at=absolute(batch.created_at),
        user=batch.user,
        model=batch.model or batch.endpoint,
        status=status_of_batch(batch.status),
        exact=_exact(batch),
        pools=[pool_of(pool) for pool in batch.pools],
        sla=sla_of(batch.sla_state),
        due=_due(batch, now),
        due_at=f"Deadline {absolute(batch.deadline)}",
        done=_done(done, batch),
        share=f"{percent}%" if batch.total else "",
        failures=f"{number(batch.failed)} failed" if batch.failed else "",
        completed_width=_width(batch.completed, batch.total),
        failed_width=_width(batch.failed, batch.total),
        percent=percent,
        interruptions=batch.interruptions,
        escalations=batch.escalations,
        notes=_notes(batch),
    )


def _done(done: int, batch: Batch) -> str:
    if batch.total:
        return f"{number(done)} / {number(batch.total)}"
    return "not counted yet" if batch.ended_at is None else "not counted"


def _exact(batch: Batch) -> str:
    if batch.status is BatchStatus.COMPLETED and batch.total and batch.failed == batch.total:
        return "completed, all failed"
    return batch.status.value.replace("_", " ")


def _notes(batch: Batch) -> str:
    counts = ((batch.interruptions, "interrupted"), (batch.escalations, "escalated"))
    return " · ".join(f"{number(count)} {label}" for count, label in counts if count)


def _due(batch: Batch, now: datetime) -> str:
    if batch.status is BatchStatus.EXPIRED:
        return "deadline missed"
    if batch.status in (BatchStatus.FAILED, BatchStatus.CANCELLED):
        return ""
    if batch.ended_at is not None:
        margin = batch.deadline - batch.ended_at
        late = batch.sla_state is SlaState.MISSED
        return f"{duration(-margin)} late" if late else f"{duration(margin)} to spare"
    remaining = batch.deadline - now
    return (
        f"{duration(remaining)} left"
        if remaining.total_seconds() > 0
        else f"{duration(-remaining)} late"
    )


def _width(part: int, total: int) -> str:
    return f"{part / total:.2%}" if total else "0"
