"""What a list shows while there is nothing to list."""

from __future__ import annotations

from nicegui import ui

from portal.components.clipboard import copy


def empty_state(title: str, hint: str, command: str) -> ui.element:
    """Show what is missing, and the command that brings it, ready to copy."""
    with ui.element("div").classes("empty") as shown:
        ui.label(title).style("font-size: 16px; font-weight: 600")
        ui.label(hint).classes("muted")
        with ui.element("div").classes("command"):
            with ui.element("code").classes("mono"):
                ui.label(command)
            ui.button(icon="content_copy", on_click=lambda: copy(command), color=None).props(
                'flat dense size=sm aria-label="Copy the command"'
            )
    return shown
