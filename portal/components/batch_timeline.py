"""When a batch came to each of its states, and when it is due."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.domain.statuses import SlaState
from portal.formats import absolute, duration
from portal.theme import Tone

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from lowtide.domain.batches import Batch


@dataclass(frozen=True, slots=True)
class Step:
    """One point on the line; `note` says how it stands to the one before it, or to now."""

    name: str
    when: str
    note: str
    tone: Tone


def steps_of(batch: Batch, now: datetime) -> tuple[Step, ...]:
    """Return the steps of a batch; the deadline is the last, and bad once it is missed."""
    steps = [Step("Created", absolute(batch.created_at), "", Tone.GOOD)]
    before = batch.created_at
    for name, at, tone in (
        ("Started", batch.in_progress_at, Tone.GOOD),
        ("Finalizing", batch.finalizing_at, Tone.GOOD),
        ("Cancelling", batch.cancelling_at, Tone.WARN),
        ("Completed", batch.completed_at, _ending_tone(batch)),
        ("Cancelled", batch.cancelled_at, Tone.NEUTRAL),
        ("Failed", batch.failed_at, Tone.BAD),
        ("Expired", batch.expired_at, Tone.BAD),
    ):
        if at is not None:
            steps.append(Step(name, absolute(at), f"after {duration(at - before)}", tone))
            before = at
    if batch.ended_at is None:
        eta = "" if batch.eta is None else f"expected {absolute(batch.eta)}"
        steps.append(Step("Completed", eta, "not yet", Tone.NEUTRAL))
    steps.append(_deadline(batch, now))
    return tuple(steps)


def timeline(steps: Sequence[Step]) -> None:
    """Show steps in their order."""
    with ui.element("ol").classes("timeline"):
        for step in steps:
            with ui.element("li").classes(step.tone.value):
                ui.label(step.name).classes("what")
                ui.label(step.when).classes("small when")
                ui.label(step.note).classes("muted small")


def _ending_tone(batch: Batch) -> Tone:
    return Tone.BAD if batch.sla_state is SlaState.BREACHED else Tone.GOOD


def _deadline(batch: Batch, now: datetime) -> Step:
    reached = batch.ended_at or now
    late = reached > batch.deadline
    span = duration(abs(batch.deadline - reached))
    if batch.ended_at is None:
        note = f"{span} late" if late else f"in {span}"
    elif batch.sla_state is SlaState.BREACHED:
        note = "missed" if not late else f"missed by {span}"
    else:
        note = f"met, {span} to spare"
    breached = late or batch.sla_state is SlaState.BREACHED
    return Step("Deadline", absolute(batch.deadline), note, Tone.BAD if breached else Tone.INFO)
