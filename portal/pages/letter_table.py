"""The table of dead letters, and the dialog of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypedDict

from nicegui import ui

from lowtide.core.ids import format_batch_id, format_request_id, parse_request_id
from lowtide.dead_letters.model import LetterId, LetterState
from portal.components.basics import BADGE_CELL, ORIGIN_CELL, Badge, heading
from portal.formats import NO_CUSTOM_ID, absolute, size, utc
from portal.services import known_cells
from portal.theme import Tone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lowtide.core.ids import TenantId
    from lowtide.dead_letters.model import DeadLetter
    from lowtide.dead_letters.service import ShownLetter


class LetterRow(TypedDict):
    """A dead letter as a table row."""

    id: str
    custom_id: str
    tenant: str
    batch: str
    origin: str
    line: int
    code: str
    message: str
    attempts: int
    state: Badge
    died: str
    died_at: str
    requeued_as: str


TONES: Final[Mapping[LetterState, Tone]] = {
    LetterState.OPEN: Tone.BAD,
    LetterState.REQUEUED: Tone.GOOD,
    LetterState.DISCARDED: Tone.NEUTRAL,
}
_LABELS: Final = {
    "custom_id": "custom_id",
    "tenant": "Tenant",
    "batch": "Batch",
    "message": "Last error",
    "attempts": "Attempts",
    "state": "State",
    "died": "Dead-lettered",
    "more": "Details",
}
_BATCH: Final = (
    '<a class="mono small link" :href="`/batches/${props.row.batch}`" :title="props.row.batch">'
    "{{ props.row.batch.slice(0, 14) }}…{{ props.row.batch.slice(-6) }}</a>"
    '<span class="muted small">line {{ props.row.line.toLocaleString("en-US") }}</span>'
    + ORIGIN_CELL
)
_ERROR: Final = (
    '<span class="mono small">{{ props.row.code }}</span>'
    '<span class="muted small clamp" :title="props.row.message">{{ props.row.message }}</span>'
)
_STATE: Final = (
    BADGE_CELL.replace("badge.", "props.row.state.")
    + '<a v-if="props.row.requeued_as" class="small link" '
    ':href="`/batches/${props.row.requeued_as}`">view new batch</a>'
)
_DIED: Final = '<span class="nowrap" :title="props.row.died_at">{{ props.row.died }}</span>'
_NAME: Final = (
    '<span class="user ellipsis" :title="props.row.custom_id">{{ props.row.custom_id }}</span>'
)
_MORE: Final = (
    '<q-btn flat dense no-caps label="View" class="small" '
    ':aria-label="`View ${props.row.custom_id}`" '
    "@click=\"() => $parent.$emit('inside', props.row.id)\" />"
)
_CHOOSE: Final = (
    '<q-checkbox v-model="props.selected" dense :aria-label="`Select ${props.row.custom_id}`" />'
)
_CELLS: Final = {
    "custom_id": _NAME,
    "batch": _BATCH,
    "message": _ERROR,
    "state": _STATE,
    "died": _DIED,
    "more": _MORE,
}
_NARROW: Final = f"""
<div class="batch-item">
  <div class="batch-line">{_CHOOSE}<span class="letter-name">{_NAME}</span>{_STATE}</div>
  <div class="stack">{_ERROR}</div>
  <div class="batch-line"><span class="stack">{_BATCH}</span>{_MORE}</div>
  <div class="batch-notes muted small">{_DIED}<span>{{{{ props.row.tenant }}}}</span><span>{{{{ props.row.attempts }}}} attempts</span></div>
