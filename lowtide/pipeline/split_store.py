"""Storage for splitting: requests are copied into the database a segment at a time."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import text

from lowtide.batches.ledger_keeper import NO_LEDGER
from lowtide.batches.store import add_parts
from lowtide.core.ids import FileId, TenantId
from lowtide.core.runs import RUN_LINES
from lowtide.database.connections import begin
from lowtide.events.model import EventType, segment_event
from lowtide.events.outbox import add_event, trace_of
from lowtide.files.index import index_key
from lowtide.files.store import (
    LONGEST_UPLOAD_SECONDS,
    add_orphans,
    encode_models,
    encode_segments,
    models_of,
    remove_orphans,
    segments_of,
)
from lowtide.fleets.placement import DEFAULT_PLACEMENT, Placement
from lowtide.queue.draining import note_drained
from lowtide.search.indexing import enqueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from uuid import UUID

    from sqlalchemy import Connection, Engine

    from lowtide.batches.ledger_keeper import LedgerKeeper
    from lowtide.core.ids import BatchId
    from lowtide.core.pools import Prices
    from lowtide.events.model import Event
    from lowtide.files.index import FileSegment
    from lowtide.files.lines import ModelCounts, Problem
    from lowtide.telemetry.tracing import TraceContext


@dataclass(frozen=True, slots=True)
class Index:
    """The segments of a file's index, and the models of its requests."""

    models: ModelCounts
    segments: Sequence[FileSegment]

    @property
    def model(self) -> str | None:
        """The model of all requests; None if there are several, or none."""
        return self.models[0][0] if len(self.models) == 1 else None


@dataclass(frozen=True, slots=True)
class SplitJob:
    """A batch to split; `index` is None if its file must be validated first."""

    batch: BatchId
    tenant: TenantId
    file: FileId
    input_key: str
    endpoint: str
    trace: TraceContext | None
    index: Index | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of a batch; its rows are the bytes of the index from `start` up to `end`."""

    number: int
    first_line: int
    lines: int
    start: int
    end: int


class DamagedIndex(Exception):
    """An index that is lost, or lacks requests."""


# An index of other checks is of no use: those of another endpoint, or of a higher limit.
_JOB = text("""
SELECT b.tenant_id, b.input_file_id, b.input_key, b.endpoint, b.traceparent, b.tracestate, f.model,
  f.models, f.segments, f.lines
FROM batches b LEFT JOIN files f ON f.id = b.input_file_id AND f.object_key = b.input_key
  AND f.endpoint = b.endpoint AND f.lines <= :max_lines
WHERE b.id = :batch AND b.status = 'validating'
""")
# A pass over a large file takes minutes; without progress, it would be announced again.
_KEEP_ALIVE = text("""
UPDATE batches SET nudged_at = now() WHERE id = :batch AND status IN ('validating', 'in_progress')
""")
_IS_INDEXED = text("""
SELECT 1 FROM files WHERE id = :file AND object_key = :input_key AND index_key IS NOT NULL FOR SHARE
""")
_RECORD_INDEX = text("""
UPDATE files SET status = 'processed', status_details = NULL, endpoint = :endpoint, lines = :lines,
  model = :model, models = cast(:models AS jsonb), index_key = :key,
  segments = cast(:segments AS jsonb)
WHERE id = :file AND object_key = :input_key
""")
# COPY cannot write to a table with row-level security, hence the detour.
_INCOMING = text("""
CREATE TEMPORARY TABLE incoming (
  line integer, start bigint, length integer, checksum integer, place integer, model integer,
  custom_id text)
ON COMMIT DROP
""")
_COPY = "COPY incoming FROM STDIN"
_STORE = text("""
INSERT INTO requests (batch_id, tenant_id, line, start, length, checksum, custom_id)
SELECT :batch, :tenant, line, start, length, checksum, custom_id FROM incoming
WHERE line BETWEEN :first AND :last
""")
# Claims take the requests of a batch in the order in which they became available: a microsecond for
# each place makes that the order by prefix. The lines of a run follow each other in that order, and
# their own: claims take them by line.
_QUEUE = text(f"""
INSERT INTO queued_runs (batch_id, tenant_id, deadline, available_at, queued_at, line, size, lines,
  fleet, pool)
