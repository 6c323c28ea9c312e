"""A dead letter from inside: the line that was sent, and the last answer to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nicegui import ui

from lowtide.domain.ids import format_request_id
from portal.components.headings import heading
from portal.formats import size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowtide.services.dead_letters import ShownLetter

_MOST: Final = 20_000


@dataclass(frozen=True, slots=True)
class Excerpts:
    """A letter with the beginnings of its line and of its last answer."""

    shown: ShownLetter
    line: str | None
    body: str | None


def read_excerpts(shown: ShownLetter) -> Excerpts:
    """Read as much of a letter as is shown; not for the event loop."""
    return Excerpts(shown, _beginning(shown.line), _beginning(shown.body))


def show_letter(excerpts: Excerpts) -> None:
    """Open a dialog with the exact text of a letter and of its last answer."""
    shown, answer = excerpts.shown, excerpts.shown.answer
    with (
        ui.dialog().props('aria-label="Dead letter"') as dialog,
        ui.element("div").classes("card dialog wide section"),
    ):
        dialog.on("hide", dialog.delete)
        heading(shown.letter.custom_id)
        ui.label(format_request_id(shown.letter.batch, shown.letter.line)).classes(
            "mono muted small break"
        )
        _text("Input", excerpts.line or "its file is gone", shown.line_bytes)
        if excerpts.body is None:
            _text("Last error", f"{answer.error_code or 'unknown'}: {answer.error_message or ''}")
        else:
            _text(f"Last answer, HTTP {answer.status_code}", excerpts.body, shown.body_bytes)
        with ui.element("div").classes("actions end"):
            ui.button("Close", on_click=dialog.close, color=None).props("flat no-caps autofocus")
    dialog.open()


def _beginning(pieces: Iterator[bytes] | None) -> str | None:
    if pieces is None:
        return None
    kept = b""
    while len(kept) < _MOST and (piece := next(pieces, None)) is not None:
        kept += piece[:_MOST]
    return kept[:_MOST].decode("utf-8", "ignore")


def _text(name: str, text: str, whole: int = 0) -> None:
    """Show text as it is: never parsed, so that big numbers and the order of keys stay exact."""
    ui.label(name).classes("muted small")
    with ui.element("pre").classes("source mono").props(f'tabindex=0 aria-label="{name}"'):
        ui.label(text[:_MOST])
    if whole > _MOST:
        ui.label(f"… shown in part, of {size(whole)}: download it.").classes("muted small")
