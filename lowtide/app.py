"""The composition root of a process."""

from __future__ import annotations

import os
import socket
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from flask import current_app, has_app_context

from lowtide import __version__
from lowtide.core.errors import Unavailable
from lowtide.core.ids import new_id, now
from lowtide.core.pools import FleetPool
from lowtide.database.connections import answers, connect
from lowtide.database.schema import check_schema
from lowtide.events.outbox import AuditOutbox, Outbox
from lowtide.events.publisher import HttpSink, NoSink, Publisher
from lowtide.services import Services, capacity, fleets, line_limits, prices, scales, served_fleet
from lowtide.settings import read_settings
from lowtide.status.last_seen import Component, LastSeenStore, Observations, ObservedSink
from lowtide.telemetry.health import Readiness
from lowtide.telemetry.tracing import UNTRACED

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask
    from sqlalchemy import Engine

    from lowtide.batches.ledger import Ledger
    from lowtide.batches.ledger_keeper import LedgerKeeper
    from lowtide.batches.sealed_answers import Answers
    from lowtide.buckets.remote import RemoteBuckets
    from lowtide.buckets.service import Buckets
    from lowtide.cells.evacuation import Evacuation
    from lowtide.core.pools import Pool
    from lowtide.events.model import EventSink
    from lowtide.identity.model import Issuers
    from lowtide.identity.tokens import TokenVerifier
    from lowtide.objects.data_keys import DataKeys
    from lowtide.objects.joined import JoinedObjects
    from lowtide.pipeline.exports import Exporter
    from lowtide.pipeline.finalize import Finalizer
    from lowtide.pipeline.imports import Importer
    from lowtide.pipeline.split import Splitter
    from lowtide.scheduler.pauses import Pools
    from lowtide.scheduler.tick import Scheduler
    from lowtide.settings import Settings
    from lowtide.status.snapshot_store import SnapshotStore
    from lowtide.telemetry.tracing import Tracer
    from lowtide.tenants.callers import Authenticator
    from lowtide.tenants.service import Administration, Tenancy
    from lowtide.tenants.sign_in import (
        Principal,
        SignedOutStore,
        SignIn,
        SignInGuard,
        TokenSignIn,
    )
    from lowtide.worker.loop import PullLoop, Worker

_EXTENSION = "lowtide"
_ANSWER_SECONDS = 2.0