SELECT b.id, b.tenant_id, b.deadline, now() - (:last - r.place) * interval '1 microsecond', now(),
  r.line, r.size, r.lines, r.fleet, b.start_pool
FROM batches b, (
  SELECT min(line) AS line, min(place) AS place, count(*) AS size, fleet,
    range_agg(int4range(line, line + 1)) AS lines
  FROM (
    SELECT *, count(*) FILTER (WHERE line < before
        OR (line - 1) / {RUN_LINES} > (before - 1) / {RUN_LINES})
      OVER (PARTITION BY fleet ORDER BY place) AS run
    FROM (
      SELECT *, lag(line, 1, 1) OVER (PARTITION BY fleet ORDER BY place) AS before
      FROM (SELECT line, place, coalesce(
        cast(:fleet AS text), (cast(:by_model AS text[]))[model + 1]) AS fleet FROM incoming) i) i) i
  GROUP BY fleet, run) r
WHERE b.id = :batch
""")  # noqa: S608 - a constant of ours
_COUNT_SPLIT = text("""
UPDATE batch_fleets p SET split = p.split + n.lines FROM (
  SELECT (cast(:by_model AS text[]))[model + 1] AS fleet, count(*) AS lines
  FROM incoming GROUP BY 1) n
WHERE p.batch_id = :batch AND p.fleet = n.fleet
""")
# The prices stay those of the creation, unless another fleet runs the batch than was known then.
_START = text("""
UPDATE batches SET status = 'in_progress', in_progress_at = now(), nudged_at = now(),
  total = :total, model = :model, fleet = :fleet, fleet_of_model = cast(:by_model AS text[]),
  spot_price = CASE WHEN fleet IS DISTINCT FROM :fleet THEN :spot_price ELSE spot_price END,
  dedicated_price =
    CASE WHEN fleet IS DISTINCT FROM :fleet THEN :dedicated_price ELSE dedicated_price END,
  currency = CASE WHEN fleet IS DISTINCT FROM :fleet THEN :currency ELSE currency END
WHERE id = :batch AND status = 'validating'
""")
_FORGET_PARTS = text("""
DELETE FROM batch_fleets WHERE batch_id = :batch RETURNING fleet, spot_price, dedicated_price
""")
# The copy takes seconds, hence not now(), which is when it began.
_ADD_SEGMENTS = text("""
INSERT INTO segments (batch_id, number, tenant_id, first_line, lines, index_start, index_end, split_at)
SELECT :batch, number, :tenant, first_line, lines, start, "end",
  CASE WHEN number = 1 THEN clock_timestamp() END
FROM json_to_recordset(cast(:segments AS json)) AS s (
  number integer, first_line integer, lines integer, start bigint, "end" bigint)
""")
SEGMENT = """
SELECT b.tenant_id, b.input_file_id, b.input_key, b.endpoint, b.traceparent, b.tracestate, s.number,
  s.first_line, s.lines, s.index_start, s.index_end, b.fleet, b.fleet_of_model
FROM segments s JOIN batches b ON b.id = s.batch_id
WHERE s.batch_id = :batch AND s.number = :number AND s.split_at IS NULL
FOR NO KEY UPDATE OF s
"""
_SEGMENT = text(SEGMENT)
# SHARE: either the end of the batch waits and then drops what is queued here, or it came first.
_LOCK_OPEN = text("""
SELECT 1 FROM batches
WHERE id = :batch AND status = 'in_progress' AND drained_at IS NULL AND NOT expiring FOR SHARE
""")
_IS_SPLIT = text(
    "UPDATE segments SET split_at = clock_timestamp() WHERE batch_id = :batch AND number = :number"
)
_LOCATE_SEGMENTS = text("""
UPDATE segments s SET index_start = given.start, index_end = given."end"
FROM json_to_recordset(cast(:segments AS json)) AS given (
  number integer, first_line integer, lines integer, start bigint, "end" bigint)
