"""Where plans are made and applied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.domain.escalation import Plan
    from lowtide.domain.situations import Replanned, Situation


class Timetable(Protocol):
    """Everything that is open, and which pool its lines are in."""

    def replan(self, decide: Callable[[Situation], Plan]) -> Replanned | None:
        """Look, decide, move lines and note what is at risk; None while another tick does so."""
        ...
