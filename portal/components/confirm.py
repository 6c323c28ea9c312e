"""Asking before something is done that cannot be taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import ui

from portal.components.headings import heading

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


async def confirm(
    question: str,
    details: Sequence[str] = (),
    *,
    action: str,
    dangerous: bool = False,
    fill: Callable[[], object] | None = None,
) -> bool:
    """Ask, and wait for the answer; leaving the dialog is a no.

    `action` names what the yes does: `Requeue 12 letters`, never `OK`. `fill` adds what else there is to say.
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
            ui.button("Keep as is", on_click=lambda: dialog.submit(False), color=None).props(
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
