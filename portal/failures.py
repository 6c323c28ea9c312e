"""What a visitor is told when the portal itself fails."""

from __future__ import annotations

import logging
import secrets
from time import monotonic
from typing import Final

from nicegui import ui

from lowtide.domain.errors import LowtideError

_QUIET_SECONDS: Final = 30.0
_REFERENCE: Final = "Reference "

_log = logging.getLogger(__name__)


def watch_page() -> None:
    """Tell the visitor of the page that is being built when one of its handlers fails.

    What fails at every refresh is told once in a while.
    """
    told_at = -_QUIET_SECONDS

    def tell(error: Exception) -> None:
        nonlocal told_at
        message = explain(error)
        if monotonic() - told_at >= _QUIET_SECONDS:
            told_at = monotonic()
            ui.notify(message, type="negative", position="bottom", timeout=0, close_button="Close")

    ui.on_exception(tell)


def explain(error: Exception) -> str:
    """Return what a visitor may know; an unexpected error gets a reference, which the log has too."""
    if isinstance(error, LowtideError):
        return error.message
    return (
        "Something went wrong here, and it is not your fault. "
        f"Tell your operator the reference {_reference(error)}: the log has the cause under it."
    )


def _reference(error: Exception) -> str:
    """Return the reference of an error, the same one however often it is asked for."""
    for note in getattr(error, "__notes__", ()):
        if note.startswith(_REFERENCE):
            return str(note.removeprefix(_REFERENCE))
    reference = secrets.token_hex(5)
    # The note goes wherever the traceback is logged.
    error.add_note(f"{_REFERENCE}{reference}")
    _log.error("portal.failed", extra={"reference": reference}, exc_info=error)
    return reference
