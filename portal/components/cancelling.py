"""Cancelling batches: first how many that would be, then the question, then the deed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.domain.errors import LowtideError
from portal.background import in_thread
from portal.components.batch_toolbar import counted_batches
from portal.components.confirm import confirm
from portal.sessions import current_visitor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.domain.batch_lists import BatchFilter, CancelPlan
    from lowtide.domain.ids import BatchId
    from lowtide.services.batch_lists import BatchDesk


async def cancel_batches(desk: BatchDesk, wanted: BatchFilter | Sequence[BatchId]) -> bool:
    """Ask, and cancel just what the question named; tell whether anything was tried."""
    try:
        return await _cancel(desk, wanted)
    except LowtideError as error:
        ui.notify(error.message, type="negative", position="bottom")
        return False


async def _cancel(desk: BatchDesk, wanted: BatchFilter | Sequence[BatchId]) -> bool:
    visitor = current_visitor()
    plan = await in_thread(lambda: desk.plan(visitor, wanted))
    if not plan.batches:
        ui.notify("Nothing to cancel: these are over, or cancelling already.", position="bottom")
        return False
    named = counted_batches(len(plan.batches))
    agreed = await confirm(
        f"Cancel {named}?", _consequences(plan), action=f"Cancel {named}", dangerous=True
    )
    if not agreed:
        return False
    # Asked again: a session may end while the question is open.
    visitor = current_visitor()
    done = await in_thread(lambda: desk.cancel(visitor, plan.batches))
    missed = len(plan.batches) - done
    text = f"Cancelling {counted_batches(done)}."
    if missed:
        text += f" {counted_batches(missed).capitalize()} had ended meanwhile."
    ui.notify(text, type="positive" if done else "info", position="bottom")
    return True


def _consequences(plan: CancelPlan) -> list[str]:
    told = [
        "Requests that wait are dropped; those that run get a few seconds. Results so far stay."
    ]
    if plan.unchanged:
        told.append(f"{counted_batches(plan.unchanged)} are over or cancelling, and stay as is.")
    if plan.more:
        told.append("There are more that match: cancel again for the next ones.")
    return told