WHERE s.batch_id = :batch AND s.split_at IS NULL
  AND (s.number, s.first_line, s.lines) = (given.number, given.first_line, given.lines)
""")
_REJECT = text("""
UPDATE batches SET status = 'failed', failed_at = now(), errors = cast(:errors AS jsonb)
WHERE id = :batch AND status = 'validating'
""")
_MAKE_PARTITIONS = text("SELECT make_partitions(:batch)")
QUEUED_CHANNEL: Final = "lowtide_requests_queued"
"""The channel of notifications that requests were queued, sent by the transaction that queues them."""
_NOTIFY = text("SELECT pg_notify(:channel, '')")
_BAD_DATA: Final = "22"


class SplitTransaction:
    """The split of one segment; nothing is visible until the block ends without an exception."""

    def __init__(
        self,
        connection: Connection,
        job: SplitJob,
        segment: Segment,
        new_id: Callable[[], UUID],
        placement: Placement = DEFAULT_PLACEMENT,
    ) -> None:
        self._connection = connection
        self._new_id = new_id
        self.job = job
        self.segment = segment
        self.placement = placement

    def copy(self, rows: Iterable[bytes]) -> None:
        """Copy the segment's rows into a temporary table; raises DamagedIndex."""
        source = _CopySource(rows)
        self._connection.execute(_INCOMING)
        cursor: Any = self._connection.connection.cursor()
        try:
            cursor.execute(_COPY, stream=source.blocks())
        except Exception as error:
            if source.failure is not None:
                raise source.failure from error
            if _is_bad_data(error):
                raise DamagedIndex from error
            raise
        finally:
            cursor.close()
        if source.failure is not None:
            raise source.failure

    def start(self, index: Index, placement: Placement, prices: Prices) -> tuple[Event, ...] | None:
        """Start the batch with its first segment; return the events of the others.

        `prices` are those of the placement now.
        Return None if the batch was cancelled meanwhile. Raises DamagedIndex.
        """
        segments = segments_in(index.segments)
        self._store()
        self._queue(placement)
        total = segments[-1].first_line + segments[-1].lines - 1
        parameters = {
            "batch": self.job.batch,
            "total": total,
            "model": index.model,
            "fleet": placement.fleet,
            "by_model": None if placement.fleet else list(placement.by_model),
            "spot_price": prices.spot,
            "dedicated_price": prices.dedicated,
            "currency": prices.currency,
        }
        if self._connection.execute(_START, parameters).rowcount != 1:
            self._connection.rollback()
            return None
        self._spread(placement)
        self._connection.execute(
            _ADD_SEGMENTS,
            {
                "batch": self.job.batch,
                "tenant": self.job.tenant,
                "segments": msgspec.json.encode(segments).decode(),
            },
        )
        events = tuple(
            segment_event(
                self._new_id(),
                EventType.SEGMENT_CREATED,
                self.job.tenant,
                self.job.batch,
                segment.number,
                self.job.trace,
            )
            for segment in segments[1:]
        )
        for event in events:
            add_event(self._connection, event)
        return events

    def finish(self) -> bool:
        """Store the segment, and queue it unless the batch is ending; return whether it is queued.

        Raises DamagedIndex.
        """
        self._store()
        batch = {"batch": self.job.batch}
        is_open = self._connection.execute(_LOCK_OPEN, batch).one_or_none() is not None
        if is_open:
            self._queue(self.placement)
        if self.placement.fleet is None:
            self._count(self.placement)
        self._connection.execute(_IS_SPLIT, batch | {"number": self.segment.number})
        return is_open

    def _spread(self, placement: Placement) -> None:
        """Record the requests by fleet; the fleets may have changed since the batch was created."""
        rows = self._connection.execute(_FORGET_PARTS, {"batch": self.job.batch})
        known = {row.fleet: row for row in rows}
        parts = [
            replace(part, spot_price=before.spot_price, dedicated_price=before.dedicated_price)
            if (before := known.get(part.fleet))
            else part
            for part in placement.spread
        ]
        add_parts(self._connection, self.job.tenant, self.job.batch, parts)
        if placement.spread:
            self._count(placement)

    def _count(self, placement: Placement) -> None:
        """Count the requests of this segment as split, by fleet."""
        parameters = {"batch": self.job.batch, "by_model": list(placement.by_model)}
        self._connection.execute(_COUNT_SPLIT, parameters)

    def _queue(self, placement: Placement) -> None:
        parameters = {
            "batch": self.job.batch,
            "fleet": placement.fleet,
            "by_model": list(placement.by_model),
            "last": self.segment.first_line + self.segment.lines - 1,
        }
        self._connection.execute(_QUEUE, parameters)
        self._connection.execute(_NOTIFY, {"channel": QUEUED_CHANNEL})

    def _store(self) -> None:
        segment, job = self.segment, self.job
        parameters = {
            "batch": job.batch,
            "tenant": job.tenant,
            "first": segment.first_line,
            "last": segment.first_line + segment.lines - 1,
        }
        if self._connection.execute(_STORE, parameters).rowcount != segment.lines:
            raise DamagedIndex
        enqueue(self._connection, job.batch, job.tenant, segment.first_line, segment.lines)


