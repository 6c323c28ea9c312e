"""Importing the input file of a batch from a registered bucket, before the split."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec
from sqlalchemy import text

from lowtide.batches.admission import admit_requests
from lowtide.batches.ledger_keeper import NO_LEDGER
from lowtide.buckets.model import Access, parse_object_url, require_access
from lowtide.core.errors import LowtideError, PayloadTooLarge, Unavailable
from lowtide.core.ids import FileId, TenantId, format_batch_id, format_file_id
from lowtide.database.connections import acting_for, begin
from lowtide.files.lines import Problem
from lowtide.files.store import add_expected_file
from lowtide.fleets.placement import place
from lowtide.objects.data_keys import own_key
from lowtide.objects.names import data_key_of
from lowtide.telemetry.tracing import BATCH, TENANT, UNTRACED

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Engine

    from lowtide.batches.admission import AdmissionPolicy
    from lowtide.batches.ledger_keeper import LedgerKeeper
    from lowtide.buckets.model import BucketUrl
    from lowtide.buckets.remote import RemoteBuckets
    from lowtide.buckets.store import BucketStore
    from lowtide.core.ids import BatchId
    from lowtide.files.model import StoredFile
    from lowtide.files.service import Files
    from lowtide.fleets.model import Fleets
    from lowtide.telemetry.tracing import Tracer


LEASE_SECONDS: Final = 60.0
"""The time after which another process takes over a copy that is not renewed."""
RENEW_SECONDS: Final = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImportJob:
    """A batch whose input is to be imported as `file`; `late` is True past its deadline."""

    batch: BatchId
    tenant: TenantId
    file: FileId
    url: BucketUrl
    deadline: datetime
    late: bool
    endpoint: str
    zero_retention: bool = False


class Superseded(Exception):
    """The batch was cancelled, or another process has done its copy."""


_WAITING = "status = 'validating' AND input_url IS NOT NULL AND imported_at IS NULL"
_JOB = text(f"""
SELECT tenant_id, input_file_id, input_url, deadline, deadline <= now() AS late, endpoint,
  zero_retention
FROM batches WHERE id = :batch AND {_WAITING}
""")  # noqa: S608
_CLAIM = text(f"""
UPDATE batches SET transfer_until = now() + make_interval(secs => :seconds), nudged_at = now()
WHERE id = :batch AND {_WAITING} AND (transfer_until IS NULL OR transfer_until <= now())
""")  # noqa: S608
# An import in progress is not stalled, hence nudged_at.
_RENEW = text(f"""
UPDATE batches SET transfer_until = now() + make_interval(secs => :seconds), nudged_at = now()
WHERE id = :batch AND {_WAITING}
""")  # noqa: S608
_RELEASE = text("UPDATE batches SET transfer_until = NULL WHERE id = :batch")
_RECORD = text(f"""
UPDATE batches SET imported_at = now(), nudged_at = now(), transfer_until = NULL, input_key = :key,
  at_risk = cast(:risk AS text) IS NOT NULL, risk_reason = :risk, enqueued_tokens = :tokens,
  risk_since = CASE WHEN cast(:risk AS text) IS NOT NULL THEN now() END
WHERE id = :batch AND {_WAITING}
""")  # noqa: S608
_FAIL = text(f"""
UPDATE batches SET status = 'failed', failed_at = now(), transfer_until = NULL,
  errors = cast(:errors AS jsonb)
