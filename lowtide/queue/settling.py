"""Settlement: claimed requests end or go back, in one transaction that their lease fences."""

from __future__ import annotations

import struct
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from sqlalchemy import text

from lowtide.core.ids import BatchId
from lowtide.core.runs import RUN_LINES, block_of, lines_of, multirange
from lowtide.database.prepared import Copied, copying, hot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import Connection

    from lowtide.core.ids import LeaseId
    from lowtide.queue.claims import Finished, Returned

# Each run is looked up by key (LATERAL): the statistics of a table that fills and empties all the
# time are poor, and a plain join may read all of it, dead rows included.
_GIVEN: Final = """json_to_recordset(cast(:runs AS json))
    AS g (batch uuid, first integer, lines int4multirange)"""
_RUN_OF: Final = f"""batch_id = g.batch AND line >= g.first AND line < g.first + {RUN_LINES}
      AND lease_id = :lease AND lines && g.lines"""
# What of the given lines is under the lease, a row for all with the same history: the driver takes
# longer to read a row than to find a request. The lock keeps it so: a statement that waits for a lock
# sees the latest version of a run, but changes only the one of its snapshot.
MINE = f"""
WITH mine AS MATERIALIZED (
  SELECT c.*, c.lines * g.lines AS mine FROM {_GIVEN}
  CROSS JOIN LATERAL (SELECT * FROM claimed_runs WHERE {_RUN_OF} ORDER BY line FOR UPDATE) c
)
SELECT batch_id, tenant_id, lease_id, deadline, queued_at, claimed_at, attempts, interruptions,
  escalated, fleet, pool, range_agg(mine)::text AS mine, now() AS finished_at,
  extract(epoch FROM now() - claimed_at)::double precision AS seconds, now() <= deadline AS in_time
FROM mine GROUP BY batch_id, tenant_id, lease_id, deadline, queued_at, claimed_at, attempts,
  interruptions, escalated, fleet, pool
ORDER BY batch_id
"""  # noqa: S608 - constants of ours
_MINE = hot(MINE)
# Exactly what MINE found: the lease may have claimed some of the given lines since then.
_WITHOUT_MINE: Final = f"""mine AS MATERIALIZED (
  SELECT *, (first - 1) / {RUN_LINES} AS block FROM json_to_recordset(cast(:mine AS json))
    AS g (batch uuid, first integer, lines int4multirange, claimed_at timestamptz)
), touched AS MATERIALIZED (
  SELECT c.place, c.is_over FROM mine g CROSS JOIN LATERAL (
    SELECT ctid AS place, lines <@ g.lines AS is_over FROM claimed_runs
    WHERE {_RUN_OF} AND claimed_at = g.claimed_at OFFSET 0) c
), ended AS (
  DELETE FROM claimed_runs WHERE ctid = ANY(ARRAY(SELECT place FROM touched WHERE is_over))
), shortened AS (
  UPDATE claimed_runs c SET lines = c.lines - g.lines, size = line_count(c.lines - g.lines)
  FROM mine g
  WHERE c.ctid = ANY(ARRAY(SELECT place FROM touched WHERE NOT is_over))
    AND g.batch = c.batch_id AND g.block = (c.line - 1) / {RUN_LINES} AND g.claimed_at = c.claimed_at
)"""  # noqa: S608 - constants of ours
END_CLAIMS = f"WITH {_WITHOUT_MINE} SELECT count(*) FROM touched"  # noqa: S608 - constants of ours
_END_CLAIMS = hot(END_CLAIMS)
_COLUMNS: Final = """batch_id, tenant_id, lease_id, started_at, finished_at, interruptions, escalated,
  pool, line, attempts, succeeded, dead_lettered, input_tokens, output_tokens, status_code, request_id,
  body, error_code, error_message, model_revision"""
