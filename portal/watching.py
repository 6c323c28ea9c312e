"""Everything the portal watches, and the component health derived from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.core.ids import now
from lowtide.services import fleets, scales
from lowtide.status import health
from lowtide.status.concerns import Concern
from lowtide.status.health import ComponentHealth, Condition
from lowtide.status.history import HistoryBook, HistoryStore
from lowtide.status.watch import Probe, SystemWatch, scales_of
from portal.cells import KnownCells
from portal.components.alerts import Alertmanager
from portal.polling import ApiProbe, Poller, Readings, Subject

if TYPE_CHECKING:
    from datetime import datetime

    from lowtide.app import App
    from lowtide.status.history import History, HistoryRange
    from lowtide.status.snapshot import SystemSnapshot
    from lowtide.status.watch import Seen
    from portal.live import Live


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The health of all components; `looked_at` is the time at which `snapshot` was read."""

    looked_at: datetime
    snapshot: SystemSnapshot
    api: ComponentHealth
    broker: ComponentHealth
    functions: tuple[ComponentHealth, ...]
    workers: tuple[ComponentHealth, ...]
    engines: tuple[ComponentHealth, ...]
    lost_engines: tuple[ComponentHealth, ...]
    autoscaler: tuple[ComponentHealth, ...]

    @property
    def parts(self) -> tuple[ComponentHealth, ...]:
        """All components but the API."""
        return (
            self.broker,
            *self.functions,
            *self.workers,
            *self.engines,
            *self.lost_engines,
            *self.autoscaler,
        )

    def count(self, condition: Condition) -> int:
        """Return the number of `parts` in this condition."""
        return sum(part.condition is condition for part in self.parts)

    def concerns(self) -> tuple[Concern, ...]:
        """Return the bad components that `concerns` of the snapshot do not already report."""
        return tuple(
            Concern(f"{part.part}: {part.word.lower()}, {part.detail}", "/health")
            for part in (*self.functions, *self.engines, *self.autoscaler)
            if part.condition is Condition.BAD and part.part != "schedule"
        )


def diagnose(reading: Seen) -> Diagnosis | None:
    """Derive the component health from the last snapshot; None before the first."""
    snapshot = reading.snapshot
    if snapshot is None or reading.looked_at is None:
        return None
    return Diagnosis(
        looked_at=reading.looked_at,
        snapshot=snapshot,
        api=health.api(snapshot),
        broker=health.broker(snapshot),
        functions=health.functions(snapshot),
        workers=health.workers(snapshot),
        engines=health.engines(snapshot),
        lost_engines=health.lost_engines(snapshot),
        autoscaler=health.autoscaler(scales_of(reading.samples), snapshot.at),
    )


@dataclass(frozen=True, slots=True)
class Watching:
    """The poller, and everything it keeps current for all pages.

    `api` and `objects` are None where they are not probed.
    """

    poller: Poller
    system: SystemWatch
    readings: Readings
    history: HistoryBook
    api: Probe | None
    objects: Probe | None
    alerts: Alertmanager | None
    cells: KnownCells

    def diagnose(self) -> Diagnosis | None:
        """Derive the component health from the last snapshot; None before the first."""
        return diagnose(self.system.seen)


def watch_everything(lowtide: App) -> Watching:
    """Build the watches and the poller; nothing is read before the poller starts."""
    settings = lowtide.settings
    forecast = lowtide.services.forecaster.with_eta
    by_fleet = {fleet.name: scales(fleet) for fleet in fleets(settings)}
    system = SystemWatch(lowtide.snapshots, by_fleet, clock=now, forecast=forecast)
    readings = Readings()
    api = objects = alerts = None
    if settings.portal_probes_api:
        api = Probe(ApiProbe(settings.api_url), clock=now)
    if settings.object_store_url:
        # The store is built inside the probe, which reports its errors.
        objects = Probe(lambda: lowtide.objects.check(), clock=now)  # noqa: PLW0108
    if address := settings.alertmanager_api_url or settings.alertmanager_url:
        alerts = Alertmanager(address, clock=now)
    cells = KnownCells.of(settings, clock=now)
    probes = [probe.look for probe in (api, objects, alerts, cells.watch) if probe is not None]
    poller = Poller(system, looks=[readings.look], probes=probes)
    history = HistoryBook(HistoryStore(lowtide.database))
    return Watching(poller, system, readings, history, api, objects, alerts, cells)


class FollowedHistory:
    """A history range that the poller reads while its page is open."""

    def __init__(self, watching: Watching, live: Live) -> None:
        self._watching = watching
        self._live = live
        self._follower = ui.context.client.id
        self._subject: Subject[History] | None = None
        self._wanted: tuple[HistoryRange, str | None] | None = None
        ui.context.client.on_delete(lambda: watching.readings.unfollow(self._follower))

    @property
    def seen(self) -> History | None:
        """The last good reading."""
        return None if self._subject is None else self._subject.reading.value

    async def follow(self, history_range: HistoryRange, fleet: str | None = None) -> None:
        """Switch to this range, of one fleet or of all, and read it once."""
        wanted = self._wanted = history_range, fleet
        book = self._watching.history
        subject = Subject(("history", *wanted), lambda: book.read(*wanted))
        followed = self._watching.readings.follow(
            self._follower, subject, lambda: self._live.paused
        )
        await followed.read()
        # A range or fleet chosen during the read takes precedence.
        if self._wanted == wanted:
            self._subject = followed
