"""The page of one tenant's usage: limits, this month's cost, and paused pools."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fastapi import Request  # noqa: TC002 - read at run time, to know what the page takes
from nicegui import ui

from lowtide.core.errors import LowtideError
from lowtide.tenants.model import LIMITS
from portal.components.basics import StatCard, heading
from portal.components.frame import page
from portal.formats import absolute, ago, money, number, viewer_zone
from portal.listing import administration_tabs, tenant_choice
from portal.live import Live, Rebuilt
from portal.loading import load
from portal.pages.administration import USAGE, tenant_named, usage_address
from portal.pages.tenants import Meter, meter
from portal.polling import Subject
from portal.pulse import PULSE
from portal.queries import clean
from portal.services import services_for, tenants_for
from portal.sessions import current_principal

if TYPE_CHECKING:
    from datetime import tzinfo

    from lowtide.core.ids import TenantId
    from lowtide.core.pools import Cost
    from lowtide.tenants.usage import PausedPool, TenantUsage
    from portal.watching import Watching


def meters_of(usage: TenantUsage) -> dict[str, Meter]:
    """Return the use of each limit by its label."""
    return {
        LIMITS[name]: meter(usage.used[name], limit) for name, limit in asdict(usage.limits).items()
    }


def cost_note(cost: Cost) -> str:
    """Return a cost by pool, with the saving against dedicated alone."""
    return (
        f"spot {money(cost.spot)}, dedicated {money(cost.dedicated)}; all on dedicated: "
        f"{money(cost.all_dedicated)} ({cost.saving:.0%} saved)"
    )


def pause_note(pause: PausedPool, now: datetime, zone: tzinfo) -> str:
    """Return a pause in words, without who paused the pool."""
    since = f"{absolute(pause.since, zone)} ({ago(pause.since, now)})"
    return f"{pause.place.label.capitalize()} paused since {since}: its workers start no requests."


def install(watching: Watching, *, api_url: str) -> None:
    """Serve the page of a tenant's usage."""

    @page(USAGE)
    async def usage(request: Request) -> None:
        name = clean(request.query_params.get("tenant", ""))
        await UsagePage(watching, name).open(api_url)


class UsagePage:
    """An open page; operators name the tenant in the URL."""

    def __init__(self, watching: Watching, name: str) -> None:
        self._principal = current_principal()
        self._name = name
        self._live = Live(watching.poller)
        self._readings = watching.readings
        self._follower = ui.context.client.id
        self._zone = viewer_zone()
        self._subject: Subject[TenantUsage]

    async def open(self, api_url: str) -> None:
        """Build the page and keep it current, or explain why the tenant cannot be shown."""
        ui.context.client.on_delete(lambda: self._readings.unfollow(self._follower))
        with self._live.page("Usage", api_url=api_url):
            try:
                tenant = self._principal.tenant or await self._choose()
                if tenant is None:
                    ui.label("Choose a tenant to see its usage.").classes("muted")
                    return
                self._follow(tenant)
                await load(self._subject.first)
            except LowtideError as error:
                self._readings.unfollow(self._follower)
                ui.context.client.status_code = error.status
                with ui.element("div").classes("card section"):
                    ui.label(error.message).classes("break")
                return
            self._build()
        self._live.keep(self._show, self._subject.look)

    async def _choose(self) -> TenantId | None:
        """Offer the tenants to an operator; return the one in the URL, if any; raises NotFound."""
        administration_tabs(USAGE)
        tenants = await load(lambda: tenants_for(self._principal))
        tenant_choice(
            sorted(tenants.values()),
            self._name,
            lambda name: ui.navigate.to(usage_address(name)),
            with_all=False,
        )
        return tenant_named(self._name, tenants)

    def _follow(self, tenant: TenantId) -> None:
        store = services_for(self._principal).usage
        subject = Subject(("usage", self._principal.tenant, tenant), lambda: store.read(tenant))
        self._subject = self._readings.follow(self._follower, subject, lambda: self._live.paused)

    def _build(self) -> None:
        self._problem = ui.label("").classes("banner").props("role=status")
        self._pauses = Rebuilt(_pauses)
        with ui.element("section").classes("card section"):
            self._tenant = Rebuilt(_title)
            self._meters = Rebuilt(_meters, "figures")
            ui.label(
                "Unfinished requests have no result yet, and enqueued tokens are an estimate of their "
                "input. API requests are counted only with a limit. Days and months are in UTC."
            ).classes("muted small")
        with ui.element("section").classes("card section"):
            heading("This month")
            self._since = ui.label("").classes("muted small")
            self._costs = Rebuilt(_costs, "section")
        with ui.element("div").classes("cards"):
            names = ("Requests", "Input tokens", "Output tokens")
            self._totals = [StatCard(name) for name in names]

    def _show(self) -> None:
        reading = self._subject.reading
        # During an outage the frame has a banner.
        self._problem.set_visibility(reading.problem is not None and PULSE.answering)
        if reading.problem is not None:
            self._problem.text = reading.problem.message
        if (usage := reading.value) is None:
            return
        now, month = datetime.now(UTC), usage.month
        self._pauses.show(tuple(pause_note(pause, now, self._zone) for pause in usage.paused))
        self._tenant.show(f"Limits of {usage.tenant}")
        self._meters.show(meters_of(usage))
        self._since.text = f"Results accepted since {absolute(month.since, UTC)} UTC"
        self._costs.show(month.costs)
        counts = (month.requests, month.input_tokens, month.output_tokens)
        for card, count in zip(self._totals, counts, strict=True):
            card.show(number(count))


def _title(text: str) -> None:
    heading(text)


def _pauses(notes: tuple[str, ...]) -> None:
    if notes:
        with ui.element("div").classes("notice").props("role=status"):
            for note in notes:
                ui.label(note)


def _meters(meters: dict[str, Meter]) -> None:
    for label, value in meters.items():
        with ui.element("div").classes("meter"):
            ui.label(label).classes("muted small")
            ui.label(_use(value)).mark(label)
            if not value["limited"]:
                continue
            bar = ui.element("div").classes("bar")
            bar.props(f"role=progressbar aria-valuemin=0 aria-valuemax=100 aria-label='{label}'")
            bar.props["aria-valuenow"] = value["percent"]
            with bar:
                tone = "fill-warn" if value["full"] else "fill-info"
                ui.element("div").classes(tone).style(f"width: {value['width']}")


def _use(meter: Meter) -> str:
    if meter["limited"]:
        return f"{meter['used']} {meter['limit']}"
    return meter["limit"] if meter["used"] == "—" else f"{meter['used']}, {meter['limit']}"


def _costs(costs: tuple[Cost, ...]) -> None:
    if not any(cost.all_dedicated for cost in costs):
        ui.label("No cost yet: only accepted results count.").classes("muted")
    for cost in costs:
        if cost.all_dedicated:
            with ui.element("div").classes("stat"):
                ui.label(f"{money(cost.total)} {cost.currency}").classes("value").mark("cost")
                ui.label(cost_note(cost)).classes("muted small")
