"""What the services need from the outside, as small Protocols: one module a noun."""

from __future__ import annotations

from lowtide.ports.administration import AuditLog, KeyListing, TenantUsage
from lowtide.ports.batches import BatchLedger, ModelCatalog, RequestCatalog
from lowtide.ports.browsing import BatchListing, BatchReading
from lowtide.ports.dead_letters import DeadLetterCatalog, DeadLetterDesk
from lowtide.ports.engines import Engine, EngineRequest
from lowtide.ports.events import EventSink, Outbox
from lowtide.ports.evidence import EvidenceSource
from lowtide.ports.files import FileCatalog
from lowtide.ports.finals import Finals
from lowtide.ports.history import HistoryRecorder, HistorySource
from lowtide.ports.objects import ObjectStore, ObjectWriter
from lowtide.ports.operations import OperationsSource
from lowtide.ports.outlook import OutlookSource
from lowtide.ports.pools import PoolRegister
from lowtide.ports.queue import Queue, WorkerMeter
from lowtide.ports.rates import RateBook
from lowtide.ports.sightings import SightingBook
from lowtide.ports.splits import Split, Splits
from lowtide.ports.tenants import TenantRegistry
from lowtide.ports.ticks import Ticks
from lowtide.ports.timetable import Timetable
from lowtide.ports.visitors import SignIn

__all__ = [
    "AuditLog",
    "BatchLedger",
    "BatchListing",
    "BatchReading",
    "DeadLetterCatalog",
    "DeadLetterDesk",
    "Engine",
    "EngineRequest",
    "EventSink",
    "EvidenceSource",
    "FileCatalog",
    "Finals",
    "HistoryRecorder",
    "HistorySource",
    "KeyListing",
    "ModelCatalog",
    "ObjectStore",
    "ObjectWriter",
    "OperationsSource",
    "Outbox",
    "OutlookSource",
    "PoolRegister",
    "Queue",
    "RateBook",
    "RequestCatalog",
    "SightingBook",
    "SignIn",
    "Split",
    "Splits",
    "TenantRegistry",
    "TenantUsage",
    "Ticks",
    "Timetable",
    "WorkerMeter",
]