FINISH = f"""
WITH {_WITHOUT_MINE}, sums AS MATERIALIZED (
  SELECT * FROM json_to_recordset(cast(:sums AS json)) AS s (
    batch_id uuid, fleet text, pool text, tenant_id uuid, completed integer, failed integer,
    dead_lettered integer, input_tokens bigint, output_tokens bigint, cached_tokens bigint,
    reasoning_tokens bigint, replica_seconds double precision, running_seconds double precision)
), letters AS MATERIALIZED (
  SELECT * FROM json_to_recordset(cast(:letters AS json)) AS g (
    batch_id uuid, tenant_id uuid, line integer, pool text, attempts smallint, status_code smallint,
    error_code text, error_message text)
), buried AS (
  INSERT INTO dead_letters (batch_id, line, tenant_id, attempts, error_code, error_message)
  SELECT batch_id, line, tenant_id, attempts, error_code, error_message FROM letters
), noted AS (
  INSERT INTO request_events (tenant_id, batch_id, line, kind, pool, lease_id, detail)
  SELECT tenant_id, batch_id, line, 'dead_lettered', pool, :lease,
    coalesce(error_message, 'HTTP ' || status_code) FROM letters
), tallied AS (
  INSERT INTO tallies AS t (batch_id, fleet, pool, lease_id, tenant_id, completed, failed,
    dead_lettered, input_tokens, output_tokens, cached_tokens, reasoning_tokens, replica_seconds,
    running_seconds)
  SELECT batch_id, fleet, pool, :lease, tenant_id, completed, failed, dead_lettered, input_tokens,
    output_tokens, cached_tokens, reasoning_tokens, replica_seconds, running_seconds
  FROM sums ORDER BY batch_id, pool
  ON CONFLICT (batch_id, pool, lease_id) DO UPDATE SET
    completed = t.completed + excluded.completed, failed = t.failed + excluded.failed,
    dead_lettered = t.dead_lettered + excluded.dead_lettered,
    input_tokens = t.input_tokens + excluded.input_tokens,
    output_tokens = t.output_tokens + excluded.output_tokens,
    cached_tokens = t.cached_tokens + excluded.cached_tokens,
    reasoning_tokens = t.reasoning_tokens + excluded.reasoning_tokens,
    replica_seconds = t.replica_seconds + excluded.replica_seconds,
    running_seconds = t.running_seconds + excluded.running_seconds
)
INSERT INTO usage_days AS u (tenant_id, day, currency, pool, shard, requests, input_tokens,
  output_tokens, cost, dedicated_cost)
SELECT s.tenant_id, (now() AT TIME ZONE 'UTC')::date, b.currency, s.pool, :shard,
  sum(s.completed + s.failed), sum(s.input_tokens), sum(s.output_tokens),
  sum(s.replica_seconds / 3600 * CASE s.pool WHEN 'spot' THEN b.spot ELSE b.dedicated END),
  sum(s.replica_seconds / 3600 * b.dedicated)
FROM sums s
CROSS JOIN LATERAL (
  SELECT currency, coalesce(p.spot_price, o.spot_price) AS spot,
    coalesce(p.dedicated_price, o.dedicated_price) AS dedicated
  FROM batches o
  LEFT JOIN batch_fleets p ON o.fleet IS NULL AND p.batch_id = o.id AND p.fleet = s.fleet
  WHERE o.id = s.batch_id OFFSET 0) b
GROUP BY s.tenant_id, b.currency, s.pool ORDER BY s.tenant_id, b.currency, s.pool
ON CONFLICT (tenant_id, day, currency, pool, shard) DO UPDATE SET
  requests = u.requests + excluded.requests,
  input_tokens = u.input_tokens + excluded.input_tokens,
  output_tokens = u.output_tokens + excluded.output_tokens, cost = u.cost + excluded.cost,
  dedicated_cost = u.dedicated_cost + excluded.dedicated_cost
"""  # noqa: S608 - constants of ours
_FINISH = hot(FINISH)
_USAGE_SHARDS: Final = 16
"""Rows that the settling workers of a tenant share, each locked until its settlement commits."""

_PARTITION = text("""
SELECT name FROM data_partitions
WHERE parent = 'results' AND coalesce(low <= :batch, true) AND high > :batch
""")
_MILLISECONDS_A_DAY: Final = 86_400_000

_COPY_HEAD: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END: Final = b"\xff\xff"
_COLUMN_COUNT: Final = struct.pack(">h", 20)
_NULL: Final = struct.pack(">i", -1)
_size: Final = struct.Struct(">i").pack
_of_run: Final = struct.Struct(">i16si16si16siqiqihi?").pack
_of_request: Final = struct.Struct(">iiihi?i?iiii").pack
_status: Final = struct.Struct(">ihi").pack
_no_status: Final = struct.Struct(">ii").pack
_PIECE_BYTES: Final = 256 << 10
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_encode: Final = msgspec.json.Encoder().encode

_Ending = TypeVar("_Ending", "Finished", "Returned")


