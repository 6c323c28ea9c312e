"""A page of a batch's requests; cards where the screen is narrow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypedDict

from nicegui import ui

from portal.components.badges import BADGE_CELL, Badge, pool_of, status_of
from portal.formats import counted
from portal.theme import Tone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from lowtide.domain.requests import RequestState


class LineRow(TypedDict):
    """A line as the table shows it; times are for the browser, which knows its time zone."""

    line: int
    custom_id: str
    status: Badge
    flags: list[Badge]
    attempts: int
    queued: str
    started: str
    finished: str
    error: str


_LABELS: Final = {
    "line": "Line",
    "custom_id": "Request",
    "status": "Status",
    "flags": "Pool",
    "attempts": "Attempts",
    "times": "When",
    "error": "Error",
    "more": "Inside",
}
_STATUS: Final = BADGE_CELL.replace("badge.", "props.row.status.")
_FLAGS: Final = (
    '<span class="badges">'
    + BADGE_CELL.replace("<span ", '<span v-for="badge in props.row.flags" :key="badge.text" ')
    + "</span>"
)
_NAME: Final = (
    '<span class="user ellipsis" :title="props.row.custom_id">{{ props.row.custom_id }}</span>'
)
_TIMES: Final = "".join(
    f'<span v-if="props.row.{name}" class="small nowrap muted" :title="props.row.{name}">{name} '
    f"{{{{ new Date(props.row.{name}).toLocaleTimeString() }}}}</span>"
    for name in ("queued", "started", "finished")
)
_ERROR: Final = '<span class="small clamp" :title="props.row.error">{{ props.row.error }}</span>'
_MORE: Final = (
    '<q-btn flat dense no-caps label="Look inside" '
    ':aria-label="`Look inside line ${props.row.line}`" '
    "@click=\"() => $parent.$emit('inside', props.row.line)\" />"
)
_CELLS: Final = {
    "line": '{{ props.row.line.toLocaleString("en-US") }}',
    "custom_id": _NAME,
    "status": _STATUS,
    "flags": _FLAGS,
    "attempts": "{{ props.row.attempts }}",
    "times": _TIMES,
    "error": _ERROR,
    "more": _MORE,
}
_NARROW: Final = f"""
<div class="line-item">
  <div class="batch-line"><span class="muted small">line {{{{ props.row.line }}}}</span>{_MORE}</div>
  {_NAME}
  <div class="batch-line">{_STATUS}{_FLAGS}</div>
  {_TIMES}{_ERROR}
</div>
"""


class LineTable:
    """Lines in input order; `on_inside` is told which one to look into."""

    def __init__(self, on_inside: Callable[[int], Awaitable[None]]) -> None:
        columns = [
            {"name": name, "label": label, "field": name, "align": "left"}
            for name, label in _LABELS.items()
        ]
        self._rows: list[LineRow] = []
        self._table = ui.table(rows=[], columns=columns, row_key="line").props(
            'flat hide-pagination :rows-per-page-options="[0]" :grid="Quasar.Screen.width < 1000"'
        )
        for name, cell in _CELLS.items():
            self._table.add_slot(
                f"body-cell-{name}", f'<q-td :props="props"><div class="stack">{cell}</div></q-td>'
            )
        self._table.add_slot("item", _NARROW)
        self._table.on("inside", lambda event: on_inside(int(event.args)))

    def show(self, lines: Sequence[RequestState]) -> None:
        """Show these lines; nothing is sent while nothing changes."""
        rows = [row_of(line) for line in lines]
        if rows != self._rows:
            self._rows = rows
            self._table.rows = [dict(row) for row in rows]


def row_of(state: RequestState) -> LineRow:
    """Return how a line is shown."""
    error = state.error_message or ""
    if state.error_code:
        error = f"{state.error_code}: {error}" if error else state.error_code
    elif not error and state.status_code is not None and state.status_code >= 400:
        error = f"HTTP {state.status_code}"
    return LineRow(
        line=state.line,
        custom_id=state.custom_id,
        status=status_of(state.status),
        flags=_flags(state),
        attempts=state.attempts,
        queued="" if state.queued_at is None else state.queued_at.isoformat(),
        started="" if state.started_at is None else state.started_at.isoformat(),
        finished="" if state.finished_at is None else state.finished_at.isoformat(),
        error=error,
    )


def _flags(state: RequestState) -> list[Badge]:
    flags = [] if state.pool is None else [pool_of(state.pool)]
    if state.interruptions:
        flags.append(Badge(text=f"interrupted {state.interruptions}", tone=Tone.WARN))
    if state.escalated:
        flags.append(Badge(text="escalated", tone=Tone.DEDICATED))
    return flags


def tried(attempts: int) -> str:
    """Return how often a line was tried."""
    return counted(attempts, "attempt") if attempts else "not tried yet"