class App:
    """The connections, clients and threads of one process, and the services on them.

    Build it once, after the fork, and close it. Connections and threads are created immediately;
    services hold none and are built on first use.
    """

    pull_loop: PullLoop | None = None
    """Set in workers."""

    def __init__(self, settings: Settings, *, name: str = "") -> None:
        self.settings = settings
        self._name = name
        url = settings.database_url.get_secret_value()
        if not url:
            raise ValueError("LOWTIDE_DATABASE_URL is not set: see docs/settings.md.")
        self.database = connect(
            url,
            pool_size=settings.database_pool_size,
            timeout=settings.database_timeout,
            application=f"lowtide {name}".strip(),
        )
        self.tracer = self._tracer()
        self.observations = Observations(LastSeenStore(self.database), timer=time.monotonic)
        self._sink = self._event_sink()
        self.publisher = Publisher(self._sink, Outbox(self.database), tracer=self.tracer)
        self.readiness = Readiness(lambda: check_schema(self.database))
        self.services = self._services(self.database)
        self._tenant_database = self._connect_tenants()

    @classmethod
    def of_function(cls) -> Self:
        """Build the App of the function being loaded, and register it with its server."""
        app = cls(read_settings(), name=os.environ.get("FUNCTION_TARGET", ""))
        if has_app_context():
            current_app.extensions[_EXTENSION] = app
        return app

    @staticmethod
    def of_server(server: Flask) -> App:
        """Return the App registered with a function's server."""
        app: App = server.extensions[_EXTENSION]
        return app

    def close(self, seconds: float) -> None:
        """Flush events, last-seen times and spans, `seconds` at most each; close connections."""
        self.publisher.drain(seconds)
        self.observations.close(seconds)
        self.tracer.close(seconds)
        self.database.dispose()
        if self._tenant_database is not None:
            self._tenant_database.dispose()
        if "_pulse" in self.__dict__:
            self._pulse.dispose()

    def database_answers(self) -> bool:
        """Return whether the database answers within 2 s.

        It has a connection of its own: slow statements keep theirs, and have more time.
        """
        return answers(self._pulse)

    def check(self) -> None:
        """Raise Unavailable while this process cannot do its work."""
        check_schema(self.database)
        if self.pull_loop is not None:
            self.pull_loop.check_engine()

    @cached_property
    def _pulse(self) -> Engine:
        return connect(
            self.settings.database_url.get_secret_value(),
            pool_size=1,
            timeout=_ANSWER_SECONDS,
            application=f"lowtide {self._name}, pulse",
        )

    @cached_property
    def objects(self) -> JoinedObjects:
        """The object store; raises ValueError if its URL is not set or not supported."""
        from lowtide.objects.joined import JoinedObjects
        from lowtide.objects.sealed import SealedObjects
        from lowtide.objects.store import ObstoreObjects

        return JoinedObjects(SealedObjects(ObstoreObjects(self._bucket()), self.data_keys.get))

    def _bucket(self) -> str:
        url = self.settings.object_store_url
        if not url:
            raise ValueError("LOWTIDE_OBJECT_STORE_URL is not set: see docs/settings.md.")
        return url

    @cached_property
    def ledger(self) -> Ledger | None:
        """The ledger of this cell in its bucket; None without a number."""
        if self.settings.cell is None:
            return None
        from lowtide.batches.ledger import Ledger
        from lowtide.objects.store import ObstoreObjects

        return Ledger(ObstoreObjects(self._bucket()), self.settings.cell)

    @cached_property
    def ledger_keeper(self) -> LedgerKeeper:
        """The writer of the ledger, for transactions that change batches."""
        from lowtide.batches.ledger_keeper import LedgerKeeper

        return LedgerKeeper(self.ledger)

    @cached_property
    def data_keys(self) -> DataKeys:
        """The keys of data with zero retention."""
        from lowtide.objects.data_keys import DataKeys, MasterKeys
        from lowtide.settings import master_key_of

        masters = (self.settings.master_key, self.settings.master_key_previous)
        return DataKeys(self.database, MasterKeys(*map(master_key_of, masters)))

    @cached_property
    def answers(self) -> Answers:
        """The encryption of the answers of batches with zero retention."""
        from lowtide.batches.sealed_answers import Answers

        return Answers(self.data_keys.get)

    @cached_property
    def callers(self) -> Authenticator:
        """The authentication of API calls."""
        from lowtide.tenants.callers import Authenticator

        return Authenticator(
            self.database,
            pepper=self.settings.api_key_pepper.get_secret_value(),
            previous_pepper=self.settings.api_key_pepper_previous.get_secret_value(),
            anonymous=self.settings.anonymous_tenant,
            tokens=self._tokens(),
        )

    @cached_property
    def issuers(self) -> Issuers | None:
        """The trusted identity providers; None without any. Raises ValueError for an invalid file."""
        if not self.settings.identity:
            return None
        # Functions without identity providers start without the libraries for tokens.
        from lowtide.identity.parsing import read_file

        return read_file(Path(self.settings.identity))

    def _tokens(self) -> TokenVerifier | None:
        if self.issuers is None:
            return None
        from lowtide.identity.tokens import TokenVerifier

        return TokenVerifier(self.issuers)

    @cached_property
    def splitter(self) -> Splitter:
        """The splitter of input files."""
        from lowtide.files.index import SegmentSize
        from lowtide.pipeline.split import Splitter
        from lowtide.pipeline.split_store import SplitStore

        return Splitter(
            SplitStore(self.database, new_id=new_id, ledger=self.ledger_keeper),
            self.objects,
            line_limits(self.settings),
            fleets(self.settings),
            self.publisher,
            currency=self.settings.currency,
            size=SegmentSize(self.settings.segment_lines),
            keep_alive=self.settings.stalled_after / 4,
            tracer=self.tracer,
        )

    @cached_property
    def importer(self) -> Importer:
        """The importer of input files from buckets."""
        from lowtide.buckets.store import BucketStore
        from lowtide.pipeline.imports import Importer, ImportStore

        return Importer(
            ImportStore(
                self.database,
                fleets(self.settings),
                self.services.admission,
                ledger=self.ledger_keeper,
            ),
            BucketStore(self.database),
            self._remote_buckets(),
            self.services.files,
            tracer=self.tracer,
        )

    @cached_property
    def exporter(self) -> Exporter:
        """The exporter of results to buckets."""
        from lowtide.buckets.store import BucketStore
        from lowtide.pipeline.exports import Exporter, ExportStore

        return Exporter(
            ExportStore(self.database),
            BucketStore(self.database),
            self._remote_buckets(),
            self.objects,
            tracer=self.tracer,
        )

    def _remote_buckets(self) -> RemoteBuckets:
        from lowtide.buckets.remote import RemoteBuckets

        settings = self.settings
        path = Path(settings.bucket_credentials) if settings.bucket_credentials else None
        return RemoteBuckets(path, own_url=settings.object_store_url)

    @cached_property
    def finalizer(self) -> Finalizer:
        """The writer of output and error files."""
        from lowtide.pipeline.final_store import FinalStore
        from lowtide.pipeline.finalize import Finalizer

        return Finalizer(
            FinalStore(
                self.database, data_kept=self.settings.batch_retention, ledger=self.ledger_keeper
            ),
            self.objects,
            self.publisher,
            new_id=new_id,
            answers=self.answers,
            tracer=self.tracer,
        )

    @cached_property
    def scheduler(self) -> Scheduler:
        """The scheduler, which runs ticks."""
        from lowtide.batches.erasure import Eraser
        from lowtide.fleets.store import FleetStore
        from lowtide.queue.rates import RateStore
        from lowtide.retention.partitions import PartitionStore
        from lowtide.retention.service import Retention, RetentionRules
        from lowtide.retention.store import RetentionStore
        from lowtide.scheduler.plan import PlanStore
        from lowtide.scheduler.samples import SampleRecorder
        from lowtide.scheduler.sweep import SweepStore
        from lowtide.scheduler.tick import FleetRules, Scheduler, TickRules
        from lowtide.search.indexing import SearchIndexer
        from lowtide.tenants.quotas import QuotaStore

        settings = self.settings
        rules = TickRules(
            fleets={
                fleet.name: FleetRules(capacity(settings, fleet), scales(fleet), fleet.fallback)
                for fleet in fleets(settings)
            },
            cancel_grace=settings.cancel_grace,
            stalled_after=settings.stalled_after,
            history_kept=settings.history_retention,
            audit_kept=settings.audit_retention,
        )
        return Scheduler(
            SweepStore(self.database, new_id=new_id, max_lost_leases=settings.max_lost_leases),
            PlanStore(self.database, new_id=new_id),
            RateStore(self.database),
            QuotaStore(self.database),
            SampleRecorder(self.database),
            SearchIndexer(self.database),
            Retention(
                PartitionStore(self.database),
                RetentionStore(self.database),
                RetentionRules(settings.batch_retention, settings.record_retention),
            ),
            Eraser(self.database),
            self.objects,
            (self.publisher, Publisher(self._sink, AuditOutbox(self.database), tracer=self.tracer)),
            rules,
            lambda: FleetStore(self.database).mirror(fleets(settings)),
            self._ledger_check(),
        )

    def _ledger_check(self) -> Callable[[], None]:
        """Return the part of a tick that a cell with a number has."""
        if self.ledger is None:
            return lambda: None
        from lowtide.retention.store import RetentionStore
        from lowtide.scheduler.ledger_check import LedgerCheck, LedgerStore

        store = LedgerStore(self.database, RetentionStore(self.database), self.ledger_keeper)
        return LedgerCheck(self.ledger, store, timer=time.monotonic, clock=now).run

    @cached_property
    def snapshots(self) -> SnapshotStore:
        """The state of the whole system."""
        from lowtide.status.snapshot_store import SnapshotStore

        return SnapshotStore(self.database)

    def pull(self, pool: Pool) -> PullLoop:
        """Make this process a worker of a pool; the server starts and stops the returned loop."""
        from lowtide.worker.loop import PullLoop

        self.pull_loop = PullLoop(lambda: self.build_worker(pool))
        return self.pull_loop

    def build_worker(self, pool: Pool) -> Worker:
        """Return a worker of a pool, with its own engine."""
        from lowtide.status.last_seen import ObservedEngine
        from lowtide.worker.build import build_worker
        from lowtide.worker.metrics import WorkerMetrics

        place = FleetPool(self.settings.fleet, pool)
        self.observations.note(Component.FUNCTION, f"infer_{place.key}")
        engine = ObservedEngine(self.observations, place)
        return build_worker(
            self.settings,
            self.database,
            self.objects,
            self.publisher,
            self.answers,
            WorkerMetrics(
                pool,
                prices(self.settings, served_fleet(self.settings)),
                engine.answered,
                fleet=self.settings.fleet,
            ),
            self.tracer,
            pool=pool,
            instance=_instance(),
        )

    @cached_property
    def administration(self) -> Administration:
        """The administration of tenants, keys and the audit log, for operators."""
        from lowtide.tenants.audit import AuditLog
        from lowtide.tenants.keys import KeyStore
        from lowtide.tenants.service import Administration
        from lowtide.tenants.store import TenantStore, TenantUsageStore

        pepper = self.settings.api_key_pepper.get_secret_value()
        return Administration(
            TenantStore(self.database, pepper=pepper),
            TenantUsageStore(self.database),
            KeyStore(self.database),
            AuditLog(self.database),
            self.settings.currency,
            self.tenancy,
        )

    def tenancy(self, actor: str) -> Tenancy:
        """Return the service that changes tenants and keys; it records `actor` in the audit log."""
        from lowtide.tenants.keys import new_key
        from lowtide.tenants.model import LIMITS, TenantLimits
        from lowtide.tenants.service import Tenancy
        from lowtide.tenants.store import TenantStore

        settings = self.settings
        defaults = TenantLimits(
            **{name: getattr(settings, f"tenant_{name}", None) for name in LIMITS}
        )
        pepper = settings.api_key_pepper.get_secret_value()
        registry = TenantStore(self.database, pepper=pepper)
        return Tenancy(registry, defaults, actor=actor, new_id=new_id, new_key=new_key, clock=now)

    def buckets(self, actor: str) -> Buckets:
        """Return the service that registers buckets; it records `actor` in the audit log."""
        from lowtide.buckets.service import Buckets
        from lowtide.buckets.store import BucketStore

        own_url = self.settings.object_store_url
        return Buckets(BucketStore(self.database), own_url=own_url, actor=actor)

    def evacuation(
        self, number: int, name: str, bucket: str, *, actor: str, may_have: Callable[[str], bool]
    ) -> Evacuation:
        """Return the evacuation of the cell `number` from its bucket into this one.

        `may_have` tells whether the data of a tenant may be in this cell. Raises ValueError if this
        cell has no number, or for a bucket that cannot be opened.
        """
        from lowtide.batches.ledger import Ledger
        from lowtide.batches.store import BatchStore
        from lowtide.buckets.store import BucketStore
        from lowtide.cells.evacuation import Evacuation, Source
        from lowtide.cells.evacuation_store import EvacuationStore
        from lowtide.files.store import FileStore
        from lowtide.objects.joined import JoinedObjects
        from lowtide.objects.store import ObstoreObjects
        from lowtide.tenants.store import TenantStore

        if self.ledger is None:
            raise ValueError("LOWTIDE_CELL is not set: this installation is no cell.")
        objects = ObstoreObjects(bucket)
        store = EvacuationStore(
            self.database,
            BatchStore(self.database, ledger=self.ledger_keeper),
            TenantStore(self.database, pepper=self.settings.api_key_pepper.get_secret_value()),
            self.ledger_keeper,
            limits=self.tenancy(actor).defaults,
            actor=actor,
            new_id=new_id,
        )
        return Evacuation(
            Source(number, name, Ledger(objects, self.ledger.cell), JoinedObjects(objects)),
            self.ledger,
            store,
            FileStore(self.database),
            BucketStore(self.database),
            self.objects,
            fleets(self.settings),
            self.settings.currency,
            may_have=may_have,
        )

    @cached_property
    def pools(self) -> Pools:
        """The service that pauses and resumes pools."""
        from lowtide.scheduler.pauses import PauseStore, Pools

        return Pools(PauseStore(self.database))

    @cached_property
    def guard(self) -> SignInGuard:
        """Portal sign-in: by password, and by API key if a tenant database is configured."""
        from lowtide.core.scopes import Role
        from lowtide.tenants.callers import Authenticator
        from lowtide.tenants.passwords import PasswordSignIn
        from lowtide.tenants.sign_in import KeySignIn, SignInGuard

        settings = self.settings
        sign_ins: list[SignIn] = []
        pepper = settings.api_key_pepper.get_secret_value()
        if self._tenant_database is not None and pepper:
            callers = Authenticator(
                self._tenant_database,
                pepper=pepper,
                previous_pepper=settings.api_key_pepper_previous.get_secret_value(),
                anonymous=None,
            )
            sign_ins.append(KeySignIn(callers, settings.portal_key_role))
        for password_hash, role, name in (
            (settings.portal_password_hash, Role.ADMIN, "operator"),
            (settings.portal_viewer_password_hash, Role.VIEWER, "viewer"),
        ):
            if password_hash.get_secret_value():
                sign_ins.append(PasswordSignIn(password_hash.get_secret_value(), role, name))
        if self.token_sign_in is not None:
            sign_ins.append(self.token_sign_in)
        return SignInGuard(sign_ins, timer=time.monotonic)

    @cached_property
    def token_sign_in(self) -> TokenSignIn | None:
        """Sign-in to the portal at an identity provider; None without one."""
        from lowtide.tenants.sign_in import TokenSignIn

        client = None if self.issuers is None else self.issuers.portal
        return None if client is None else TokenSignIn(client)

    @cached_property
    def signed_out(self) -> SignedOutStore:
        """The portal sessions that ended early."""
        from lowtide.tenants.sign_in import SignedOutStore

        return SignedOutStore(self.database)

    def services_for(self, principal: Principal) -> Services:
        """Return the services with the rights of `principal`.

        Row-level security limits sessions with an API key to the key's tenant; others see all
        tenants. Raises Unavailable for the former if no tenant database is configured.
        """
        return self.services if principal.tenant is None else self._tenant_services

    @cached_property
    def _tenant_services(self) -> Services:
        if self._tenant_database is None:
            raise Unavailable(
                "LOWTIDE_PORTAL_TENANT_DATABASE_URL is not set: sign-in with API keys is disabled."
            )
        return self._services(self._tenant_database)

    def _services(self, database: Engine) -> Services:
        return Services(
            self.settings,
            database,
            lambda: self.objects,
            lambda: self.data_keys,
            self.publisher,
            self.tracer,
            lambda: self.ledger_keeper,
        )

    def _connect_tenants(self) -> Engine | None:
        url = self.settings.portal_tenant_database_url.get_secret_value()
        if not url:
            return None
        return connect(
            url,
            pool_size=self.settings.database_pool_size,
            timeout=self.settings.database_timeout,
            application="lowtide portal, tenants",
        )

    def _event_sink(self) -> EventSink:
        settings = self.settings
        if settings.event_sink is None and not self._name:
            # A command of an operator says nothing about the functions' broker.
            return NoSink()
        if settings.event_sink is None:
            return ObservedSink(NoSink(), self.observations, refusal="no broker is configured")
        source = f"/lowtide/{self._name or 'cli'}"
        http = HttpSink(settings.event_sink, source=source, timeout=settings.event_sink_timeout)
        return ObservedSink(http, self.observations, refusal="the broker did not accept it")

    def _tracer(self) -> Tracer:
        """Return the tracer that OpenTelemetry's environment variables configure."""
        from lowtide.telemetry.tracing import is_wanted

        # A command of an operator is no service, and need not have the packages.
        if not self._name or not is_wanted(os.environ):
            return UNTRACED
        from lowtide.telemetry.otel import OpenTelemetryTracer

        return OpenTelemetryTracer(
            {
                "service.name": f"lowtide-{self._name.replace('_', '-')}",
                "service.namespace": "lowtide",
                "service.version": __version__,
                "service.instance.id": _instance(),
                "faas.name": self._name,
            }
        )


def _instance() -> str:
    """Return the name of this process, which a worker's lease also carries."""
    return f"{socket.gethostname()}/{os.getpid()}"
