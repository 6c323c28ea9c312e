"""Facts about a batch: timeline, progress, notes, errors, cost and files."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from nicegui import ui

from lowtide.batches.model import BatchStatus, SlaState
from lowtide.core.ids import format_batch_id
from lowtide.planning.reasons import describe
from portal.components.basics import (
    ZERO_RETENTION,
    Badge,
    badge,
    evacuated,
    moment_label,
    pool_badge,
    sla_of,
    status_of_batch,
)
from portal.components.batch_table import cost_text, parts_of
from portal.downloads import FAILED_INPUTS
from portal.formats import absolute, counted, day, duration, number, size, utc
from portal.services import known_cells
from portal.theme import Tone

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from lowtide.batches.model import Batch, Export
    from lowtide.batches.views import BatchDetails, BatchFile, Note
    from lowtide.fleets.placement import BatchPart


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the timeline, planned or done at `at`, None while its time is unknown.

    `note` is its distance from the previous step or from now.
    """

    name: str
    at: datetime | None
    note: str
    tone: Tone


def steps_of(batch: Batch, now: datetime) -> tuple[Step, ...]:
    """Return the steps of a batch; the deadline is the last, and `bad` once it is missed."""
    steps = [Step("Created", batch.created_at, "", Tone.GOOD)]
    previous = batch.created_at
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
            steps.append(Step(name, at, f"after {duration(at - previous)}", tone))
            previous = at
    if batch.ended_at is None:
        note = "not yet" if batch.eta is None else "expected"
        steps.append(Step("Completed", batch.eta, note, Tone.NEUTRAL))
    steps.append(_deadline(batch, now))
    return tuple(steps)


def timeline(steps: Sequence[Step]) -> None:
    """Show steps in the given order."""
    with ui.element("ol").classes("timeline"):
        for step in steps:
            with ui.element("li").classes(step.tone.value):
                ui.label(step.name).classes("what")
                moment_label(step.at).classes("small when")
                ui.label(step.note).classes("muted small")


def _ending_tone(batch: Batch) -> Tone:
    return Tone.BAD if batch.sla_state is SlaState.MISSED else Tone.GOOD


def _deadline(batch: Batch, now: datetime) -> Step:
    end = batch.ended_at or now
    late = end > batch.deadline
    span = duration(abs(batch.deadline - end))
    if batch.ended_at is None:
        note = f"{span} late" if late else f"in {span}"
    elif batch.sla_state is SlaState.NOT_APPLICABLE:
        note = no_sla(batch)
    elif batch.sla_state is SlaState.MISSED:
        note = "missed" if not late else f"missed by {span}"
    else:
        note = f"met, {span} to spare"
    missed = late or batch.sla_state is SlaState.MISSED
    return Step("Deadline", batch.deadline, note, Tone.BAD if missed else Tone.INFO)


PHASES: Final = {
    BatchStatus.VALIDATING: "Validating the input file",
    BatchStatus.IN_PROGRESS: "Running requests",
    BatchStatus.FINALIZING: "Finalizing: all requests have ended, writing the output files",
    BatchStatus.CANCELLING: "Cancelling: waiting for running requests, then writing the results so far",
    BatchStatus.COMPLETED: "Every request has a result",
    BatchStatus.FAILED: "The input file was rejected",
    BatchStatus.EXPIRED: "Expired: requests without a result at the deadline were dropped",
    BatchStatus.CANCELLED: "Cancelled: requests without a result were dropped",
}


class _Error(msgspec.Struct):
    message: str = ""


class _Answer(msgspec.Struct):
    error: _Error


def head(batch: Batch) -> None:
    """Show status, SLA and pools, and why the batch is at risk."""
    with ui.element("span").classes("badges"):
        badge(status_of_batch(batch.status))
        sla = sla_of(batch.sla_state)
        if batch.sla_state is SlaState.NOT_APPLICABLE:
            sla["text"] = no_sla(batch)
        badge(sla)
        for pool in batch.pools:
            pool_badge(pool)
        if batch.zero_retention:
            badge(ZERO_RETENTION)
        if origin := known_cells().names.origin(batch.id):
            badge(Badge(text=evacuated(origin), tone=Tone.NEUTRAL))
    if batch.risk is not None and batch.sla_state is SlaState.AT_RISK:
        reason = describe(batch.risk.reason, batch.risk.bound)
        label = ui.label(f"At risk since {absolute(batch.risk.since)}: {reason}.").mark("risk")
        label.props["title"] = utc(batch.risk.since)