class _CopySource:
    """Blocks for COPY; an error of their source ends the copy and is kept as `failure`:

    an exception inside the driver's copy loop would leave the connection in copy mode.
    """

    def __init__(self, rows: Iterable[bytes]) -> None:
        self._rows = rows
        self.failure: Exception | None = None

    def blocks(self) -> Iterator[bytes]:
        try:
            yield from self._rows
        except Exception as failure:  # noqa: BLE001 - raised again where COPY ends
            self.failure = failure


def _is_bad_data(error: Exception) -> bool:
    details = error.args[0] if error.args else None
    return isinstance(details, dict) and str(details.get("C", "")).startswith(_BAD_DATA)


def segments_in(cut: Sequence[FileSegment]) -> Sequence[Segment]:
    """Return the segments of a batch, for those of its file."""
    segments, first_line = [], 1
    for number, each in enumerate(cut, 1):
        segments.append(Segment(number, first_line, each.lines, each.start, each.end))
        first_line += each.lines
    return segments


class SplitStore:
    """Transactions of splits, one at a time per segment."""

    def __init__(
        self, engine: Engine, *, new_id: Callable[[], UUID], ledger: LedgerKeeper = NO_LEDGER
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._new_id = new_id

    def job(self, batch: BatchId, max_lines: int) -> SplitJob | None:
        """Return the job of a batch that waits for its split, else None.

        An index with more than `max_lines` requests is left out.
        """
        with begin(self._engine) as connection:
            row = connection.execute(_JOB, {"batch": batch, "max_lines": max_lines}).one_or_none()
        if row is None:
            return None
        if row.segments is None:
            return _job(batch, row)
        models = models_of(row.models) or ((row.model, row.lines),)
        return _job(batch, row, Index(models, segments_of(row.segments)))

    @contextmanager
    def open(
        self, job: SplitJob, segments: Sequence[FileSegment]
    ) -> Iterator[SplitTransaction | None]:
        """Open the transaction of a batch's first segment; None if the batch does not wait for it.

        Of two deliveries of the same event, one waits for the other here, and finds the split done.
        """
        # In a transaction of its own: until it ends, no other partition can be made or dropped.
        with begin(self._engine) as connection:
            connection.execute(_MAKE_PARTITIONS, {"batch": job.batch})
        with begin(self._engine) as connection:
            connection.execute(
                text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"),
                {"key": f"split {job.batch}"},
            )
            row = connection.execute(_JOB, {"batch": job.batch, "max_lines": 0}).one_or_none()
            if row is None:
                yield None
            else:
                first, *_ = segments_in(segments)
                yield SplitTransaction(connection, job, first, self._new_id)

    @contextmanager
    def open_segment(self, batch: BatchId, number: int) -> Iterator[SplitTransaction | None]:
        """Open the transaction of another segment; None if it is split already.

        Of two deliveries of the same event, one waits for the other here, and finds the split done.
        """
        with begin(self._engine) as connection:
            row = connection.execute(_SEGMENT, {"batch": batch, "number": number}).one_or_none()
            if row is None:
                yield None
            else:
                segment = Segment(
                    row.number, row.first_line, row.lines, row.index_start, row.index_end
                )
                placement = Placement(row.fleet, by_model=tuple(row.fleet_of_model or ()))
                yield SplitTransaction(
                    connection, _job(batch, row), segment, self._new_id, placement
                )

    def reject(self, batch: BatchId, problems: Sequence[Problem]) -> None:
        """Fail a batch because of problems in its file, unless another cell ends it."""
        errors = msgspec.json.encode([asdict(problem) for problem in problems]).decode()
        with begin(self._engine) as connection:
            if connection.execute(_REJECT, {"batch": batch, "errors": errors}).rowcount != 1:
                return
            if not self._ledger.may_end(batch):
                connection.rollback()
                return
        self._ledger.ended(batch)

    def keep_alive(self, batch: BatchId) -> bool:
        """Record that a batch's file is being validated; return False if the batch is ending."""
        with begin(self._engine) as connection:
            return connection.execute(_KEEP_ALIVE, {"batch": batch}).rowcount == 1

    def expect_index(self, job: SplitJob) -> None:
        """Record the index as an orphan before it is written, unless its file has one already."""
        parameters = {"file": job.file, "input_key": job.input_key}
        with begin(self._engine) as connection:
            if connection.execute(_IS_INDEXED, parameters).one_or_none() is None:
                key = index_key(job.input_key)
                add_orphans(connection, job.tenant, [key], LONGEST_UPLOAD_SECONDS)

    def record_index(self, job: SplitJob, index: Index) -> None:
        """Record the index and the result of the checks, unless the file is deleted.

        Without a file, the index stays an orphan, which is kept while the batch reads it.
        """
        key = index_key(job.input_key)
        parameters = {
            "file": job.file,
            "input_key": job.input_key,
            "endpoint": job.endpoint,
            "model": index.model,
            "models": encode_models(index.models if len(index.models) > 1 else None),
            "lines": sum(segment.lines for segment in index.segments),
            "key": key,
            "segments": encode_segments(index.segments),
        }
        with begin(self._engine) as connection:
            if connection.execute(_RECORD_INDEX, parameters).rowcount == 1:
                remove_orphans(connection, [key])

    def locate_segments(self, batch: BatchId, index: Index) -> None:
        """Record the positions of a batch's segments in an index that was written again.

        Its rows are at other positions than before if another version wrote them.
        """
        segments = msgspec.json.encode(segments_in(index.segments)).decode()
        with begin(self._engine) as connection:
            connection.execute(_LOCATE_SEGMENTS, {"batch": batch, "segments": segments})

    def drain(self, batch: BatchId) -> tuple[Event, ...]:
        """Drain a batch that ended before all its segments were split, if this was the last one.

        In a transaction of its own, after the segment's: of two that end at the same time, the one
        that looks last sees both.
        """
        with begin(self._engine) as connection:
            return note_drained(connection, [batch], self._new_id)


def _job(batch: BatchId, row: Any, index: Index | None = None) -> SplitJob:
    return SplitJob(
        batch,
        TenantId(row.tenant_id),
        FileId(row.input_file_id),
        row.input_key,
        row.endpoint,
        trace_of(row),
        index,
    )
