"""A table of batches, shown as cards on narrow screens; every row opens its batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypedDict

from nicegui import ui

from lowtide.batches.model import FINAL_STATUSES, BatchStatus, RequestStatus, SlaState
from lowtide.batches.views import BatchOrder
from lowtide.core.ids import format_batch_id
from portal.components.basics import (
    BADGE_CELL,
    ORIGIN_CELL,
    OUTCOME_TONES,
    Badge,
    copy,
    sla_of,
    status_of_batch,
)
from portal.formats import absolute, ago, duration, hint, money, number, rough
from portal.services import known_cells

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from lowtide.batches.model import Batch
    from lowtide.core.ids import TenantId
    from portal.theme import Tone


class Part(TypedDict):
    """A part of a progress bar."""

    tone: Tone
    width: str


class BatchRow(TypedDict):
    """A batch as a table row."""

    id: str
    short: str
    origin: str
    tenant: str
    user: str
    model: str
    status: Badge
    done: str
    rest: str
    failed: bool
    outcomes: str
    parts: list[Part]
    percent: int
    sla: Badge
    due: str
    due_at: str
    time: str
    time_at: str
    cost: str
    age: str
    created_at: str


_LABELS: Final = {
    "id": "Batch",
    "tenant": "Tenant",
    "user": "User",
    "model": "Model",
    "status": "Status",
    "progress": "Progress",
    "sla": "SLA",
    "time": "Duration or ETA",
    "cost": "Cost",
    "age": "Age",
}
_NUMERIC: Final = ("time", "cost", "age")
SORTS: Final[Mapping[str, tuple[BatchOrder, ...]]] = {
    "status": (BatchOrder.ACTIVE,),
    "sla": (BatchOrder.DEADLINE,),
    "age": (BatchOrder.NEWEST, BatchOrder.OLDEST),
}
"""The orders that a click on a column's heading chooses in turn."""

_COPY: Final = (
    '<q-btn class="copy" flat dense size="sm" icon="content_copy" title="Copy id" '
    ':aria-label="`Copy id ${props.row.id}`" '
    "@click=\"() => $parent.$emit('copy', props.row.id)\" />"
)
_ID: Final = (
    '<a class="cell mono small link" :href="`/batches/${props.row.id}`" :title="props.row.id" '
    ':aria-label="`Batch ${props.row.id}`">{{ props.row.short }}</a>'
)
_MODEL: Final = '<span class="ellipsis muted" :title="props.row.model">{{ props.row.model }}</span>'
_USER: Final = '<span class="ellipsis" :title="props.row.user">{{ props.row.user }}</span>'
_TENANT: Final = '<span class="ellipsis" :title="props.row.tenant">{{ props.row.tenant }}</span>'
_STATUS: Final = BADGE_CELL.replace("badge.", "props.row.status.")
_SLA: Final = (
    '<span class="sla" :title="props.row.due_at">'
    + BADGE_CELL.replace("badge.", "props.row.sla.")
    + '<span class="muted small">{{ props.row.due }}</span></span>'
)
_PROGRESS: Final = """
<span class="progress" :title="props.row.outcomes">
  <span class="progress-text small">
    <span>{{ props.row.done }}</span>
    <span class="ellipsis" :class="props.row.failed ? 'failures' : 'muted'">{{ props.row.rest }}</span>
  </span>
  <span class="bar" role="progressbar" aria-valuemin="0" aria-valuemax="100"
    :aria-valuenow="props.row.percent" :aria-label="`Requests done, batch of ${props.row.user}`">
    <span v-for="part in props.row.parts" :key="part.tone" :class="`fill-${part.tone}`"
      :style="{ width: part.width }"></span>
  </span>
</span>
"""
_TIME: Final = '<span class="nowrap" :title="props.row.time_at">{{ props.row.time }}</span>'
_COST: Final = '<span class="nowrap">{{ props.row.cost }}</span>'
_AGE: Final = '<span class="nowrap" :title="props.row.created_at">{{ props.row.age }}</span>'
_CELLS: Final = {
    "tenant": _TENANT,
    "user": _USER,
    "model": _MODEL,
    "status": _STATUS,
    "progress": _PROGRESS,
    "sla": _SLA,
    "time": _TIME,
    "cost": _COST,
    "age": _AGE,
}
# A link in every cell, so that the whole row opens the batch, in a new tab too; a row has one stop
# for the keyboard.
_OPENING_CELL: Final = (
    '<q-td :props="props"><a class="cell" tabindex="-1" :href="`/batches/${props.row.id}`">'
    "CELL</a></q-td>"
)
_ID_CELL: Final = f'<q-td :props="props"><div class="cells">{_ID}{_COPY}{ORIGIN_CELL}</div></q-td>'
_HEADING: Final = """
<q-th :props="props" :aria-sort="props.col.sorted || undefined">
  <button type="button" class="sorting" :title="props.col.hint"
    @click="() => $parent.$emit('sort', props.col.name)">{{ props.col.label }}
    <q-icon aria-hidden="true" :name="props.col.icon" /></button>
</q-th>
"""
_NARROW: Final = f"""
<div class="batch-item opens">CHOOSE
  <div class="batch-line"><a class="user ellipsis link" :href="`/batches/${{props.row.id}}`"
    :aria-label="`Batch ${{props.row.id}} of ${{props.row.user}}`">
    {{{{ [props.row.tenant, props.row.user].filter(Boolean).join(" / ") }}}}</a>
    <span class="ellipsis muted small model">{{{{ props.row.model }}}}</span>
    <span class="muted small nowrap">{{{{ props.row.age }}}}</span></div>
  <div class="batch-line">{_STATUS}{_SLA}</div>
  {_PROGRESS}
  <div class="batch-line small"><span class="mono muted nowrap">{{{{ props.row.short }}}}{_COPY}</span>{ORIGIN_CELL}
    {_TIME}{_COST}</div>
</div>
"""
_CHOOSE_ALL: Final = (
    '<q-checkbox v-model="props.selected" dense aria-label="Select all on this page" />'
)
_CHOOSE: Final = (
    '<q-checkbox v-model="props.selected" dense '
    ':aria-label="`Select the batch of ${props.row.user}, created ${props.row.created_at}`" />'
)


