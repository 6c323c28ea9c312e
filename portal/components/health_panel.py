"""Whether the parts answer."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from nicegui import ui

from portal.components.badges import Badge
from portal.components.headings import heading
from portal.formats import absolute, ago, counted, milliseconds
from portal.theme import Tone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowtide.domain.overview import PoolLoad, Reachability

STALE_AFTER = timedelta(seconds=30)


class HealthPanel:
    """Database and API, each with the age of what is known."""

    def __init__(self) -> None:
        with ui.element("section").classes("card section"):
            heading("Health")
            self._database = ProbeRow("Database")
            self._api = ProbeRow("API")
            self._workers = FactRow("Workers")

    def show(self, database: Reachability | None, api: Reachability | None, now: datetime) -> None:
        """Show what the last probes found."""
        self._database.show(database, now)
        self._api.show(api, now)

    def show_workers(self, pools: Sequence[PoolLoad]) -> None:
        """Show whether there are workers for what waits."""
        self._workers.show_badge(judge_workers(pools))


class FactRow:
    """A name, a badge and a few words."""

    def __init__(self, name: str) -> None:
        with ui.element("div").classes("probe"):
            ui.label(name).classes("name")
            self._badge = ui.label("").classes("badge").mark(f"{name} health")
            self._detail = ui.label("")
            self._checked = ui.label("").classes("muted small")
        self._tone = Tone.NEUTRAL

    def show_badge(self, state: Badge) -> None:
        """Show a state."""
        self._badge.text = state["text"]
        self._badge.classes(remove=f"badge-{self._tone}", add=f"badge-{state['tone']}")
        self._tone = state["tone"]

    def show_detail(self, detail: str) -> None:
        """Show a few words beside the badge."""
        self._detail.text = detail


class ProbeRow(FactRow):
    """What a probe found, and when."""

    def show(self, found: Reachability | None, now: datetime) -> None:
        """Show the last answer; one that is too old is stale."""
        self.show_badge(judge(found, now))
        if found is not None:
            self._detail.text = found.problem or milliseconds(found.latency)
            self._checked.text = f"checked {ago(found.checked_at, now)}"
            self._checked.props["title"] = absolute(found.checked_at)


def judge(found: Reachability | None, now: datetime) -> Badge:
    """Return the state behind a probe; what is known for too long is stale."""
    if found is None:
        return Badge(text="Not checked yet", tone=Tone.NEUTRAL)
    if now - found.checked_at > STALE_AFTER:
        return Badge(text="Stale", tone=Tone.WARN)
    if found.reachable:
        return Badge(text="Reachable", tone=Tone.GOOD)
    return Badge(text="Not reachable", tone=Tone.BAD)


def judge_workers(pools: Sequence[PoolLoad]) -> Badge:
    """Return the state of the workers; none at all is fine while nothing waits."""
    if workers := sum(load.workers for load in pools):
        return Badge(text=counted(workers, "worker"), tone=Tone.GOOD)
    if any(load.queued for load in pools):
        return Badge(text="None yet", tone=Tone.WARN)
    return Badge(text="Scaled to zero", tone=Tone.NEUTRAL)
