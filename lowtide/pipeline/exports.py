"""Copying the results of an ended batch to a registered bucket."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from lowtide.buckets.model import Access, parse_folder_url, require_access
from lowtide.core.errors import LowtideError, NotFound
from lowtide.core.ids import TenantId, format_batch_id
from lowtide.database.connections import begin
from lowtide.pipeline.imports import LEASE_SECONDS, RENEW_SECONDS, Superseded
from lowtide.telemetry.tracing import BATCH, TENANT, UNTRACED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Engine

    from lowtide.buckets.model import BucketUrl
    from lowtide.buckets.remote import RemoteBuckets
    from lowtide.buckets.store import BucketStore
    from lowtide.core.ids import BatchId
    from lowtide.objects.store import ObjectStore
    from lowtide.telemetry.tracing import Tracer


KEEP_TRYING_SECONDS: Final = 86_400.0
_MIN_DELAY: Final = 30.0
_MAX_DELAY: Final = 3600.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportJob:
    """An ended batch whose results are to be copied to `folder`.

    `keys` are the objects of its output and error file, by role; `missing` the roles of files that
    were deleted.
    """

    batch: BatchId
    tenant: TenantId
    folder: BucketUrl
    keys: Mapping[str, str]
    missing: tuple[str, ...]


_WAITING = "export_state = 'pending' AND status IN ('completed', 'failed', 'expired', 'cancelled')"
_JOB = text(f"""
SELECT tenant_id, output_url, completed, failed,
  (SELECT object_key FROM files WHERE id = output_file_id) AS output,
  (SELECT object_key FROM files WHERE id = error_file_id) AS error
FROM batches WHERE id = :batch AND {_WAITING}
""")  # noqa: S608
_CLAIM = text(f"""
UPDATE batches SET transfer_until = now() + make_interval(secs => :seconds),
  export_next_at = now() + make_interval(secs => :seconds)
WHERE id = :batch AND {_WAITING} AND (transfer_until IS NULL OR transfer_until <= now())
""")  # noqa: S608
_RENEW = text(f"""
UPDATE batches SET transfer_until = now() + make_interval(secs => :seconds),
  export_next_at = now() + make_interval(secs => :seconds)
WHERE id = :batch AND {_WAITING}
""")  # noqa: S608
_COMPLETE = text(f"""
UPDATE batches SET export_state = 'completed', export_error = NULL, transfer_until = NULL
WHERE id = :batch AND {_WAITING}
""")  # noqa: S608
# The next try is as far away as the end of the batch, which doubles the delay each time.
_POSTPONE = text(f"""
UPDATE batches b SET export_error = :error, transfer_until = NULL,
  export_state = CASE WHEN :for_good OR e.age >= :keep_trying THEN 'failed' ELSE 'pending' END,
  export_next_at = now() + make_interval(secs => least(:max_delay, greatest(:min_delay, e.age)))
FROM (SELECT id, extract(epoch FROM now() - coalesce(completed_at, failed_at, expired_at,
  cancelled_at))::double precision AS age FROM batches WHERE id = :batch) e
WHERE b.id = e.id AND {_WAITING}
RETURNING export_state
""")  # noqa: S608


class ExportStore:
    """Ended batches whose results are to be copied."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def job(self, batch: BatchId) -> ExportJob | None:
        """Start the export of a batch; None without one, or while another process works on it."""
        with begin(self._engine) as connection:
            parameters = {"batch": batch, "seconds": LEASE_SECONDS}
            if connection.execute(_CLAIM, parameters).rowcount != 1:
                return None
            row = connection.execute(_JOB, {"batch": batch}).one()
        keys = {"output": row.output, "error": row.error}
        lines = {"output": row.completed, "error": row.failed}
        return ExportJob(
            batch,
            TenantId(row.tenant_id),
            parse_folder_url(row.output_url, "output_url"),
            {role: key for role, key in keys.items() if key is not None},
            tuple(role for role in keys if lines[role] and keys[role] is None),
        )

    def renew(self, batch: BatchId) -> None:
        """Continue an export; raises Superseded if another process has ended it."""
        with begin(self._engine) as connection:
            parameters = {"batch": batch, "seconds": LEASE_SECONDS}
            if connection.execute(_RENEW, parameters).rowcount != 1:
                raise Superseded

    def complete(self, batch: BatchId) -> None:
        """Record that all results are copied."""
        with begin(self._engine) as connection:
            connection.execute(_COMPLETE, {"batch": batch})

    def postpone(self, batch: BatchId, error: str, *, for_good: bool) -> str | None:
        """Record an error and the next try; return the new state.

        The export fails `for_good`, or a day after the batch's end.
        """
        with begin(self._engine) as connection:
            parameters = {
                "batch": batch,
                "error": error,
                "for_good": for_good,
                "keep_trying": KEEP_TRYING_SECONDS,
                "min_delay": _MIN_DELAY,
                "max_delay": _MAX_DELAY,
            }
            state: str | None = connection.execute(_POSTPONE, parameters).scalar_one_or_none()
        return state


class Exporter:
    """Copies results.

    Idempotent: the objects' names depend on the batch alone, and a copy replaces an earlier one.
    """

    def __init__(
        self,
        exports: ExportStore,
        buckets: BucketStore,
        remote: RemoteBuckets,
        objects: ObjectStore,
        *,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._exports = exports
        self._buckets = buckets
        self._remote = remote
        self._objects = objects
        self._tracer = tracer

    def export(self, batch: BatchId) -> None:
        """Copy the results of an ended batch; an error is recorded, and the scheduler tries again."""
        job = self._exports.job(batch)
        if job is None:
            return
        attributes = {BATCH: format_batch_id(batch), TENANT: str(job.tenant)}
        with self._tracer.span("export", attributes=attributes):
            try:
                self._copy(job)
            except Superseded:
                return
            except LowtideError as error:
                self._postpone(job, error)
                return
        self._exports.complete(batch)
        _log.info("batch.exported", extra={"url": str(job.folder), "files": len(job.keys)})

    def _copy(self, job: ExportJob) -> None:
        if job.missing:
            names = " and ".join(job.missing)
            raise NotFound(f"The {names} file was deleted before it was copied.")
        if not job.keys:
            return
        buckets = self._buckets.of(job.tenant)
        remote = self._remote.open(require_access(buckets, job.folder, Access.WRITE, "output_url"))
        for role, key in job.keys.items():
            name = f"{format_batch_id(job.batch)}_{role}.jsonl"
            remote.write(job.folder.joined(name), self._pieces(job, key))

    def _pieces(self, job: ExportJob, key: str) -> Iterator[bytes]:
        """Yield a file's bytes, and renew the lease meanwhile."""
        renewed = time.monotonic()
        for piece in self._objects.stream(key):
            if time.monotonic() - renewed > RENEW_SECONDS:
                self._exports.renew(job.batch)
                renewed = time.monotonic()
            yield piece

    def _postpone(self, job: ExportJob, error: LowtideError) -> None:
        # A deleted file does not come back.
        state = self._exports.postpone(job.batch, error.message, for_good=bool(job.missing))
        extra = {"url": str(job.folder), "reason": error.for_log, "state": state}
        _log.warning("batch.not_exported", extra=extra)