WHERE id = :batch AND {_WAITING}
""")  # noqa: S608


class ImportStore:
    """Batches that wait for their input."""

    def __init__(
        self,
        engine: Engine,
        fleets: Fleets,
        policy: AdmissionPolicy,
        *,
        ledger: LedgerKeeper = NO_LEDGER,
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._fleets = fleets
        self._policy = policy

    def job(self, batch: BatchId) -> ImportJob | None:
        """Return the import of a batch; None if it has none, or none any more."""
        with begin(self._engine) as connection:
            row = connection.execute(_JOB, {"batch": batch}).one_or_none()
        if row is None:
            return None
        url = parse_object_url(row.input_url, "input_url")
        file, tenant = FileId(row.input_file_id), TenantId(row.tenant_id)
        return ImportJob(
            batch,
            tenant,
            file,
            url,
            row.deadline,
            row.late,
            row.endpoint,
            zero_retention=row.zero_retention,
        )

    def claim(self, batch: BatchId) -> bool:
        """Start an import; return False while another process works on it."""
        with begin(self._engine) as connection:
            parameters = {"batch": batch, "seconds": LEASE_SECONDS}
            return connection.execute(_CLAIM, parameters).rowcount == 1

    def renew(self, batch: BatchId) -> None:
        """Continue an import; raises Superseded if it is no longer needed."""
        with begin(self._engine) as connection:
            parameters = {"batch": batch, "seconds": LEASE_SECONDS}
            if connection.execute(_RENEW, parameters).rowcount != 1:
                raise Superseded

    def release(self, batch: BatchId) -> None:
        """Let the event's next delivery start over at once."""
        with begin(self._engine) as connection:
            connection.execute(_RELEASE, {"batch": batch})

    def record(self, job: ImportJob, file: StoredFile) -> None:
        """Record the file under the id that the batch has for it, and admit its requests.

        Raises Superseded, and the errors of `admit_requests`.
        """
        with acting_for(self._engine, job.tenant) as connection:
            placement = place(self._fleets, file.model_counts or (), job.endpoint)
            parts = placement.parts(file.lines)
            tokens = file.estimated_tokens
            risk = admit_requests(connection, job.tenant, job.deadline, parts, tokens, self._policy)
            parameters = {
                "batch": job.batch,
                "key": file.object_key,
                "risk": risk,
                "tokens": tokens,
            }
            if connection.execute(_RECORD, parameters).rowcount != 1:
                raise Superseded
            add_expected_file(connection, replace(file, id=job.file))
            data_key = data_key_of(file.object_key)
            if data_key is not None:
                own_key(connection, data_key, job.file)

    def fail(self, batch: BatchId, problem: Problem) -> None:
        """Fail a batch whose input cannot be imported, unless another cell ends it."""
        errors = msgspec.json.encode([asdict(problem)]).decode()
        with begin(self._engine) as connection:
            if connection.execute(_FAIL, {"batch": batch, "errors": errors}).rowcount != 1:
                return
            if not self._ledger.may_end(batch):
                connection.rollback()
                return
        self._ledger.ended(batch)


class Importer:
    """Imports inputs.

    Each attempt writes an object of its own, and the first one to be recorded becomes the file: a
    process that dies half-way leaves an orphan, which the scheduler deletes.
    """

    def __init__(
        self,
        imports: ImportStore,
        buckets: BucketStore,
        remote: RemoteBuckets,
        files: Files,
        *,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._imports = imports
        self._buckets = buckets
        self._remote = remote
        self._files = files
        self._tracer = tracer

    def prepare(self, batch: BatchId) -> bool:
        """Import a batch's input if it waits for that; return whether the batch can be split.

        Fails the batch if the import cannot succeed. Raises Unavailable for what may pass, until the
        batch's deadline.
        """
        job = self._imports.job(batch)
        if job is None:
            return True
        if not self._imports.claim(batch):
            return False
        attributes = {BATCH: format_batch_id(batch), TENANT: str(job.tenant)}
        with self._tracer.span("import", attributes=attributes):
            return self._import(job)

    def _import(self, job: ImportJob) -> bool:
        try:
            self._copy(job)
        except Superseded:
            return False
        except Unavailable as error:
            if not job.late:
                self._imports.release(job.batch)
                raise
            self._fail(job, error, "input_url_unavailable")
            return False
        except LowtideError as error:
            self._fail(job, error, error.code or "input_url_rejected")
            return False
        extra = {"file_id": format_file_id(job.file), "url": str(job.url)}
        _log.info("batch.imported", extra=extra)
        return True

    def _copy(self, job: ImportJob) -> None:
        buckets = self._buckets.of(job.tenant)
        remote = self._remote.open(require_access(buckets, job.url, Access.READ, "input_url"))
        source = remote.head(job.url)
        if source.size > self._files.max_bytes:
            raise PayloadTooLarge(
                f"It has {source.size} bytes, but at most {self._files.max_bytes} are allowed: split it."
            )
        renewed = time.monotonic()
        with self._files.upload(
            job.tenant,
            add=lambda file, _: self._imports.record(job, file),
            zero_retention=job.zero_retention,
        ) as upload:
            for piece in remote.stream(source):
                if time.monotonic() - renewed > RENEW_SECONDS:
                    self._imports.renew(job.batch)
                    renewed = time.monotonic()
                upload.write(piece)
            upload.finish(job.url.name, None)

    def _fail(self, job: ImportJob, error: LowtideError, code: str) -> None:
        url = str(job.url)
        message = error.message if url in error.message else f"{url}: {error.message}"
        self._imports.fail(job.batch, Problem(code, message, "input_url"))
        _log.info("batch.not_imported", extra={"url": url, "reason": error.for_log})