def no_sla(batch: Batch) -> str:
    """Return why a batch has no SLA."""
    reason = "file rejected" if batch.status is BatchStatus.FAILED else "cancelled"
    return f"No SLA: {reason}"


def kept_until(batch: Batch) -> str:
    """Return until when the data of a final batch is kept, in words; empty for others."""
    if batch.data_ends_at is None:
        return ""
    verb = "kept until" if batch.data_ended_at is None else "deleted"
    return f"{verb} {absolute(batch.data_ends_at)}"


def tokens(batch: Batch) -> str:
    """Return a batch's input and output tokens, with the cached and the reasoning ones."""
    cached = f" ({number(batch.cached_tokens)} cached)" if batch.cached_tokens else ""
    reasoning = f" ({number(batch.reasoning_tokens)} reasoning)" if batch.reasoning_tokens else ""
    return f"{number(batch.input_tokens)}{cached} / {number(batch.output_tokens)}{reasoning}"


def _export(export: Export) -> str:
    error = f": {export.error}" if export.error else ""
    return f"{export.url} ({export.state}{error})"


def facts(details: BatchDetails) -> None:
    """Show the properties of a batch; empty ones are left out."""
    batch = details.batch
    properties = {
        "User": batch.user,
        "Tenant": details.tenant_name or "",
        "Model": batch.model or "",
        **{f"Fleet {part.fleet}": part_in_words(part) for part in details.parts},
        "Endpoint": batch.endpoint,
        "Completion window": batch.completion_window,
        "Priority": f"{batch.priority:+d}" if batch.priority else "",
        "Duration": "" if batch.ended_at is None else duration(batch.ended_at - batch.created_at),
        "Tokens (input / output)": tokens(batch),
        "Retries": number(batch.retries) if batch.retries else "",
        "Cost": cost_text(batch),
        "Imported from": batch.input_url or "",
        "Results copied to": "" if batch.export is None else _export(batch.export),
        "Requests and answers": kept_until(batch),
        "Trace id": "" if batch.trace is None else batch.trace.trace_id,
        # OpenAI clients name the user in the metadata; the user is already shown.
        **{
            f"Metadata: {key}": str(value)
            for key, value in (batch.metadata or {}).items()
            if (key, value) != ("user", batch.user)
        },
    }
    with ui.element("dl").classes("facts"):
        for name, value in properties.items():
            if value:
                with _fact(name):
                    ui.label(value)
        with _fact("Created"):
            moment_label(batch.created_at)
        with _fact("Files", "wide"):
            files(details.files, batch)


def part_in_words(part: BatchPart) -> str:
    """Return the requests of a fleet and their model in words."""
    return f"{part.model or 'Several models'}, {counted(part.lines, 'request')}"


@contextmanager
def _fact(name: str, classes: str = "") -> Iterator[None]:
    with ui.element("div").classes(classes):
        with ui.element("dt"):
            ui.label(name)
        with ui.element("dd"):
            yield


def progress(batch: Batch, eta: str) -> None:
    """Show the phase, the progress and the ETA."""
    done = batch.outcomes.completed + batch.outcomes.failed
    share = done / batch.total if batch.total else 0.0
    with ui.element("div").classes("progress-text"):
        ui.label(PHASES[batch.status]).mark("phase")
        ui.label(f"{number(done)} of {number(batch.total)} · {share:.0%}" if batch.total else "")
    bar = (
        ui.element("div")
        .classes("bar big")
        .props(
            f"role=progressbar aria-valuemin=0 aria-valuemax=100 aria-valuenow={int(share * 100)} "
            'aria-label="Requests done"'
        )
    )
    with bar:
        for part in parts_of(batch):
            ui.element("div").classes(f"fill-{part['tone']}").style(f"width: {part['width']}")
    if eta:
        ui.label(eta).classes("muted small").mark("eta")


def eta_of(batch: Batch, now: datetime) -> str:
    """Return the ETA of a batch in words; empty if unknown."""
    if batch.eta is None:
        return ""
    return f"Expected to finish in {duration(batch.eta - now)}, at {absolute(batch.eta)}"


def all_failed(batch: Batch) -> bool:
    """Return True if a batch is completed but all its requests failed."""
    return batch.status is BatchStatus.COMPLETED and 0 < batch.total == batch.outcomes.failed


