"""What somebody should look at, on top of the landing page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import ui

from portal.components.headings import heading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.domain.attention import Concern


class ConcernList:
    """Open alerts, each with a link to more; out of sight while there is none."""

    def __init__(self) -> None:
        self._shown: Sequence[Concern] | None = None
        self._section = ui.element("section").classes("card concerns")
        self._section.props('aria-label="Open alerts"')
        self._section.set_visibility(False)

    def show(self, concerns: Sequence[Concern]) -> None:
        """Show these; nothing is sent while they stay the same."""
        if concerns == self._shown:
            return
        self._shown = concerns
        self._section.set_visibility(bool(concerns))
        self._section.clear()
        with self._section:
            heading("Needs attention")
            with ui.element("ul"):
                for concern in concerns:
                    with ui.element("li"), ui.element("a").props(f'href="{concern.path}"'):
                        ui.label(concern.text)