</div>
"""


class LetterTable:
    """Dead letters, newest first, with a selection; `tenants` are names, shown if several."""

    def __init__(
        self,
        tenants: Mapping[TenantId, str],
        *,
        on_choice: Callable[[], object],
        on_inside: Callable[[LetterId, TenantId], object],
    ) -> None:
        self._tenants = tenants
        self._letters: Mapping[LetterId, TenantId] = {}
        columns = [
            {
                "name": name,
                "label": label,
                "field": name,
                "align": "right" if name == "attempts" else "left",
            }
            for name, label in _LABELS.items()
            if name != "tenant" or len(tenants) > 1
        ]
        self._table = ui.table(
            rows=[],
            columns=columns,
            row_key="id",
            selection="multiple",
            on_select=lambda _: on_choice(),
        ).props(
            'flat hide-pagination hide-selected-banner :rows-per-page-options="[0]" '
            ':grid="Quasar.Screen.width < 1000"'
        )
        self._table.add_slot(
            "header-selection",
            '<q-checkbox v-model="props.selected" dense aria-label="Select all on this page" />',
        )
        self._table.add_slot("body-selection", _CHOOSE)
        for name, cell in _CELLS.items():
            self._table.add_slot(
                f"body-cell-{name}", f'<q-td :props="props"><div class="stack">{cell}</div></q-td>'
            )
        self._table.add_slot("item", _NARROW)
        self._on_inside = on_inside
        self._table.on("inside", lambda event: self._report_inside(event.args))

    @property
    def chosen(self) -> dict[LetterId, TenantId]:
        """The selected dead letters by id; ids that are not in the table are ignored."""
        found = [self._letter(row["id"]) for row in self._table.selected]
        return {letter: self._letters[letter] for letter in found if letter is not None}

    def show(self, letters: Sequence[DeadLetter]) -> None:
        """Show these dead letters, none of them selected."""
        self._table.selected = []
        self._letters = {LetterId(each.batch, each.line): each.tenant for each in letters}
        names = self._tenants
        cells = known_cells().names
        self._table.rows = [
            dict(row_of(each, names.get(each.tenant, ""), cells.origin(each.batch)))
            for each in letters
        ]

    def _letter(self, request_id: object) -> LetterId | None:
        parsed = parse_request_id(str(request_id))
        letter = None if parsed is None else LetterId(*parsed)
        return letter if letter in self._letters else None

    def _report_inside(self, request_id: object) -> object:
        letter = self._letter(request_id)
        return None if letter is None else self._on_inside(letter, self._letters[letter])


def row_of(letter: DeadLetter, tenant: str, origin: str) -> LetterRow:
    """Return the table row of a dead letter; `tenant` is a name, `origin` that of another cell."""
    return LetterRow(
        id=format_request_id(letter.batch, letter.line),
        custom_id=letter.custom_id or NO_CUSTOM_ID,
        tenant=tenant,
        batch=format_batch_id(letter.batch),
        origin=origin,
        line=letter.line,
        code=letter.error_code or "unknown",
        message=(letter.error_message or "")[:500],
        attempts=letter.attempts,
        state=Badge(text=letter.state.value.capitalize(), tone=TONES[letter.state]),
        died=absolute(letter.died_at),
        died_at=utc(letter.died_at),
        requeued_as="" if letter.requeued_as is None else format_batch_id(letter.requeued_as),
    )


_MAX_LENGTH: Final = 20_000


@dataclass(frozen=True, slots=True)
class Excerpts:
    """A dead letter with the beginnings of its input and of its last response."""

    shown: ShownLetter
    line: str | None
    body: str | None


def read_excerpts(shown: ShownLetter) -> Excerpts:
    """Read the parts of a dead letter that are shown; blocks, so not on the event loop."""
    return Excerpts(shown, _beginning(shown.line), _beginning(shown.body))


def show_letter(excerpts: Excerpts) -> None:
    """Open a dialog with the exact input and last response of a dead letter."""
    shown, answer = excerpts.shown, excerpts.shown.answer
    with (
        ui.dialog().props('aria-label="Dead letter"') as dialog,
        ui.element("div").classes("card dialog wide section"),
    ):
        dialog.on("hide", dialog.delete)
        heading(shown.letter.custom_id or NO_CUSTOM_ID)
        ui.label(format_request_id(shown.letter.batch, shown.letter.line)).classes(
            "mono muted small break"
        )
        _text(
            "Input", excerpts.line or "The input file was deleted or has expired.", shown.line_bytes
        )
        if shown.is_erased:
            _text("Last response", "The file with this response was deleted or has expired.")
        elif excerpts.body is None:
            _text("Last error", f"{answer.error_code or 'unknown'}: {answer.error_message or ''}")
        else:
            _text(f"Last response, HTTP {answer.status_code}", excerpts.body, shown.body_bytes)
        with ui.element("div").classes("actions end"):
            ui.button("Close", on_click=dialog.close, color=None).props("flat no-caps autofocus")
    dialog.open()


def _beginning(pieces: Iterator[bytes] | None) -> str | None:
    if pieces is None:
        return None
    content = b""
    while len(content) < _MAX_LENGTH and (piece := next(pieces, None)) is not None:
        content += piece[:_MAX_LENGTH]
    return content[:_MAX_LENGTH].decode("utf-8", "ignore")


def _text(name: str, text: str, total_bytes: int = 0) -> None:
    """Show text unparsed, so that big numbers and the order of keys stay exact."""
    ui.label(name).classes("muted small")
    with ui.element("pre").classes("source mono").props(f'tabindex=0 aria-label="{name}"'):
        ui.label(text[:_MAX_LENGTH])
    if total_bytes > _MAX_LENGTH:
        ui.label(
            f"… truncated, {size(total_bytes)} in total: download it for the full content."
        ).classes("muted small")
