"""The search page: what the search box of every page leads to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from fastapi import Request  # noqa: TC002 - read at run time, to know what the page takes
from nicegui import ui

from lowtide.core.errors import LowtideError
from lowtide.core.ids import format_batch_id
from lowtide.search.model import Kind
from portal.components.basics import evacuated, heading
from portal.components.frame import SEARCH, frame, page
from portal.formats import absolute
from portal.loading import load
from portal.queries import LineQuery
from portal.services import known_cells, services_for
from portal.sessions import current_principal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.search.model import Match, MatchedBatch, SearchResult


_HEADINGS: Final = {Kind.BATCH: "Batches", Kind.FILE: "Files", Kind.REQUEST: "Requests"}


def install(*, api_url: str) -> None:
    """Serve the search page."""

    @page(SEARCH)
    async def search(request: Request) -> None:
        text = request.query_params.get("q", "")
        principal = current_principal()
        with frame("Search", api_url=api_url, on_interval=None):
            heading("Search", 1)
            if not text:
                ui.label("Enter an id, a custom_id, a user or a metadata value.").classes("muted")
                return
            service = services_for(principal).search
            try:
                result = await load(lambda: service.find(principal.tenant, text))
            except LowtideError as error:
                ui.label(error.message).classes("banner").props("role=alert")
                return
            exact = result.only_exact
            if exact is not None and (path := path_of(exact)) is not None:
                # Replaced, so that "back" does not lead here again.
                ui.run_javascript(f"location.replace({json.dumps(path)})")
            _show(result)


def path_of(match: Match) -> str | None:
    """Return the page of a match; a file has that of its batch, and none without one."""
    if match.batch is None:
        return None
    return LineQuery(match.batch.id, line=match.line).address()


def _show(result: SearchResult) -> None:
    with ui.element("div").classes("section").props("role=status"):
        if not result.matches:
            ui.label("Nothing found.")
    for kind, title in _HEADINGS.items():
        matches = [match for match in result.matches if match.kind is kind]
        if matches:
            _show_kind(title, matches, more=kind in result.more)


def _show_kind(title: str, matches: Sequence[Match], *, more: bool) -> None:
    with ui.element("section").classes("card section"):
        heading(title)
        with ui.element("ul").classes("matches"):
            for match in matches:
                with ui.element("li"):
                    _show_match(match)
        if more:
            ui.label("There are more: search for a longer text.").classes("muted small")


def _show_match(match: Match) -> None:
    name, path = match.name if match.kind is Kind.REQUEST else match.id, path_of(match)
    if path is None:
        ui.label(name or match.id).classes("break")
    else:
        ui.link(name or match.id, path).classes("break")
    facts = [f"{match.field} {match.value}"] if match.value not in {name, match.id} else []
    if match.kind is Kind.FILE and match.name:
        facts.append(match.name)
    if match.batch is None:
        facts.append("no batch reads it")
    else:
        facts += _facts_of(match.batch, with_id=match.kind is not Kind.BATCH)
    if match.tenant_name:
        facts.append(match.tenant_name)
    if (batch := match.batch) is not None and (origin := known_cells().names.origin(batch.id)):
        facts.append(evacuated(origin))
    ui.label(" · ".join(facts)).classes("muted small break")


def _facts_of(batch: MatchedBatch, *, with_id: bool) -> list[str]:
    facts = [format_batch_id(batch.id)] if with_id else []
    facts += [batch.user, batch.status.value.replace("_", " "), absolute(batch.created_at)]
    return facts
