"""The services behind the API and the portal, on one set of connections."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from lowtide.core.errors import InvalidRequest
from lowtide.core.ids import ids_of_cell, now
from lowtide.core.pools import Pool
from lowtide.settings import Admission

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from sqlalchemy import Engine

    from lowtide.batches.admission import AdmissionPolicy
    from lowtide.batches.browsing import BatchBrowser, BatchCancellation, BatchLists
    from lowtide.batches.forecast import Forecaster
    from lowtide.batches.ledger_keeper import LedgerKeeper
    from lowtide.batches.sealed_answers import Answers
    from lowtide.batches.service import Batches, Requests
    from lowtide.batches.workload import FleetCapacity
    from lowtide.core.ids import TenantId
    from lowtide.core.pools import Prices
    from lowtide.dead_letters.copies import Copies
    from lowtide.dead_letters.requeue import Requeuer
    from lowtide.dead_letters.service import DeadLetters
    from lowtide.engines.catalog import ModelCatalog
    from lowtide.events.publisher import Publisher
    from lowtide.explain.service import Explainer
    from lowtide.files.lines import Limits, ModelCounts
    from lowtide.files.presigned import PresignedDownloads
    from lowtide.files.service import Files
    from lowtide.fleets.model import Fleet, Fleets
    from lowtide.objects.data_keys import DataKeys, WrappedKey
    from lowtide.objects.joined import JoinedObjects
    from lowtide.objects.presigned import Presigner
    from lowtide.planning.demand import Capacity, PoolScale
    from lowtide.reruns.service import Reruns
    from lowtide.search.service import Search
    from lowtide.settings import Settings
    from lowtide.status.quotes import Quotes
    from lowtide.telemetry.tracing import Tracer
    from lowtide.tenants.usage import UsageStore
    from lowtide.uploads.service import Uploads


def line_limits(settings: Settings) -> Limits:
    """Return the limits on input files."""
    from lowtide.files.checks import MAX_MODELS
    from lowtide.files.lines import Limits

    return Limits(
        max_lines=settings.max_batch_lines,
        max_line_bytes=settings.max_line_bytes,
        max_models=1 if settings.one_model_per_file else MAX_MODELS,
        prefix_order=settings.prefix_order,
    )


def fleets(settings: Settings) -> Fleets:
    """Return the declared fleets; raises ValueError for an invalid file."""
    from lowtide.fleets.file import read_fleets

    return read_fleets(settings)


def served_fleet(settings: Settings) -> Fleet:
    """Return the fleet of a worker; without a declaration, the settings describe it."""
    from lowtide.fleets.file import default_fleet

    return fleets(settings).get(settings.fleet) or default_fleet(settings)


def capacity(settings: Settings, fleet: Fleet) -> Capacity:
    """Return the configured capacity of a fleet's dedicated workers."""
    from lowtide.planning.demand import Capacity

    return Capacity(
        rate=fleet.dedicated.rate,
        replicas=fleet.dedicated.max_replicas,
        cold_start=fleet.dedicated.cold_start,
        margin=settings.safety_margin,
        tick=settings.tick,
        in_flight=fleet.engine.concurrency or settings.assumed_concurrency,
        searches=fleet.engine.searches,
    )


def scales(fleet: Fleet) -> dict[Pool, PoolScale]:
    """Return the scaling of each pool of a fleet."""
    from lowtide.planning.demand import PoolScale

    specs = {pool: fleet.pool(pool) for pool in Pool}
    return {
        pool: PoolScale(spec.rows_per_replica, spec.max_replicas, spec.min_replicas)
        for pool, spec in specs.items()
    }


def capacities(settings: Settings) -> dict[str, FleetCapacity]:
    """Return the configured capacity of each fleet, which forecasts count on."""
    from lowtide.batches.workload import FleetCapacity

    return {
        fleet.name: FleetCapacity(
            capacity(settings, fleet), scales(fleet)[Pool.SPOT], 1.5 * settings.retry_base
        )
        for fleet in fleets(settings)
    }


def prices(settings: Settings, fleet: Fleet) -> Prices:
    """Return the prices of a fleet's replicas."""
    from lowtide.core.pools import Prices

    return Prices(fleet.spot.price, fleet.dedicated.price, settings.currency)


