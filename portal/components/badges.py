"""Badges: one word in one colour, as elements and as cells of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypedDict

from nicegui import ui

from lowtide.domain.pools import Pool
from lowtide.domain.statuses import RequestStatus, SlaState
from portal.theme import Tone

if TYPE_CHECKING:
    from collections.abc import Mapping


class Badge(TypedDict):
    """A badge as a table's row carries it."""

    text: str
    tone: Tone


STATUS_TONES: Final[Mapping[RequestStatus, Tone]] = {
    RequestStatus.QUEUED: Tone.NEUTRAL,
    RequestStatus.RUNNING: Tone.INFO,
    RequestStatus.COMPLETED: Tone.GOOD,
    RequestStatus.FAILED: Tone.BAD,
    RequestStatus.DEAD_LETTERED: Tone.BAD,
}
POOL_TONES: Final[Mapping[Pool, Tone]] = {
    Pool.SPOT: Tone.SPOT,
    Pool.DEDICATED: Tone.DEDICATED,
}
SLA_TONES: Final[Mapping[SlaState, Tone]] = {
    SlaState.IN_PROGRESS: Tone.INFO,
    SlaState.AT_RISK: Tone.WARN,
    SlaState.MET: Tone.GOOD,
    SlaState.BREACHED: Tone.BAD,
}

# Cells take their data as rows; nothing is ever formatted into a template.
BADGE_CELL: Final = '<span class="badge" :class="`badge-${badge.tone}`">{{ badge.text }}</span>'


def status_of(status: RequestStatus) -> Badge:
    """Return the badge of a status."""
    return Badge(text=status.value, tone=STATUS_TONES[status])


def pool_of(pool: Pool) -> Badge:
    """Return the badge of a pool."""
    return Badge(text=pool.value, tone=POOL_TONES[pool])


def sla_of(state: SlaState) -> Badge:
    """Return the badge of an SLA state."""
    return Badge(text=state.value, tone=SLA_TONES[state])


def badge(value: Badge) -> ui.label:
    """Show a badge."""
    return ui.label(value["text"]).classes(f"badge badge-{value['tone']}")


def status_badge(status: RequestStatus) -> ui.label:
    """Show a status."""
    return badge(status_of(status))


def pool_badge(pool: Pool) -> ui.label:
    """Show a pool."""
    return badge(pool_of(pool))
