"""One request, to look into: input, output, and what happened to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from nicegui import ui

from lowtide.domain.batch_details import MOST_SHOWN
from portal.components.badges import badge, pool_badge, status_badge
from portal.components.batch_facts import notes_list
from portal.components.headings import heading
from portal.components.line_table import row_of, tried
from portal.formats import absolute, number, size

if TYPE_CHECKING:
    from lowtide.domain.batch_details import LineDetails
    from lowtide.domain.requests import RequestState


def open_drawer(details: LineDetails) -> None:
    """Show a request at the side of the page until it is closed."""
    record = details.record
    with (
        ui.dialog().props('position=right aria-label="Request"') as drawer,
        ui.element("div").classes("card drawer section"),
    ):
        with ui.element("div").classes("batch-line"):
            heading(f"Line {number(record.state.line)}")
            ui.button(icon="close", on_click=drawer.close, color=None).props(
                'flat round dense aria-label="Close" autofocus'
            )
        ui.label(record.state.custom_id).classes("break")
        _state(record.state, record.worker)
        if record.state.error_code or record.state.error_message:
            ui.label(row_of(record.state)["error"]).classes("banner break")
        if record.notes:
            heading("What happened")
            notes_list(record.notes)
        heading("Input")
        missing = "The input file is deleted or has expired."
        _source("Input", details.input, record.length, missing)
        heading("Output")
        if record.body is not None:
            tokens = f"{number(record.input_tokens)} tokens in, {number(record.output_tokens)} out"
            ui.label(tokens).classes("muted small")
        body = None if record.body is None else record.body.encode("utf-8", "surrogatepass")
        _source("Output", body, record.body_bytes, "There is none.")
    drawer.on("hide", drawer.delete)
    drawer.open()


def exact(content: bytes, whole: int) -> str:
    """Return JSON on lines of its own, every token as it was sent: digits, escapes, order of keys.

    What is no JSON, or is the beginning of `whole` bytes, stays as it is.
    """
    if len(content) < whole or whole > MOST_SHOWN:
        kept = content[:MOST_SHOWN]
        return (
            f"{kept.decode('utf-8', 'replace')}\n… {size(whole - len(kept))} more: this is shown in "
            "part, the batch's files have all of it"
        )
    try:
        return msgspec.json.format(content, indent=2).decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return content.decode("utf-8", "replace")


def _state(state: RequestState, worker: str | None) -> None:
    with ui.element("div").classes("badges"):
        status_badge(state.status)
        if state.pool is not None:
            pool_badge(state.pool)
        for flag in row_of(state)["flags"]:
            if state.pool is None or flag["text"] != state.pool.value:
                badge(flag)
    parts = [tried(state.attempts), worker or ""]
    for name, at in (
        ("queued", state.queued_at),
        ("started", state.started_at),
        ("finished", state.finished_at),
    ):
        parts.append("" if at is None else f"{name} {absolute(at)}")
    ui.label(" · ".join(part for part in parts if part)).classes("muted small")


def _source(name: str, content: bytes | None, whole: int, missing: str) -> None:
    if content is None:
        ui.label(missing).classes("muted")
        return
    shown = ui.element("pre").classes("source mono").props(f'tabindex=0 aria-label="{name}"')
    shown.props("role=region")
    with shown:
        ui.label(exact(content, whole)).style("white-space: pre-wrap")