@dataclass(slots=True)
class Ended:
    """Counts of the finished requests that were under the lease, and their lines by batch."""

    finished: int = 0
    completed: int = 0
    in_time: int = 0
    lines: dict[BatchId, tuple[int, int]] = field(default_factory=dict)
    """The first and the last line of each batch."""

    def cover(self, batch: BatchId, first: int, last: int) -> None:
        """Count lines of a batch."""
        before = self.lines.get(batch, (first, last))
        self.lines[batch] = (min(before[0], first), max(before[1], last))


def take_back(
    connection: Connection, lease: LeaseId, requests: Sequence[Returned]
) -> list[dict[str, Any]]:
    """Remove requests from the claims; return those that were under the lease, a record for each."""
    by_line = _by_line(requests)
    rows = connection.execute(_MINE, {"lease": lease, "runs": _given(by_line)}).all()
    connection.execute(_END_CLAIMS, {"lease": lease, "mine": _mine(rows)})
    return [
        {
            "batch_id": row.batch_id,
            "tenant_id": row.tenant_id,
            "lease_id": row.lease_id,
            "deadline": row.deadline,
            "queued_at": row.queued_at,
            "line": line,
            "attempts": row.attempts,
            "interruptions": row.interruptions,
            "lost_leases": 0,
            "escalated": row.escalated,
            "fleet": row.fleet,
            "pool": row.pool,
            "reason": request.reason,
            "delay": request.delay,
            "failed": request.failed,
            "interrupted": request.interrupted,
        }
        for row in rows
        for line in lines_of(row.mine)
        for request in (by_line[row.batch_id][line],)
    ]


def finish(
    connection: Connection,
    lease: LeaseId,
    requests: Sequence[Finished],
    partitions: Partitions,
    revision: str | None,
) -> Ended:
    """End requests with their results; those not under the lease are skipped."""
    by_line = _by_line(requests)
    rows = connection.execute(_MINE, {"lease": lease, "runs": _given(by_line)}).all()
    if not rows:
        return Ended()
    ended = Ended()
    sums: dict[tuple[Any, ...], _Sum] = {}
    letters: list[dict[str, Any]] = []
    copies: dict[str, list[bytes]] = defaultdict(lambda: [_COPY_HEAD])
    revision_field = _field(None if revision is None else revision.encode())
    for row in rows:
        batch = row.batch_id
        of_batch = by_line[batch]
        mine = [of_batch[line] for line in lines_of(row.mine)]
        ended.cover(BatchId(batch), mine[0].line, mine[-1].line)
        key = batch, row.fleet, row.pool, row.tenant_id
        if key not in sums:
            sums[key] = _Sum(*key)
        completed = sums[key].add(mine, row.seconds)
        ended.finished += len(mine)
        ended.completed += completed
        ended.in_time += len(mine) if row.in_time else 0
        letters += [_letter(row, request) for request in mine if request.dead_letter]
        _add_rows(copies[partitions.of(connection, batch)], _prefix(row), mine, revision_field)
    for partition, parts in copies.items():
        parts.append(_COPY_END)
        statement = copying(f"COPY {partition} ({_COLUMNS}) FROM STDIN (FORMAT binary)")
        connection.exec_driver_sql(statement, (Copied(_pieces(parts)),))
    parameters = {
        "lease": lease,
        "mine": _mine(rows),
        "sums": _encode(list(sums.values())).decode(),
        "letters": _encode(letters).decode(),
        "shard": lease.int % _USAGE_SHARDS,
    }
    connection.execute(_FINISH, parameters)
    return ended


