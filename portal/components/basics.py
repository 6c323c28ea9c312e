"""Small components: headings, badges, confirmation dialogs, empty states, figure cards."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Final, TypedDict

from nicegui import ui

from lowtide.batches.model import BatchStatus, RequestStatus, SlaState
from lowtide.core.pools import Pool
from portal.formats import absolute, utc
from portal.theme import Tone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime


def heading(text: str, level: int = 2) -> ui.html:
    """Show a heading; its text is escaped."""
    return ui.html(escape(text), sanitize=False, tag=f"h{level}")


class Badge(TypedDict):
    """A badge in a table row."""

    text: str
    tone: Tone


STATUS_TONES: Final[Mapping[RequestStatus, Tone]] = {
    RequestStatus.QUEUED: Tone.NEUTRAL,
    RequestStatus.RUNNING: Tone.INFO,
    RequestStatus.COMPLETED: Tone.GOOD,
    RequestStatus.FAILED: Tone.BAD,
    RequestStatus.EXPIRED: Tone.WARN,
    RequestStatus.CANCELLED: Tone.NEUTRAL,
}
OUTCOME_TONES: Final[Mapping[RequestStatus, Tone]] = {
    RequestStatus.COMPLETED: Tone.GOOD,
    RequestStatus.FAILED: Tone.BAD,
    RequestStatus.EXPIRED: Tone.WARN,
    RequestStatus.CANCELLED: Tone.NEUTRAL,
}
"""The parts of a progress bar."""
BATCH_TONES: Final[Mapping[BatchStatus, Tone]] = {
    BatchStatus.VALIDATING: Tone.NEUTRAL,
    BatchStatus.IN_PROGRESS: Tone.INFO,
    BatchStatus.FINALIZING: Tone.INFO,
    BatchStatus.CANCELLING: Tone.NEUTRAL,
    BatchStatus.COMPLETED: Tone.GOOD,
    BatchStatus.FAILED: Tone.BAD,
    BatchStatus.EXPIRED: Tone.BAD,
    BatchStatus.CANCELLED: Tone.NEUTRAL,
}
POOL_TONES: Final[Mapping[Pool, Tone]] = {
    Pool.SPOT: Tone.SPOT,
    Pool.DEDICATED: Tone.DEDICATED,
}
SLA_TONES: Final[Mapping[SlaState, Tone]] = {
    SlaState.ON_TRACK: Tone.INFO,
    SlaState.AT_RISK: Tone.WARN,
    SlaState.MET: Tone.GOOD,
    SlaState.MISSED: Tone.BAD,
    SlaState.NOT_APPLICABLE: Tone.NEUTRAL,
}

# Cells get their data from rows; data is never formatted into a template.
ZERO_RETENTION: Final = Badge(text="zero retention", tone=Tone.NEUTRAL)
ORIGIN_CELL: Final = (
    '<span v-if="props.row.origin" class="badge badge-neutral origin ellipsis" '
    ':title="`Evacuated from the cell ${props.row.origin}`">{{ props.row.origin }}</span>'
)
"""The cell that the object of a row was evacuated from, if it was."""
BADGE_CELL: Final = '<span class="badge" :class="`badge-${badge.tone}`">{{ badge.text }}</span>'


def status_of(status: RequestStatus) -> Badge:
    """Return the badge of a request's status."""
    return Badge(text=status.value, tone=STATUS_TONES[status])


def status_of_batch(status: BatchStatus) -> Badge:
    """Return the badge of a batch's status: OpenAI's word for it."""
    return Badge(text=status.value.replace("_", " ").capitalize(), tone=BATCH_TONES[status])


def pool_of(pool: Pool) -> Badge:
    """Return the badge of a pool."""
    return Badge(text=pool.value, tone=POOL_TONES[pool])


def evacuated(origin: str) -> str:
    """Return where an object is from: the name of another cell."""
    return f"evacuated from {origin}"


def sla_of(state: SlaState) -> Badge:
    """Return the badge of an SLA state."""
    return Badge(text=state.value, tone=SLA_TONES[state])


def badge(value: Badge) -> ui.label:
    """Show a badge."""
    return ui.label(value["text"]).classes(f"badge badge-{value['tone']}")


def pool_badge(pool: Pool) -> ui.label:
    """Show a pool."""
    return badge(pool_of(pool))


def moment_label(moment: datetime | None) -> ui.label:
    """Show a moment in the viewer's time zone, with UTC in the tooltip; None is empty."""
    label = ui.label("" if moment is None else absolute(moment))
    if moment is not None:
        label.props["title"] = utc(moment)
    return label


_COPY_TIMEOUT: Final = 10.0


async def copy(text: str) -> None:
    """Copy text to the clipboard, and notify the user of success or failure."""
    # Plain HTTP has no clipboard API, and a browser may refuse.
    write = f"navigator.clipboard.writeText({json.dumps(text)}).then(() => true, () => false)"
    try:
        copied = await ui.run_javascript(
            f"navigator.clipboard ? {write} : false", timeout=_COPY_TIMEOUT
        )
    except TimeoutError:
        copied = False
    if copied:
        ui.notify("Copied", type="positive", position="bottom")
    else:
        ui.notify(
            "Could not copy: select the text and copy it manually",
            type="warning",
            position="bottom",
        )


async def confirm(
    question: str,
    details: Sequence[str] = (),
    *,
    action: str,
    dangerous: bool = False,
    fill: Callable[[], object] | None = None,
) -> bool:
    """Ask for confirmation; return False if the dialog is closed without it.

    `action` labels the confirm button: `Requeue 12 letters`, never `OK`. `fill` adds further
    content.
    """
    with (
        ui.dialog().props("aria-label=Confirmation") as dialog,
        ui.element("div").classes("card dialog section"),
    ):
        heading(question)
        for detail in details:
            ui.label(detail)
        if fill is not None:
            fill()
        with ui.element("div").classes("actions end"):
            ui.button("Go back", on_click=lambda: dialog.submit(False), color=None).props(
                "flat no-caps autofocus"
            )
            ui.button(
                action,
                on_click=lambda: dialog.submit(True),
                color="negative" if dangerous else "primary",
            ).props("unelevated no-caps")
    answer = await dialog
    dialog.delete()
    return answer is True


def empty_state(title: str, hint: str, command: str) -> ui.element:
    """Show a hint for an empty list, with a command to copy."""
    with ui.element("div").classes("empty") as box:
        ui.label(title).style("font-size: 16px; font-weight: 600")
        ui.label(hint).classes("muted")
        with ui.element("div").classes("command"):
            with ui.element("code").classes("mono"):
                ui.label(command)
            ui.button(icon="content_copy", on_click=lambda: copy(command), color=None).props(
                'flat dense size=sm aria-label="Copy command"'
            )
    return box


class StatCard:
    """A card with a title, a figure and a note."""

    def __init__(self, title: str) -> None:
        with ui.element("div").classes("card stat"):
            ui.label(title).classes("muted")
            self._value = ui.label("—").classes("value").mark(title)
            self._note = ui.label("").classes("muted small")

    def show(self, value: str, note: str = "", *, alarming: bool = False) -> None:
        """Show a figure, in the `bad` tone if it is alarming."""
        self._value.text = value
        self._note.text = note
        self._value.classes(add="bad") if alarming else self._value.classes(remove="bad")
