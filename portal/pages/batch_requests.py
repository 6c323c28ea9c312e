"""The table of a batch's requests, and the drawer of one request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypedDict

import msgspec
from nicegui import ui

from lowtide.batches.model import RequestStatus
from lowtide.batches.views import MAX_SHOWN
from portal.components.basics import (
    BADGE_CELL,
    Badge,
    badge,
    heading,
    pool_badge,
    pool_of,
    status_of,
)
from portal.formats import NO_CUSTOM_ID, absolute, counted, number, size, utc
from portal.pages.batch_facts import notes_list
from portal.theme import Tone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from lowtide.batches.model import Outcomes
    from lowtide.batches.results import RequestState
    from lowtide.batches.views import LineDetails
    from portal.queries import LineQuery


REQUESTS: Final = "requests"
"""The fragment of the table of requests in the page's URL."""


class LineRow(TypedDict):
    """A request as a table row."""

    line: int
    custom_id: str
    status: list[Badge]
    flags: list[Badge]
    attempts: int
    time: str
    times: str
    error: str


_LABELS: Final = {
    "line": "Line",
    "custom_id": "custom_id",
    "status": "Status",
    "flags": "Pool",
    "attempts": "Attempts",
    "time": "Last change",
    "error": "Error",
    "more": "Details",
}


def _badges(field: str) -> str:
    badge_of_each = f'<span v-for="badge in props.row.{field}" :key="badge.text" '
    return f'<span class="badges">{BADGE_CELL.replace("<span ", badge_of_each)}</span>'


_STATUS: Final = _badges("status")
_FLAGS: Final = _badges("flags")
_NAME: Final = (
    '<span class="user ellipsis" :title="props.row.custom_id">{{ props.row.custom_id }}</span>'
)
_TIME: Final = (
    '<span class="small nowrap muted" :title="props.row.times">{{ props.row.time }}</span>'
)
_ERROR: Final = (
    '<span class="small ellipsis error" :title="props.row.error">{{ props.row.error }}</span>'
)
_MORE: Final = (
    '<q-btn flat dense no-caps label="View" '
    ':aria-label="`View request on line ${props.row.line}`" '
    "@click=\"() => $parent.$emit('inside', props.row.line)\" />"
)
_CELLS: Final = {
    "line": '{{ props.row.line.toLocaleString("en-US") }}',
    "custom_id": _NAME,
    "status": _STATUS,
    "flags": _FLAGS,
    "attempts": "{{ props.row.attempts }}",
    "time": _TIME,
    "error": _ERROR,
    "more": _MORE,
}
_NARROW: Final = f"""
<div class="line-item">
  <div class="batch-line">{_NAME}{_STATUS}</div>
  <div class="batch-line"><span class="muted small">line {{{{ props.row.line }}}}</span>
    {_FLAGS}{_MORE}</div>
  {_ERROR.replace("<span ", '<span v-if="props.row.error" ')}
</div>
"""


class LineTable:
    """Requests in input order; `on_inside` receives the line of the one to open."""

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
            self._table.add_slot(f"body-cell-{name}", f'<q-td :props="props">{cell}</q-td>')
        self._table.classes("line-table")
        self._table.add_slot("item", _NARROW)
        self._table.on("inside", lambda event: on_inside(int(event.args)))

    def show(self, lines: Sequence[RequestState]) -> None:
        """Show these requests; nothing is sent while they stay the same."""
        rows = [row_of(line) for line in lines]
        if rows != self._rows:
            self._rows = rows
            self._table.rows = [dict(row) for row in rows]


def row_of(state: RequestState) -> LineRow:
    """Return the table row of a request."""
    error = state.error_message or ""
    if state.error_code:
        error = f"{state.error_code}: {error}" if error else state.error_code
    elif not error and state.status_code is not None and state.status_code >= 400:
        error = f"HTTP {state.status_code}"
    times = _times(state)
    return LineRow(
        line=state.line,
        custom_id=state.custom_id or NO_CUSTOM_ID,
        status=_status(state),
        flags=_flags(state),
        attempts=state.attempts,
        time=" ".join((times[-1][0], absolute(times[-1][1]))) if times else "",
        times=" · ".join(f"{name} {utc(at)}" for name, at in times),
        error=error,
    )


def _times(state: RequestState) -> list[tuple[str, datetime]]:
    """Return the changes of a request with their times, the latest last."""
    changes = (
        ("queued", state.queued_at),
        ("started", state.started_at),
        ("finished", state.finished_at),
    )
    return [(name, at) for name, at in changes if at is not None]