class Partitions:
    """The names of the partitions with results, which never change, by the day of a batch's id."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def of(self, connection: Connection, batch: UUID) -> str:
        """Return the partition with the results of a batch."""
        day = (batch.int >> 80) // _MILLISECONDS_A_DAY
        if day not in self._names:
            self._names[day] = connection.execute(_PARTITION, {"batch": batch}).scalar_one()
        return self._names[day]


class _Sum(msgspec.Struct):
    """What the requests of a batch add to its tally."""

    batch_id: Any
    fleet: str
    pool: str
    tenant_id: Any
    completed: int = 0
    failed: int = 0
    dead_lettered: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    replica_seconds: float = 0.0
    running_seconds: float = 0.0

    def add(self, requests: Sequence[Finished], seconds: float) -> int:
        """Add requests that ran for `seconds` each; return how many succeeded."""
        completed = sum(request.succeeded for request in requests)
        self.completed += completed
        self.failed += len(requests) - completed
        self.dead_lettered += sum(request.dead_letter for request in requests)
        self.input_tokens += sum(request.usage.input_tokens for request in requests)
        self.output_tokens += sum(request.usage.output_tokens for request in requests)
        self.cached_tokens += sum(request.usage.cached_tokens for request in requests)
        self.reasoning_tokens += sum(request.usage.reasoning_tokens for request in requests)
        self.replica_seconds += sum(request.replica_seconds for request in requests)
        self.running_seconds += seconds * len(requests)
        return completed


def _by_line(requests: Iterable[_Ending]) -> dict[UUID, dict[int, _Ending]]:
    """Return requests by batch and line.

    A UUID is hashed, and compared, in Python: once for neighbours of the same batch.
    """
    by_line: dict[UUID, dict[int, _Ending]] = defaultdict(dict)
    for batch, those in groupby(requests, key=attrgetter("batch")):
        by_line[batch].update((request.line, request) for request in those)
    return by_line


def _given(by_line: Mapping[UUID, Iterable[int]]) -> str:
    """Return lines of batches by block, in the order in which all settlements lock them."""
    given = [
        {"batch": batch, "first": first, "lines": multirange(lines)}
        for batch in sorted(by_line)
        for first, lines in groupby(sorted(by_line[batch]), key=block_of)
    ]
    return _encode(given).decode()


def _mine(rows: Iterable[Any]) -> str:
    """Return the lines that MINE found, by block and claim."""
    blocks: dict[tuple[UUID, datetime, int], list[int]] = defaultdict(list)
    for row in rows:
        for first, lines in groupby(lines_of(row.mine), key=block_of):
            blocks[row.batch_id, row.claimed_at, first] += lines
    mine = [
        {"batch": batch, "first": first, "lines": multirange(lines), "claimed_at": claimed_at}
        for (batch, claimed_at, first), lines in blocks.items()
    ]
    return _encode(mine).decode()


def _letter(row: Any, request: Finished) -> dict[str, Any]:
    return {
        "batch_id": row.batch_id,
        "tenant_id": row.tenant_id,
        "line": request.line,
        "pool": row.pool,
        "attempts": request.attempts,
        "status_code": request.status_code,
        "error_code": request.error_code,
        "error_message": request.error_message,
    }


def _prefix(row: Any) -> bytes:
    """Return the columns that a run's requests share, as COPY's binary format has them."""
    numbers = _of_run(
        16, row.batch_id.bytes, 16, row.tenant_id.bytes, 16, row.lease_id.bytes,
        8, _microseconds(row.claimed_at), 8, _microseconds(row.finished_at),
        2, row.interruptions, 1, row.escalated,
    )  # fmt: skip
    return _COLUMN_COUNT + numbers + _field(row.pool.encode())


def _microseconds(at: datetime) -> int:
    since = at - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _add_rows(
    parts: list[bytes], prefix: bytes, requests: Sequence[Finished], revision: bytes
) -> None:
    """Add requests in COPY's binary format: few parts for each, and no copy of an answer."""
    answered_end, unanswered_end = _NULL + _NULL + revision, _NULL + _NULL + _NULL
    for request in requests:
        usage, status, body = request.usage, request.status_code, request.body
        request_id = request.request_id.encode()
        numbers = _of_request(
            4, request.line, 2, request.attempts, 1, request.succeeded, 1, request.dead_letter,
            4, usage.input_tokens, 4, usage.output_tokens,
        )  # fmt: skip
        if status is None:
            end, answered = unanswered_end, _no_status(-1, len(request_id))
        else:
            end, answered = answered_end, _status(2, status, len(request_id))
        if request.error_code is not None or request.error_message is not None:
            error = _text_field(request.error_code) + _text_field(request.error_message)
            end = error + (_NULL if status is None else revision)
        if body is None:
            parts += (prefix + numbers + answered + request_id + _NULL, end)
        else:
            parts += (prefix + numbers + answered + request_id + _size(len(body)), body, end)


def _text_field(text: str | None) -> bytes:
    return _field(None if text is None else text.encode())


def _field(value: bytes | None) -> bytes:
    return _NULL if value is None else _size(len(value)) + value


def _pieces(parts: Sequence[bytes]) -> list[bytes]:
    """Return the same bytes in pieces of about 256 KiB; a longer part is not copied."""
    pieces: list[bytes] = []
    piece: list[bytes] = []
    size = 0
    for part in parts:
        if size + len(part) > _PIECE_BYTES and piece:
            pieces.append(b"".join(piece))
            piece, size = [], 0
        piece.append(part)
        size += len(part)
    return [*pieces, b"".join(piece)]