def problems(batch: Batch) -> None:
    """Show why the file was refused, or that every request failed."""
    if all_failed(batch):
        with ui.element("div").classes("banner").props("role=status"):
            ui.label(f"Completed, but all requests failed ({number(batch.total)}).")
    if not batch.errors:
        return
    with ui.element("section").classes("card section"):
        ui.label(f"The input file was rejected: {counted(len(batch.errors), 'problem')}").classes(
            "failures"
        )
        with ui.element("ul").classes("errors scrolled") as region:
            region.props('tabindex=0 aria-label="Problems of the input file"')
            for problem in batch.errors[:20]:
                with ui.element("li"):
                    line = "file" if problem.line is None else f"line {number(problem.line)}"
                    ui.label(line).classes("count")
                    ui.label(f"{problem.message} ({problem.code})")


def notes(details: BatchDetails) -> None:
    """Show the counts of interruptions and escalations, and the newest notes first."""
    batch = details.batch
    counts = [
        f"{number(count)} {label}"
        for count, label in ((batch.interruptions, "interrupted"), (batch.escalations, "escalated"))
        if count
    ]
    ui.label(" · ".join(counts) or "No interruptions or escalations.").classes("muted")
    with ui.element("div").classes("scrolled") as region:
        region.props('role=region tabindex=0 aria-label="Newest events"')
        notes_list(details.notes)


def notes_list(events: Sequence[Note]) -> None:
    """Show notes in the given order."""
    with ui.element("ul").classes("notes"):
        for note in events:
            with ui.element("li").classes(note.kind):
                ui.label(words_of(note))
                ui.label(_context_text(note)).classes("small").props["title"] = utc(note.at)


def words_of(note: Note) -> str:
    """Return a note in words, with its cause if it has one."""
    kind = note.kind.capitalize().replace("_", " ")
    return f"{kind}: {note.cause}" if note.cause else kind


def _context_text(note: Note) -> str:
    position = counted(note.lines, "request") if note.line is None else f"line {number(note.line)}"
    parts = (position, note.pool.value, note.worker or "", absolute(note.at))
    return " · ".join(part for part in parts if part)


def errors(details: BatchDetails) -> None:
    """Show the most frequent errors, each with the first line that has it."""
    id_ = format_batch_id(details.batch.id)
    if letters := details.batch.outcomes.dead_lettered:
        ui.link(f"View {counted(letters, 'dead letter')}", f"/dead-letters?batch_id={id_}")
    if not details.errors:
        ui.label("No failed requests.").classes("muted")
        return
    with ui.element("ul").classes("errors"):
        for error in details.errors:
            with ui.element("li"):
                ui.label(number(error.lines)).classes("count")
                with ui.element("div"):
                    ui.label(error.code).classes("mono small")
                    ui.label(said(error.message)).classes("clamp")
                    ui.link(
                        f"first on line {number(error.first_line)}",
                        f"/batches/{id_}?line={error.first_line}",
                    ).classes("small")


def said(answer: str) -> str:
    """Return the message of an OpenAI-compatible error; other text stays as it is."""
    try:
        return msgspec.json.decode(answer, type=_Answer).error.message or answer
    except msgspec.DecodeError:
        return answer


def cost(details: BatchDetails) -> None:
    """Show the cost, and that of dedicated replicas alone."""
    amounts = details.batch.cost
    if amounts.all_dedicated == 0:
        ui.label("No cost yet: only accepted results count.").classes("muted")
        return
    ui.label(f"{_amount(amounts.total)} {amounts.currency}").classes("value").mark("cost")
    ui.label(
        f"spot {_amount(amounts.spot)}, dedicated {_amount(amounts.dedicated)}; all on dedicated: "
        f"{_amount(amounts.all_dedicated)} ({amounts.saving:.0%} saved)"
    ).classes("muted small")


def _amount(value: float) -> str:
    """Return an amount to the cent; below 1, to three significant digits."""
    return f"{value:,.2f}" if value >= 1 or value == 0 else f"{value:.3g}"


def files(batch_files: Sequence[BatchFile], batch: Batch) -> None:
    """Link to the files that can be downloaded, and to the inputs of failed requests."""
    folder = f"/batches/{format_batch_id(batch.id)}/files"
    with ui.element("div").classes("files"):
        for file in batch_files:
            name = f"{file.role.capitalize()} file"
            if file.bytes is None:
                ui.label(f"{name}: deleted or expired").classes("muted")
            else:
                with ui.element("div").classes("file"):
                    ui.link(f"{name}, {size(file.bytes)}", f"{folder}/{file.role}")
                    if file.expires_at is not None:
                        ui.label(f"Deleted on {day(file.expires_at)}").classes("muted small")
        if batch.ended_at is not None and batch.failed:
            ui.link("Download failed inputs", f"{folder}/{FAILED_INPUTS}")