def _status(state: RequestState) -> list[Badge]:
    badges = [status_of(state.status)]
    if state.dead_lettered:
        badges.append(Badge(text="dead letter", tone=Tone.BAD))
    return badges


def _flags(state: RequestState) -> list[Badge]:
    flags = [] if state.pool is None else [pool_of(state.pool)]
    if state.interruptions:
        flags.append(Badge(text=counted(state.interruptions, "interruption"), tone=Tone.WARN))
    if state.escalated:
        flags.append(Badge(text="escalated", tone=Tone.DEDICATED))
    return flags


def tried(attempts: int) -> str:
    """Return the number of attempts in words."""
    return counted(attempts, "attempt") if attempts else "no attempts yet"


def open_drawer(details: LineDetails) -> None:
    """Show a request in a drawer at the side of the page."""
    record = details.record
    with (
        ui.dialog().props('position=right aria-label="Request"') as drawer,
        ui.element("div").classes("card drawer section"),
    ):
        with ui.element("div").classes("batch-line"):
            heading(f"Request on line {number(record.state.line)}")
            ui.button(icon="close", on_click=drawer.close, color=None).props(
                'flat round dense aria-label="Close" autofocus'
            )
        ui.label(record.state.custom_id or NO_CUSTOM_ID).classes("break")
        _state(record.state, record.worker)
        if record.state.error_code or record.state.error_message:
            ui.label(row_of(record.state)["error"]).classes("banner break")
        if record.notes:
            heading("History")
            notes_list(record.notes)
        heading("Input")
        missing = "The input file was deleted or has expired."
        _source("Input", details.input, record.length, missing)
        heading("Output")
        if record.body is not None:
            tokens = f"{number(record.input_tokens)} tokens in, {number(record.output_tokens)} out"
            ui.label(tokens).classes("muted small")
        missing = "The file with this output was deleted or has expired."
        missing = missing if details.is_erased else "No output."
        _source("Output", record.body, record.body_bytes, missing)
    drawer.on("hide", drawer.delete)
    drawer.open()


def exact(content: bytes, total_bytes: int) -> str:
    """Return JSON indented, with every token as it was sent: digits, escapes, order of keys.

    Invalid JSON stays as it is. `total_bytes` is the full size: incomplete content, or content above
    MAX_SHOWN, is cut and not indented.
    """
    if len(content) < total_bytes or total_bytes > MAX_SHOWN:
        beginning = content[:MAX_SHOWN]
        return (
            f"{beginning.decode('utf-8', 'replace')}\n… {size(total_bytes - len(beginning))} truncated: "
            "download the batch's files for the full content"
        )
    try:
        return msgspec.json.format(content, indent=2).decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return content.decode("utf-8", "replace")


def _state(state: RequestState, worker: str | None) -> None:
    with ui.element("div").classes("badges"):
        for status in _status(state):
            badge(status)
        if state.pool is not None:
            pool_badge(state.pool)
        for flag in row_of(state)["flags"]:
            if state.pool is None or flag["text"] != state.pool.value:
                badge(flag)
    parts = [tried(state.attempts), worker or ""]
    times = _times(state)
    parts += [f"{name} {absolute(at)}" for name, at in times]
    label = ui.label(" · ".join(part for part in parts if part)).classes("muted small")
    label.props["title"] = " · ".join(f"{name} {utc(at)}" for name, at in times)


def _source(name: str, content: bytes | None, total_bytes: int, missing: str) -> None:
    if content is None:
        ui.label(missing).classes("muted")
        return
    source = ui.element("pre").classes("source mono").props(f'tabindex=0 aria-label="{name}"')
    source.props("role=region")
    with source:
        ui.label(exact(content, total_bytes)).style("white-space: pre-wrap")


def line_tabs(outcomes: Outcomes, total: int, query: LineQuery) -> None:
    """Show a tab for all requests, for each state that any is in, and for dead letters."""
    for status in (None, *RequestStatus):
        name = "All requests" if status is None else status.value
        count = total if status is None else outcomes.of(status)
        is_current = status is query.status and not query.dead_lettered
        if count or is_current or status is None:
            _tab(name, count, query.only(status), is_current=is_current)
        if status is RequestStatus.FAILED and (outcomes.dead_lettered or query.dead_lettered):
            target = query.only(status, dead_lettered=True)
            _tab("Dead letters", outcomes.dead_lettered, target, is_current=query.dead_lettered)


def _tab(name: str, count: int, target: LineQuery, *, is_current: bool) -> None:
    link = ui.element("a").classes("tab")
    link.props["href"] = f"{target.address()}#{REQUESTS}"
    if is_current:
        link.props("aria-current=page")
    with link:
        ui.label(f"{name} {number(count)}")