class Services:
    """All services, built on first use, so that a function imports only what it needs.

    With connections of the tenant role, row-level security limits them to one tenant. `objects`,
    `data_keys` and `ledger` are called only by services that need them.
    """

    def __init__(
        self,
        settings: Settings,
        database: Engine,
        objects: Callable[[], JoinedObjects],
        data_keys: Callable[[], DataKeys],
        publisher: Publisher,
        tracer: Tracer,
        ledger: Callable[[], LedgerKeeper],
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._database = database
        self._objects = objects
        self._data_keys = data_keys
        self._publisher = publisher
        self._tracer = tracer
        self._new_id = ids_of_cell(settings.cell)

    @cached_property
    def files(self) -> Files:
        """The service that uploads, lists, reads and deletes files."""
        from lowtide.files.index import SegmentSize
        from lowtide.files.service import Files, UploadLimits
        from lowtide.files.store import FileStore

        settings = self._settings
        limits = UploadLimits(
            settings.max_file_bytes,
            settings.file_expiry,
            line_limits(settings),
            settings.endpoints,
            SegmentSize(settings.segment_lines),
            self._warn_of_models,
        )
        return Files(
            FileStore(self._database, before_deletion=self._ledger().record_deletion),
            self._objects(),
            limits,
            new_id=self._new_id,
            clock=now,
            new_key=self._new_key,
            tracer=self._tracer,
        )

    def _warn_of_models(self, models: ModelCounts, endpoint: str) -> str | None:
        """Return why no fleet runs these models, if so: a batch of them would be refused."""
        from lowtide.fleets.placement import place

        try:
            place(self.fleets, models, endpoint)
        except InvalidRequest as error:
            return error.message
        return None

    @cached_property
    def presigned_downloads(self) -> PresignedDownloads:
        """The service that returns URLs of files in the object store."""
        from lowtide.files.presigned import PresignedDownloads
        from lowtide.files.store import FileStore

        return PresignedDownloads(
            FileStore(self._database),
            self._objects(),
            self._presigner,
            redirects=self._settings.presigned_downloads,
            clock=now,
        )

    @cached_property
    def _presigner(self) -> Presigner:
        from lowtide.objects.presigned import Presigner

        return Presigner(self._settings.object_store_url, self._settings.object_store_public_url)

    @cached_property
    def uploads(self) -> Uploads:
        """The service that makes files of uploads in parts."""
        from lowtide.files.store import FileStore
        from lowtide.uploads.presigned import PresignedUploads
        from lowtide.uploads.service import Uploads
        from lowtide.uploads.store import UploadStore

        uploads, files = UploadStore(self._database), FileStore(self._database)
        presigned = PresignedUploads(
            uploads,
            files,
            self._objects(),
            self._presigner,
            file_expiry=self._settings.file_expiry,
            max_lines=self._settings.max_batch_lines,
            new_id=self._new_id,
            clock=now,
        )
        return Uploads(
            uploads,
            files,
            self.files,
            self._objects(),
            presigned,
            new_id=self._new_id,
            clock=now,
            new_key=self._new_key,
        )

    @cached_property
    def batches(self) -> Batches:
        """The service that creates, reads and cancels batches."""
        from lowtide.batches.service import Batches, BatchRules
        from lowtide.batches.store import BatchStore
        from lowtide.buckets.store import BucketStore
        from lowtide.files.store import FileStore

        settings = self._settings
        rules = BatchRules(
            settings.endpoints,
            settings.shortest_window,
            settings.longest_window,
            fleets(settings),
            settings.currency,
            self.admission,
        )
        return Batches(
            BatchStore(self._database, ledger=self._ledger()),
            FileStore(self._database),
            BucketStore(self._database),
            self._publisher,
            self.forecaster,
            rules,
            new_id=self._new_id,
            clock=now,
            new_key=self._new_key,
            tracer=self._tracer,
        )

    @cached_property
    def requests(self) -> Requests:
        """The requests and results of batches."""
        from lowtide.batches.answers import AnswerReader
        from lowtide.batches.request_store import RequestStore
        from lowtide.batches.service import Requests
        from lowtide.batches.store import BatchStore

        return Requests(
            BatchStore(self._database),
            RequestStore(self._database),
            AnswerReader(self._objects()),
            answers=self._answers,
        )

    @cached_property
    def forecaster(self) -> Forecaster:
        """The forecaster of batch completion times."""
        from lowtide.batches.forecast import Forecaster, WorkloadStore

        return Forecaster(
            WorkloadStore(self._database),
            capacities(self._settings),
            data_kept=self._settings.batch_retention,
        )

    @cached_property
    def fleets(self) -> Fleets:
        """The declared fleets."""
        return fleets(self._settings)

    def prices(self, fleet: Fleet) -> Prices:
        """Return the prices of a fleet's replicas."""
        return prices(self._settings, fleet)

    @cached_property
    def explainer(self) -> Explainer:
        """The explanation of what batches wait for, or what limited them."""
        from lowtide.explain.service import Explainer
        from lowtide.explain.store import FactStore

        return Explainer(FactStore(self._database, capacities(self._settings)))

    @cached_property
    def lists(self) -> BatchLists:
        """The search for batches."""
        from lowtide.batches.browsing import BatchLists
        from lowtide.batches.list_store import BatchListStore

        return BatchLists(BatchListStore(self._database), self.forecaster)

    @cached_property
    def browser(self) -> BatchBrowser:
        """The details of batches and their requests."""
        from lowtide.batches.browsing import BatchBrowser
        from lowtide.batches.detail_store import BatchDetailStore

        details = BatchDetailStore(self._database)
        return BatchBrowser(details, self._objects(), self.forecaster, answers=self._answers)

    @cached_property
    def cancellation(self) -> BatchCancellation:
        """The bulk cancellation of batches."""
        from lowtide.batches.browsing import BatchCancellation
        from lowtide.batches.list_store import BatchListStore
        from lowtide.batches.store import BatchStore

        return BatchCancellation(
            BatchListStore(self._database),
            BatchStore(self._database, ledger=self._ledger()),
            self._publisher,
            new_id=self._new_id,
        )

    @cached_property
    def dead_letters(self) -> DeadLetters:
        """The service that searches, downloads and discards dead letters."""
        from lowtide.dead_letters.requeue_store import RequeueStore
        from lowtide.dead_letters.service import DeadLetters
        from lowtide.dead_letters.store import DeadLetterStore

        return DeadLetters(
            DeadLetterStore(self._database),
            RequeueStore(self._database),
            self._objects(),
            max_letters=self._max_letters,
            answers=self._answers,
        )

    @cached_property
    def requeuer(self) -> Requeuer:
        """The service that requeues dead letters."""
        from lowtide.dead_letters.requeue import Requeuer
        from lowtide.dead_letters.requeue_store import RequeueStore
        from lowtide.dead_letters.store import DeadLetterStore

        return Requeuer(
            DeadLetterStore(self._database),
            RequeueStore(self._database, ledger=self._ledger()),
            self._copies,
            self._publisher,
            max_letters=self._max_letters,
        )

    @cached_property
    def reruns(self) -> Reruns:
        """The service that runs a batch's failed requests again, and streams their inputs."""
        from lowtide.batches.store import BatchStore
        from lowtide.dead_letters.store import DeadLetterStore
        from lowtide.files.store import FileStore
        from lowtide.reruns.service import Reruns
        from lowtide.reruns.store import RerunStore

        return Reruns(
            RerunStore(self._database, ledger=self._ledger()),
            DeadLetterStore(self._database),
            BatchStore(self._database),
            FileStore(self._database),
            self._objects(),
            self._copies,
            self._publisher,
        )

    @cached_property
    def search(self) -> Search:
        """The search for batches, files and requests."""
        from lowtide.search.service import Search
        from lowtide.search.store import SearchStore

        return Search(SearchStore(self._database))

    @cached_property
    def models(self) -> ModelCatalog:
        """The models that engines serve or served."""
        from lowtide.engines.catalog import ModelCatalog

        return ModelCatalog(self._database)

    @cached_property
    def usage(self) -> UsageStore:
        """The usage of a tenant: limits, cost, paused pools."""
        from lowtide.tenants.usage import UsageStore

        return UsageStore(self._database)

    def quotes(self, cell: int) -> Quotes:
        """Return the quotes of this installation's fleets, as those of a cell."""
        from lowtide.status.quotes import InterruptionStore, Quotes

        return Quotes(
            cell,
            self.forecaster,
            InterruptionStore(self._database),
            self.fleets,
            capacities(self._settings),
            self._settings.currency,
        )

    @property
    def _max_letters(self) -> int:
        """The max number of letters of one requeue: they must fit into one new batch."""
        from lowtide.dead_letters.model import MAX_LETTERS

        return min(MAX_LETTERS, self._settings.max_batch_lines)

    @cached_property
    def _copies(self) -> Copies:
        from lowtide.dead_letters.copies import Copies, CopyRules
        from lowtide.files.store import FileStore

        settings = self._settings
        rules = CopyRules(
            shortest_window=settings.shortest_window,
            longest_window=settings.longest_window,
            file_expiry=settings.file_expiry,
            fleets=self.fleets,
            currency=settings.currency,
            admission=self.admission,
        )
        return Copies(
            FileStore(self._database),
            self._objects(),
            rules,
            new_id=self._new_id,
            clock=now,
            new_key=self._new_key,
            tracer=self._tracer,
        )

    @property
    def _answers(self) -> Answers:
        from lowtide.batches.sealed_answers import Answers

        return Answers(lambda key: self._data_keys().get(key))

    def _new_key(self, tenant: TenantId, owner: UUID) -> WrappedKey:
        return self._data_keys().make(tenant, owner)

    @property
    def admission(self) -> AdmissionPolicy:
        """The policy for deadlines that capacity cannot meet."""
        from lowtide.batches.admission import AdmissionPolicy

        settings = self._settings
        strict = settings.admission is Admission.STRICT
        by_fleet = {fleet.name: capacity(settings, fleet) for fleet in fleets(settings)}
        return AdmissionPolicy(by_fleet, strict=strict)
