"""Controls that pause and resume pools, and notices of paused pools."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.core.errors import LowtideError
from lowtide.core.pools import DEFAULT_FLEET, FleetPool, Pool
from portal.components.basics import confirm
from portal.components.batch_actions import counted_batches
from portal.formats import absolute, ago, counted, duration, viewer_zone
from portal.services import in_thread
from portal.sessions import current_principal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import tzinfo

    from lowtide.core.pools import PauseEffect, PoolPause
    from lowtide.scheduler.pauses import Pools


class PauseNotes:
    """A notice for each paused pool; hidden while there is none."""

    def __init__(self) -> None:
        self._notes: list[str] | None = None
        self._zone = viewer_zone()
        self._container = ui.element("div").classes("notice").props("role=status")
        self._container.set_visibility(False)

    def show(self, pauses: Sequence[PoolPause], now: datetime) -> None:
        """Show these pauses; nothing is sent while they stay the same."""
        notes = [note_of(pause, now, self._zone) for pause in pauses]
        if notes == self._notes:
            return
        self._notes = notes
        self._container.set_visibility(bool(notes))
        self._container.clear()
        with self._container:
            for note in notes:
                ui.label(note)


def note_of(pause: PoolPause, now: datetime, zone: tzinfo) -> str:
    """Return a pause in words."""
    since = f"{absolute(pause.since, zone)} ({ago(pause.since, now)})"
    place = FleetPool(pause.fleet, pause.pool)
    return f"{place.label.capitalize()} paused since {since} by {pause.by}"


async def set_paused(pools: Pools, place: FleetPool, *, paused: bool) -> bool:
    """Pause a fleet's pool after confirmation, or resume it; return True if that was done."""
    try:
        return await (_pause(pools, place) if paused else _resume(pools, place))
    except LowtideError as error:
        ui.notify(error.message, type="negative", position="bottom")
        return False


async def _pause(pools: Pools, place: FleetPool) -> bool:
    fleet, pool = place
    principal = current_principal()
    effect = await in_thread(lambda: pools.effect(principal, pool, fleet))
    confirmed = await confirm(
        f"Pause {place.label}?", consequences(effect, datetime.now(UTC)), action=f"Pause {pool}"
    )
    if not confirmed:
        return False
    # Checked again: the session may end while the dialog is open.
    principal = current_principal()
    await in_thread(lambda: pools.pause(principal, pool, fleet))
    ui.notify(f"{place.label.capitalize()} paused.", type="positive", position="bottom")
    return True


async def _resume(pools: Pools, place: FleetPool) -> bool:
    fleet, pool = place
    principal = current_principal()
    await in_thread(lambda: pools.resume(principal, pool, fleet))
    ui.notify(f"{place.label.capitalize()} resumed.", type="positive", position="bottom")
    return True


def consequences(effect: PauseEffect, now: datetime) -> list[str]:
    """Return the effects of a pause, as sentences."""
    waiting, running = counted(effect.queued, "request"), counted(effect.running, "request")
    label = FleetPool(effect.fleet, effect.pool).label
    of_fleet = "" if effect.fleet == DEFAULT_FLEET else f" of {effect.fleet}"
    sentences = [
        f"Queued in {label}: {waiting}. Running: {running}.",
        "Its workers finish their running requests, claim no new ones, and scale down.",
    ]
    if effect.stops_all:
        sentences.append(
            f"The other pool is paused too: no requests{of_fleet} run until a pool is resumed."
        )
    elif effect.pool is Pool.SPOT:
        sentences.append(
            "Requests move to dedicated when their deadline requires it, which costs more. No "
            "deadline is put at risk."
        )
    else:
        sentences.append(
            "Escalated requests go back to spot, which guarantees no deadline; requests that were "
            "queued in dedicated from the start wait."
        )
    endangered = effect.endangered
    if endangered.first is not None:
        remaining = duration(max(endangered.first - now, timedelta()))
        sentences.append(
            f"At risk until {label} is resumed: {counted_batches(endangered.batches)} now on "
            f"schedule. The first deadline is in {remaining}."
        )
    return sentences
