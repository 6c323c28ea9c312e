"""A dead letter from inside: the line that was sent, and the last answer to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nicegui import ui

from lowtide.domain.ids import format_request_id
from portal.components.headings import heading

if TYPE_CHECKING:
    from lowtide.services.dead_letters import ShownLetter

_MOST: Final = 20_000


def show_letter(shown: ShownLetter) -> None:
    """Open a dialog with the exact text of a letter and of its last answer."""
    answer = shown.answer
    with (
        ui.dialog().props('aria-label="Dead letter"') as dialog,
        ui.element("div").classes("card dialog wide section"),
    ):
        dialog.on("hide", dialog.delete)
        heading(shown.letter.custom_id)
        ui.label(format_request_id(shown.letter.batch, shown.letter.line)).classes(
            "mono muted small break"
        )
        _text("Input", "its file is gone" if shown.line is None else shown.line.decode())
        if answer.body is None:
            _text("Last error", f"{answer.error_code or 'unknown'}: {answer.error_message or ''}")
        else:
            _text(f"Last answer, HTTP {answer.status_code}", answer.body)
        with ui.element("div").classes("actions end"):
            ui.button("Close", on_click=dialog.close, color=None).props("flat no-caps autofocus")
    dialog.open()


def _text(name: str, text: str) -> None:
    """Show text as it is: never parsed, so that big numbers and the order of keys stay exact."""
    ui.label(name).classes("muted small")
    with ui.element("pre").classes("source mono").props(f'tabindex=0 aria-label="{name}"'):
        ui.label(text[:_MOST])
    if len(text) > _MOST:
        ui.label(f"… and {len(text) - _MOST:,} characters more: download it.").classes(
            "muted small"
        )
