"""The health panel, its rows and their badges."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from nicegui import ui

from lowtide.core.pools import Pool
from lowtide.status.health import Condition
from portal.components.basics import Badge, heading
from portal.formats import ago, counted, hint, milliseconds
from portal.theme import Tone

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowtide.status.health import ComponentHealth
    from lowtide.status.snapshot import SystemSnapshot
    from lowtide.status.watch import Reachability
    from portal.watching import Diagnosis


STALE_AFTER = timedelta(seconds=30)
STALE: Final = Badge(text="Stale", tone=Tone.WARN)


class HealthPanel:
    """The health of database, API, workers and other components."""

    def __init__(self) -> None:
        with ui.element("section").classes("card section"):
            heading("Health")
            self._database = ProbeRow("Database")
            self._api = ProbeRow("API")
            self._workers = FactRow("Workers")
            self._parts = FactRow("Components")
            ui.link("View all components", "/health").classes("small")

    def show(self, database: Reachability | None, now: datetime) -> None:
        """Show the last probe of the database."""
        self._database.show(database, now)

    def show_api(self, api: Reachability | None, now: datetime) -> None:
        """Show the last probe of the API."""
        self._api.show(api, now)

    def show_diagnosis(self, diagnosis: Diagnosis | None, now: datetime, *, with_api: bool) -> None:
        """Show the number of bad components; `with_api` adds the API's health by its functions."""
        if diagnosis is None:
            self._parts.show_badge(judge(None, now))
            return
        stale = now - diagnosis.looked_at > STALE_AFTER
        if with_api:
            self._api.show_badge(badge_of(diagnosis.api, stale=stale))
            self._api.show_detail(diagnosis.api.detail)
        self._parts.show_badge(_summary(diagnosis, stale=stale))
        self._parts.show_detail(_names(diagnosis))

    def show_workers(self, snapshot: SystemSnapshot) -> None:
        """Show the state of the workers."""
        self._workers.show_badge(judge_workers(snapshot))


TONES: Final[Mapping[Condition, Tone]] = {
    Condition.FINE: Tone.GOOD,
    Condition.IDLE: Tone.NEUTRAL,
    Condition.UNKNOWN: Tone.NEUTRAL,
    Condition.DOUBTFUL: Tone.WARN,
    Condition.BAD: Tone.BAD,
}


def badge_of(finding: ComponentHealth, *, stale: bool) -> Badge:
    """Return the badge of a component's health; `stale` overrides it."""
    return STALE if stale else Badge(text=finding.word, tone=TONES[finding.condition])


def _summary(diagnosis: Diagnosis, *, stale: bool) -> Badge:
    if stale:
        return STALE
    if bad := diagnosis.count(Condition.BAD):
        return Badge(text=f"{bad} unhealthy", tone=Tone.BAD)
    if doubtful := diagnosis.count(Condition.DOUBTFUL):
        return Badge(text=counted(doubtful, "warning"), tone=Tone.WARN)
    return Badge(text="All healthy", tone=Tone.GOOD)


def _names(diagnosis: Diagnosis) -> str:
    unhealthy = (Condition.BAD, Condition.DOUBTFUL)
    return "; ".join(part.part for part in diagnosis.parts if part.condition in unhealthy)


class FactRow:
    """A row with a name, a badge, a detail and an age."""

    def __init__(self, name: str) -> None:
        with ui.element("div").classes("probe") as self.row:
            ui.label(name).classes("name")
            self._badge = ui.label("").classes("badge").mark(f"{name} health")
            self._detail = ui.label("").classes("break")
            self._checked = ui.label("").classes("muted small")
        self._tone = Tone.NEUTRAL

    def show_badge(self, state: Badge) -> None:
        """Show a badge."""
        self._badge.text = state["text"]
        self._badge.classes(remove=f"badge-{self._tone}", add=f"badge-{state['tone']}")
        self._tone = state["tone"]

    def show_detail(self, detail: str) -> None:
        """Show a detail beside the badge."""
        self._detail.text = detail

    def show_age(self, text: str, at: datetime | None) -> None:
        """Show an age; the tooltip is the moment `at`."""
        self._checked.text = text
        if at is not None:
            self._checked.props["title"] = hint(at)


class ProbeRow(FactRow):
    """The last result of a probe, with its age."""

    def show(self, reachability: Reachability | None, now: datetime) -> None:
        """Show the last result; stale after 30 s."""
        self.show_badge(judge(reachability, now))
        if reachability is not None:
            self.show_detail(reachability.problem or milliseconds(reachability.latency))
            self.show_age(f"checked {ago(reachability.checked_at, now)}", reachability.checked_at)


def judge(reachability: Reachability | None, now: datetime) -> Badge:
    """Return the badge of a probe's result; stale after 30 s."""
    if reachability is None:
        return Badge(text="Not checked yet", tone=Tone.NEUTRAL)
    if now - reachability.checked_at > STALE_AFTER:
        return STALE
    if reachability.reachable:
        return Badge(text="Reachable", tone=Tone.GOOD)
    return Badge(text="Unreachable", tone=Tone.BAD)


def judge_workers(snapshot: SystemSnapshot) -> Badge:
    """Return the badge of the workers; none at all is fine while no request is queued."""
    if workers := sum(map(snapshot.workers, Pool)):
        return Badge(text=counted(workers, "worker"), tone=Tone.GOOD)
    if any(snapshot.depth(pool).queued for pool in Pool):
        return Badge(text="No workers yet", tone=Tone.WARN)
    return Badge(text="Scaled to zero", tone=Tone.NEUTRAL)
