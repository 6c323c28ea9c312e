"""Controls that pause and resume pools, and notices of paused pools."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.core.errors import LowtideError
from lowtide.core.pools import Pool
from portal.components.basics import confirm
from portal.components.batch_actions import counted_batches
from portal.formats import counted, duration, visitor_zone
from portal.services import in_thread
from portal.sessions import current_visitor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import tzinfo

    from lowtide.core.pools import PauseEffect, PoolPause
    from lowtide.scheduler.pauses import Pools


class PauseNotes:
    """A notice for each paused pool; hidden while there is none."""

    def __init__(self) -> None:
        self._shown: list[str] | None = None
        self._zone = visitor_zone()
        self._place = ui.element("div").classes("notice").props("role=status")
        self._place.set_visibility(False)

    def show(self, pauses: Sequence[PoolPause], now: datetime) -> None:
        """Show these pauses; nothing is sent while they stay the same."""
        notes = [note_of(pause, now, self._zone) for pause in pauses]
        if notes == self._shown:
            return
        self._shown = notes
        self._place.set_visibility(bool(notes))
        self._place.clear()
        with self._place:
            for note in notes:
                ui.label(note)


def note_of(pause: PoolPause, now: datetime, zone: tzinfo) -> str:
    """Return a pause in words, with its date unless it began today."""
    since = pause.since.astimezone(zone)
    same_day = since.date() == now.astimezone(zone).date()
    moment = f"{since:%H:%M %Z}" if same_day else f"{since:%Y-%m-%d %H:%M %Z}"
    return f"{pause.pool.capitalize()} paused since {moment} by {pause.by}"


async def set_paused(pools: Pools, pool: Pool, *, paused: bool) -> bool:
    """Pause a pool after confirmation, or resume it; return True if that was done."""
    try:
        return await (_pause(pools, pool) if paused else _resume(pools, pool))
    except LowtideError as error:
        ui.notify(error.message, type="negative", position="bottom")
        return False


async def _pause(pools: Pools, pool: Pool) -> bool:
    visitor = current_visitor()
    effect = await in_thread(lambda: pools.effect(visitor, pool))
    agreed = await confirm(
        f"Pause {pool}?", consequences(effect, datetime.now(UTC)), action=f"Pause {pool}"
    )
    if not agreed:
        return False
    # Checked again: the session may end while the dialog is open.
    visitor = current_visitor()
    await in_thread(lambda: pools.pause(visitor, pool))
    ui.notify(f"{pool.capitalize()} paused.", type="positive", position="bottom")
    return True


async def _resume(pools: Pools, pool: Pool) -> bool:
    visitor = current_visitor()
    await in_thread(lambda: pools.resume(visitor, pool))
    ui.notify(f"{pool.capitalize()} resumed.", type="positive", position="bottom")
    return True


def consequences(effect: PauseEffect, now: datetime) -> list[str]:
    """Return the effects of a pause, as sentences."""
    waiting, running = counted(effect.queued, "request"), counted(effect.running, "request")
    told = [
        f"Queued in {effect.pool}: {waiting}. Running: {running}.",
        "Its workers finish their running requests, claim no new ones, and scale down.",
    ]
    if effect.stops_all:
        told.append("The other pool is paused too: no requests run until a pool is resumed.")
    elif effect.pool is Pool.SPOT:
        told.append(
            "Requests move to dedicated when their deadline requires it, which costs more. No "
            "deadline is put at risk."
        )
    else:
        told.append(
            "Escalated requests go back to spot, which guarantees no deadline; requests that were "
            "queued in dedicated from the start wait."
        )
    endangered = effect.endangered
    if endangered.first is not None:
        left = duration(max(endangered.first - now, timedelta()))
        told.append(
            f"At risk until {effect.pool} is resumed: {counted_batches(endangered.batches)} now on "
            f"schedule. The first deadline is in {left}."
        )
    return told