class BatchTable:
    """Batches in the given order.

    `on_choice` makes them selectable and receives the ids; `on_sort` receives the order that a
    click on a column's heading asks for.
    """

    def __init__(
        self,
        on_choice: Callable[[Sequence[str]], None] | None = None,
        on_sort: Callable[[BatchOrder], object] | None = None,
        *,
        with_tenants: bool,
    ) -> None:
        self._rows: list[BatchRow] = []
        self._order = BatchOrder.NEWEST
        self._names = [name for name in _LABELS if with_tenants or name != "tenant"]
        self._table = ui.table(
            rows=[], columns=columns_of(self._names, self._order), row_key="id"
        ).props(
            'flat hide-pagination :rows-per-page-options="[0]" :grid="Quasar.Screen.width < 1240"'
        )
        self._table.classes("batch-table")
        self._table.add_slot("body-cell-id", _ID_CELL)
        for name, cell in _CELLS.items():
            self._table.add_slot(f"body-cell-{name}", _OPENING_CELL.replace("CELL", cell))
        self._table.on("copy", lambda event: copy(str(event.args)))
        if on_sort is not None:
            for name in SORTS:
                self._table.add_slot(f"header-cell-{name}", _HEADING)
            self._table.on("sort", lambda event: on_sort(following(self._order, str(event.args))))
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

    def show(
        self,
        batches: Sequence[Batch],
        now: datetime,
        tenants: Mapping[TenantId, str],
        order: BatchOrder = BatchOrder.NEWEST,
    ) -> None:
        """Show these batches; nothing is sent while they stay the same."""
        names = known_cells().names
        rows = [
            row_of(batch, now, tenants.get(batch.tenant, ""), names.origin(batch.id))
            for batch in batches
        ]
        if rows != self._rows:
            self._rows = rows
            self._table.rows = [dict(row) for row in rows]
        if order is not self._order:
            self._order = order
            self._table.columns = columns_of(self._names, order)


def following(order: BatchOrder, column: str) -> BatchOrder:
    """Return the order that a click on a column's heading chooses; after the last, newest first."""
    orders = SORTS.get(column, ())
    place = orders.index(order) + 1 if order in orders else 0
    return orders[place] if place < len(orders) else BatchOrder.NEWEST


_DIRECTIONS: Final = {
    BatchOrder.ACTIVE: ("other", "arrow_downward"),
    BatchOrder.DEADLINE: ("ascending", "arrow_upward"),
    BatchOrder.NEWEST: ("ascending", "arrow_upward"),
    BatchOrder.OLDEST: ("descending", "arrow_downward"),
}
_HINTS: Final = {
    "status": "Active batches first",
    "sla": "Active batches with the earliest deadline first",
    "age": "Newest or oldest first",
}


