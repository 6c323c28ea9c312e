"""Everything the portal watches, and the component health derived from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nicegui import ui

from lowtide.core.ids import now
from lowtide.core.pools import Pool
from lowtide.status import findings
from lowtide.status.evidence import EvidenceStore, EvidenceWatch, scales_of
from lowtide.status.findings import Condition, Finding
from lowtide.status.history import HistoryBook, HistoryStore
from lowtide.status.operations import OperationsStore, OperationsWatch, ScaleRule
from lowtide.status.overview import Concern, OverviewStore, Probing, Watch
from portal.components.alerts import Alertmanager
from portal.polling import ApiProbe, Poller, Readings, Subject
from portal.services import in_thread

if TYPE_CHECKING:
    from datetime import datetime

    from lowtide.app import App
    from lowtide.status.evidence import Evidence, EvidenceSeen
    from lowtide.status.history import History, HistoryRange
    from lowtide.status.operations import OperationsSeen
    from portal.live import Live


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The health of all components; `looked_at` is the time at which `evidence` was read."""

    looked_at: datetime
    evidence: Evidence
    api: Finding
    broker: Finding
    functions: tuple[Finding, ...]
    workers: tuple[Finding, ...]
    engines: tuple[Finding, ...]
    autoscaler: tuple[Finding, ...]

    @property
    def parts(self) -> tuple[Finding, ...]:
        """All components but the API."""
        return (
            self.broker,
            *self.functions,
            *self.workers,
            *self.engines,
            *self.autoscaler,
        )

    def count(self, condition: Condition) -> int:
        """Return the number of `parts` in this condition."""
        return sum(part.condition is condition for part in self.parts)

    def concerns(self) -> tuple[Concern, ...]:
        """Return the bad components that the queue readings do not already report."""
        return tuple(
            Concern(f"{part.part}: {part.word.lower()}, {part.detail}", "/health")
            for part in (*self.functions, *self.engines, *self.autoscaler)
            if part.condition is Condition.BAD and part.part != "schedule"
        )


def diagnose(seen: EvidenceSeen, operations: OperationsSeen) -> Diagnosis | None:
    """Derive the component health from the last readings; None before the first."""
    evidence, reading = seen.evidence, operations.reading
    if evidence is None or seen.looked_at is None:
        return None
    return Diagnosis(
        looked_at=seen.looked_at,
        evidence=evidence,
        api=findings.api(evidence),
        broker=findings.broker(evidence, reading),
        functions=findings.functions(evidence, reading),
        workers=findings.workers(evidence, reading),
        engines=findings.engines(evidence),
        autoscaler=findings.autoscaler(scales_of(operations.samples), evidence.at),
    )


@dataclass(frozen=True, slots=True)
class Watching:
    """The poller, and everything it keeps current for all pages."""

    poller: Poller
    operations: OperationsWatch
    probing: Probing
    readings: Readings
    history: HistoryBook
    evidence: EvidenceWatch
    alerts: Alertmanager | None
    probes_api: bool

    def diagnose(self) -> Diagnosis | None:
        """Derive the component health from the last readings; None before the first."""
        return diagnose(self.evidence.seen, self.operations.seen)


def watch_everything(lowtide: App) -> Watching:
    """Build the watches and the poller; nothing is read before the poller starts."""
    settings, database = lowtide.settings, lowtide.database
    watch = Watch(OverviewStore(database), ApiProbe(settings.api_url), clock=now)
    rules = {
        Pool.SPOT: ScaleRule(settings.spot_rows_per_replica, settings.spot_replicas),
        Pool.DEDICATED: ScaleRule(settings.dedicated_rows_per_replica, settings.dedicated_replicas),
    }
    operations = OperationsWatch(OperationsStore(database), rules)

    def check_objects() -> None:
        # The store is built inside the probe, which reports its errors.
        lowtide.objects.check()

    probes = {"Object store": check_objects} if settings.object_store_url else {}
    probing = Probing(probes, clock=now)
    readings = Readings()
    history = HistoryBook(HistoryStore(database))
    evidence = EvidenceWatch(EvidenceStore(database), clock=now)
    address = settings.alertmanager_api_url or settings.alertmanager_url
    alerts = None if address is None else Alertmanager(address, clock=now)
    asked = [probing.probe, evidence.look]
    if settings.portal_probes_api:
        asked.append(watch.probe)
    if alerts is not None:
        asked.append(alerts.look)
    poller = Poller(watch, looks=[operations.look, readings.look], probes=asked)
    return Watching(
        poller,
        operations,
        probing,
        readings,
        history,
        evidence,
        alerts,
        settings.portal_probes_api,
    )


class FollowedHistory:
    """A history range that the poller reads while its page is open."""

    def __init__(self, watching: Watching, live: Live) -> None:
        self._watching = watching
        self._live = live
        self._follower = ui.context.client.id
        self._subject: Subject[History] | None = None
        self._wanted: HistoryRange | None = None
        ui.context.client.on_delete(lambda: watching.readings.unfollow(self._follower))

    @property
    def seen(self) -> History | None:
        """The last good reading."""
        return None if self._subject is None else self._subject.reading.value

    async def follow(self, wanted: HistoryRange) -> None:
        """Switch to this range, and read it once."""
        self._wanted = wanted
        book = self._watching.history
        subject = Subject(("history", wanted), lambda: book.read(wanted))
        followed = self._watching.readings.follow(
            self._follower, subject, lambda: self._live.paused
        )
        await in_thread(followed.look)
        # A range chosen during the read takes precedence.
        if self._wanted is wanted:
            self._subject = followed
