"""What the portal watches, put together from the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowtide import wiring
from lowtide.domain.pools import Pool
from lowtide.postgres.evidence import PostgresEvidence
from lowtide.postgres.history import PostgresHistory
from lowtide.postgres.operations import PostgresOperations
from lowtide.postgres.overview import PostgresOverview
from lowtide.services.evidence import EvidenceWatch
from lowtide.services.history import HistoryBook
from lowtide.services.operations import OperationsWatch, ScaleRule
from lowtide.services.overview import Watch
from lowtide.services.probing import Probing
from portal.alertmanager import Alertmanager
from portal.diagnosis import diagnose
from portal.polling import Poller
from portal.probes import ApiProbe
from portal.readings import Readings

if TYPE_CHECKING:
    from lowtide.settings import Settings
    from portal.diagnosis import Diagnosis


@dataclass(frozen=True, slots=True)
class Watching:
    """The one poller, and what it keeps current for all pages."""

    poller: Poller
    operations: OperationsWatch
    probing: Probing
    readings: Readings
    history: HistoryBook
    evidence: EvidenceWatch
    alerts: Alertmanager | None
    probes_api: bool

    def diagnose(self) -> Diagnosis | None:
        """Return what the last readings say of every part; None before the first."""
        return diagnose(self.evidence.seen, self.operations.seen)


def watch_everything(settings: Settings) -> Watching:
    """Return what is watched; nothing is read before the poller starts."""
    database = wiring.database()
    watch = Watch(PostgresOverview(database), ApiProbe(settings.api_url), clock=wiring.now)
    rules = {
        Pool.SPOT: ScaleRule(settings.spot_rows_per_replica, settings.spot_replicas),
        Pool.DEDICATED: ScaleRule(settings.dedicated_rows_per_replica, settings.dedicated_replicas),
    }
    operations = OperationsWatch(PostgresOperations(database), rules)
    probes = {"Object store": lambda: wiring.objects().check()}
    probing = Probing(probes if settings.object_store_url else {}, clock=wiring.now)
    readings = Readings()
    history = HistoryBook(PostgresHistory(database))
    evidence = EvidenceWatch(PostgresEvidence(database), clock=wiring.now)
    address = settings.alertmanager_api_url or settings.alertmanager_url
    alerts = None if address is None else Alertmanager(address, clock=wiring.now)
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