def columns_of(names: Sequence[str], order: BatchOrder) -> list[dict[str, str]]:
    """Return the table's columns; those in SORTS state whether they are the order."""
    columns = []
    for name in names:
        sorted_, icon = "", "unfold_more"
        if order in SORTS.get(name, ()):
            sorted_, icon = _DIRECTIONS[order]
        columns.append(
            {
                "name": name,
                "label": _LABELS[name],
                "field": name,
                "align": "right" if name in _NUMERIC else "left",
                "sorted": sorted_,
                "icon": icon,
                "hint": _HINTS.get(name, ""),
            }
        )
    return columns


def row_of(batch: Batch, now: datetime, tenant: str, origin: str = "") -> BatchRow:
    """Return the table row of a batch; `origin` is the cell that it was evacuated from."""
    id_, outcomes = format_batch_id(batch.id), batch.outcomes
    done = outcomes.completed + outcomes.failed
    percent = 100 * done // batch.total if batch.total else 0
    troubles = [
        f"{number(outcomes.of(status))} {status.lower()}"
        for status in (RequestStatus.FAILED, RequestStatus.EXPIRED, RequestStatus.CANCELLED)
        if outcomes.of(status)
    ]
    return BatchRow(
        id=id_,
        short=f"{id_[:6]}…{id_[-8:]}",
        origin=origin,
        tenant=tenant,
        user=batch.user,
        model=batch.model or ", ".join(batch.fleets) or batch.endpoint,
        status=status_of_batch(batch.status),
        done=_done(done, batch),
        rest=", ".join(troubles) or (f"{percent}%" if batch.total else ""),
        failed=outcomes.failed > 0,
        outcomes=", ".join(
            f"{number(outcomes.of(status))} {status.lower()}"
            for status in RequestStatus
            if outcomes.of(status)
        ),
        parts=parts_of(batch),
        percent=percent,
        sla=sla_of(batch.sla_state),
        due="" if batch.status in FINAL_STATUSES else _due_first(batch, now),
        due_at=", ".join(filter(None, (f"Deadline {hint(batch.deadline)}", _due(batch, now)))),
        time=_time(batch, now),
        time_at=_time_hint(batch),
        cost=cost_text(batch),
        age=ago(batch.created_at, now).removesuffix(" ago"),
        created_at=hint(batch.created_at),
    )


def parts_of(batch: Batch) -> list[Part]:
    """Return the parts of the batch's progress bar, one per outcome."""
    return [
        Part(tone=tone, width=f"{batch.outcomes.of(status) / batch.total:.2%}")
        for status, tone in OUTCOME_TONES.items()
        if batch.total and batch.outcomes.of(status)
    ]


def _done(done: int, batch: Batch) -> str:
    if batch.total:
        return f"{number(done)} / {number(batch.total)}"
    return "not counted yet" if batch.ended_at is None else "not counted"


def _due_first(batch: Batch, now: datetime) -> str:
    """Return what orders the work of an active batch: its deadline, and its priority if it has one."""
    priority = f"priority {batch.priority:+d}" if batch.priority else ""
    return ", ".join(filter(None, (_due(batch, now), priority)))


def _due(batch: Batch, now: datetime) -> str:
    if batch.sla_state is SlaState.NOT_APPLICABLE:
        return ""
    if batch.status is BatchStatus.EXPIRED:
        return "deadline missed"
    if batch.ended_at is not None:
        margin = batch.deadline - batch.ended_at
        late = batch.sla_state is SlaState.MISSED
        return f"{duration(-margin)} late" if late else f"{duration(margin)} to spare"
    remaining = batch.deadline - now
    late = remaining.total_seconds() <= 0
    return f"{rough(-remaining)} late" if late else f"{rough(remaining)} left"


def _time(batch: Batch, now: datetime) -> str:
    if batch.ended_at is not None:
        return duration(batch.ended_at - batch.created_at)
    return "—" if batch.eta is None else f"in {rough(batch.eta - now)}"


def _time_hint(batch: Batch) -> str:
    if batch.ended_at is not None:
        return f"Ended {hint(batch.ended_at)}"
    if batch.eta is None:
        return "No estimate"
    return f"Expected to finish at {absolute(batch.eta)}"


def cost_text(batch: Batch) -> str:
    """Return the cost of a batch's results so far; a dash if there are none."""
    cost = batch.cost
    return f"{money(cost.total)} {cost.currency}" if cost.all_dedicated else "—"
