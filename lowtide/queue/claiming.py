"""Claims: a list of the batches that wait, and a set of their requests taken in one statement."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import text

from lowtide.core.ids import BatchId, TenantId
from lowtide.core.pools import Pool
from lowtide.database.connections import begin
from lowtide.database.prepared import hot
from lowtide.events.outbox import trace_of
from lowtide.objects.names import DataKeyId
from lowtide.queue.claims import Claim
from lowtide.queue.draining import Mark
from lowtide.queue.fairness import FairShare, Lane, without

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection, Engine

    from lowtide.core.ids import LeaseId
    from lowtide.core.pools import FleetPool
    from lowtide.queue.fairness import Share


# Excludes a paused pool and tenants with a quota that is used up, whose lanes a claim would try one
# by one in vain (TAKE enforces the pause, the headroom the quota), and models that the worker's
# engine lacks, whose requests it could only release.
def _lanes(order: str) -> str:
    return f"""
SELECT b.id, b.tenant_id, t.weight, t.max_running_lines AS max_running,
  coalesce(t.max_tokens_per_day, t.max_spend_per_month) IS NOT NULL AS has_quota, b.at_risk, b.priority,
  extract(epoch FROM b.deadline - now())::double precision AS due_in,
  extract(epoch FROM b.barrier - now())::double precision AS barrier_in
FROM tenants t CROSS JOIN LATERAL (
  SELECT b.id, b.tenant_id, b.deadline, b.at_risk, b.priority, b.barrier FROM batches b
  CROSS JOIN LATERAL (
    SELECT FROM queued_runs q
    WHERE q.fleet = :fleet AND q.pool = :pool AND q.batch_id = b.id
      AND q.available_at <= statement_timestamp()
    ORDER BY q.available_at LIMIT 1) waiting
  WHERE b.tenant_id = t.id AND b.status = 'in_progress' AND b.drained_at IS NULL AND NOT b.expiring
    AND coalesce(b.fleet, :fleet) = :fleet AND coalesce(b.model, '') <> ALL(cast(:without AS text[]))
  ORDER BY {order} LIMIT :most) b
WHERE NOT EXISTS (SELECT FROM paused_pools WHERE fleet = :fleet AND pool = :pool)
  AND NOT EXISTS (SELECT FROM exhausted_quotas WHERE tenant_id = t.id AND until > now())
"""  # noqa: S608 - a constant of ours


# Each pool's own order, so that no lane is hidden behind LANES_A_TENANT later ones of its tenant.
LANES = {
    Pool.SPOT: _lanes("b.barrier, b.priority DESC, b.deadline"),
    Pool.DEDICATED: _lanes("b.deadline"),
}
_LANES = {pool: hot(statement) for pool, statement in LANES.items()}
LANES_A_TENANT = 100

# Columns of a batch `b`, and of a run: its requests are records of line, start, length and checksum,
# in hexadecimal, which takes half the time of JSON.
_OF_BATCH = """b.endpoint, b.model, b.zero_retention, b.input_key, b.tenant_id, b.traceparent,
  b.tracestate, extract(epoch FROM b.deadline - now())::double precision AS due_in"""
_RUN = """json_build_array({run}.attempts, {run}.interruptions,
    extract(epoch FROM now() - {run}.queued_at), r.requests)"""
_NO_CHECKSUM = 1 << 32
_REQUESTS = f"""
  SELECT coalesce(encode(string_agg(int4send(line) || int8send(start) || int4send(length)
    || int8send(coalesce(checksum, {_NO_CHECKSUM})), '' ORDER BY line), 'hex'), '') AS requests
  FROM requests WHERE batch_id = {{run}}.batch_id AND line >= lower({{lines}}) AND line < upper({{lines}})
    AND {{lines}} @> line OFFSET 0"""  # noqa: S608

# KEY SHARE on the worker's row: a lease cannot be reaped while it claims, nor claim once it was
# reaped, nor while its pool is paused. A tenant's share comes from its lanes in order, each from
# its mark on. A row per line ends the scan at the last line that is needed, so that no other run is
# locked. What is left of the last run is a new row: another claim, which began earlier, passes by a
# deleted row, but would stop at a changed one. The ARRAY form keeps the plan a Tid Scan whatever
# the estimates, and OFFSET 0 keeps the last joins lookups by key, of each run and each batch. One
# row per batch is returned: the driver would take longer to read a row per request than the server
# takes to find it.
TAKE = f"""
WITH lease AS MATERIALIZED (
  SELECT id FROM workers
  WHERE id = :lease AND NOT EXISTS (
    SELECT FROM paused_pools WHERE fleet = :fleet AND pool = :pool) FOR KEY SHARE
), found AS MATERIALIZED (
  SELECT place, count(*)::integer AS wanted FROM (
    SELECT found.place
    FROM json_to_recordset(cast(:shares AS json)) AS share (lines integer, lanes json)
    CROSS JOIN LATERAL (
      SELECT waiting.place
      FROM json_to_recordset(share.lanes) AS lane (batch uuid, at timestamptz, line integer)
      CROSS JOIN LATERAL (
        SELECT q.ctid AS place, q.size FROM queued_runs q
        WHERE q.fleet = :fleet AND q.pool = :pool AND q.batch_id = lane.batch
          AND q.available_at <= statement_timestamp()
          AND (q.available_at, q.line) > (lane.at, lane.line)
        ORDER BY q.available_at, q.line LIMIT share.lines FOR UPDATE SKIP LOCKED) waiting
      CROSS JOIN LATERAL generate_series(1, waiting.size)
      LIMIT share.lines) found
    WHERE EXISTS (SELECT 1 FROM lease)) line
  GROUP BY place
), removed AS (
  DELETE FROM queued_runs WHERE ctid = ANY(ARRAY(SELECT place FROM found))
  RETURNING ctid AS place, *
), taken AS MATERIALIZED (
  SELECT r.*, f.wanted,
    CASE WHEN f.wanted = r.size THEN r.lines ELSE first_lines(r.lines, f.wanted) END AS mine
  FROM removed r JOIN found f ON f.place = r.place
), rest AS (
  INSERT INTO queued_runs (batch_id, tenant_id, deadline, available_at, queued_at, line, size,
    attempts, interruptions, lost_leases, escalated, fleet, pool, lines)
  SELECT batch_id, tenant_id, deadline, available_at, queued_at, lower(lines - mine), size - wanted,
    attempts, interruptions, lost_leases, escalated, fleet, pool, lines - mine
  FROM taken WHERE wanted < size
), held AS (
  INSERT INTO claimed_runs (batch_id, tenant_id, lease_id, deadline, queued_at, claimed_at, line, size,
    attempts, interruptions, lost_leases, escalated, fleet, pool, lines)
  SELECT batch_id, tenant_id, :lease, deadline, queued_at, now(), line, wanted, attempts,
    interruptions, lost_leases, escalated, fleet, pool, mine FROM taken
)
SELECT t.batch_id, {_OF_BATCH}, now() AS claimed_at, t.at, t.line, t.runs
FROM (
  SELECT t.batch_id, max(t.available_at) AS at,
    (array_agg(t.line ORDER BY t.available_at DESC, t.line DESC))[1] AS line,
    json_agg({_RUN.format(run="t")} ORDER BY t.available_at, t.line)::text AS runs
  FROM taken t
  CROSS JOIN LATERAL ({_REQUESTS.format(run="t", lines="t.mine")}) r
  GROUP BY t.batch_id) t
CROSS JOIN LATERAL (SELECT * FROM batches WHERE id = t.batch_id OFFSET 0) b
"""  # noqa: S608 - constants of ours
_TAKE = hot(TAKE)
_MAY_TAKE = hot("""
SELECT EXISTS (SELECT FROM workers WHERE id = :lease)
  AND NOT EXISTS (SELECT FROM paused_pools WHERE fleet = :fleet AND pool = :pool)
""")

# Requests of a claim whose commit was never confirmed: no other worker would ever run them, since
# the lease lives on.
_UNCONFIRMED = text(f"""
SELECT c.batch_id, {_OF_BATCH}, c.claimed_at, json_agg({_RUN.format(run="c")} ORDER BY c.line)::text AS runs
FROM claimed_runs c
JOIN batches b ON b.id = c.batch_id
CROSS JOIN LATERAL ({_REQUESTS.format(run="c", lines="c.lines")}) r
WHERE c.lease_id = :lease AND c.claimed_at > coalesce(cast(:since AS timestamptz), '-infinity')
GROUP BY c.batch_id, b.id, c.claimed_at
""")  # noqa: S608 - constants of ours

# Claims of a tenant with such a limit run one at a time: two would both count the last free place.
_LOCK_TENANT = text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))")
_TRY_LOCK_TENANT = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:key, 0))")
_RUNNING = text("""
SELECT t.id, (SELECT coalesce(sum(n.running), 0)::bigint FROM fleets f CROSS JOIN LATERAL (
    SELECT sum(c.size) AS running FROM claimed_runs c
    WHERE c.fleet = f.name AND c.pool IN ('spot', 'dedicated') AND c.tenant_id = t.id) n) AS running
FROM unnest(cast(:tenants AS uuid[])) AS t (id)
""")

_USED_UP = text("""
SELECT t.id FROM unnest(cast(:tenants AS uuid[])) AS t (id)
WHERE EXISTS (SELECT FROM used_up_quotas(t.id))
""")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[tuple[int, int, float, str]]).decode
_unpack = struct.Struct(">iqiq").iter_unpack
_START = {"at": "-infinity", "line": 0}
_LISTING_SHARE = 20
"""Listing the lanes may take one part in this many of a busy worker's time."""
_MAX_LISTING_INTERVAL = 1.0
"""Max seconds between two listings of a busy worker, however long one takes."""
_TRIES = 3
_LOCK_SECONDS = 0.01
"""Another claim, or a move, may hold the only run of a small batch until it commits."""


class Claiming:
    """Claims for one worker of a fleet's pool, with memory of the lanes and marks.

    A mark is the position up to which a lane's requests were taken. A scan starts there; otherwise
    it would crawl over index entries of deleted rows that vacuum could not remove yet. Requests
    that return to a lane come after every mark, since they become available later. Requests that a
    mark did skip (another claim that was rolled back) are found once the lane comes up short, which
    drops its mark.

    After a failure it is unknown whether requests were taken: the next claim checks.
    """

    def __init__(self, engine: Engine, place: FleetPool) -> None:
        self._engine = engine
        self._place = place
        self._where = {"fleet": place.fleet, "pool": place.pool.value}
        self._turns = FairShare(place.pool)
        self._lanes: list[Lane] = []
        self._next_listing = 0.0
        self._claimed_at: datetime | None = None
        self._is_in_doubt = self._is_locked_out = False
        self._excluded_models: frozenset[str] = frozenset()
        self.marks: dict[UUID, Mark] = {}

    def claim(
        self, lease: LeaseId, lines: int, without: frozenset[str] = frozenset()
    ) -> list[Claim]:
        """Claim up to `lines` of the most urgent requests, of no model in `without`.

        Claims none if the lease is gone or the pool is paused.
        """
        if without != self._excluded_models:
            self._excluded_models, self._lanes, self._next_listing = without, [], 0.0
        for _ in range(_TRIES):
            claims = self._try(lease, lines)
            if claims or not self._is_locked_out:
                break
            sleep(_LOCK_SECONDS)
        return claims

    def _try(self, lease: LeaseId, lines: int) -> list[Claim]:
        try:
            with begin(self._engine) as connection:
                claims, at = (
                    self._unconfirmed(connection, lease) if self._is_in_doubt else ([], None)
                )
                if not claims:
                    claims, at = self._claim(connection, lease, lines)
        except Exception:
            self._is_in_doubt = True
            self._lanes, self.marks = [], {}
            raise
        self._is_in_doubt = False
        self._claimed_at = at or self._claimed_at
        return claims

    def _unconfirmed(
        self, connection: Connection, lease: LeaseId
    ) -> tuple[list[Claim], datetime | None]:
        rows = connection.execute(_UNCONFIRMED, {"lease": lease, "since": self._claimed_at}).all()
        claims = [claim for row in rows for claim in _claims(row)]
        return claims, max((row.claimed_at for row in rows), default=None)

    def _claim(
        self, connection: Connection, lease: LeaseId, lines: int
    ) -> tuple[list[Claim], datetime | None]:
        claims: list[Claim] = []
        locked: set[TenantId] = set()
        at = None
        may_take = self._is_locked_out = False
        fresh = monotonic() >= self._next_listing
        if fresh:
            self._list_lanes(connection)
        while len(claims) < lines:
            shares = self._turns.plan(self._lanes, lines - len(claims))
            if shares:
                headroom = _headroom(connection, shares, locked)
                wanted = [_capped(share, headroom) for share in shares]
                rows = self._take(connection, lease, wanted)
                at = rows[0].claimed_at if rows else at
                claims += self._collect_claims(shares, headroom, rows)
                # Lanes listed earlier may be many, and each would be tried in vain.
                may_take = may_take or bool(rows) or self._may_take(connection, lease)
                if not may_take:
                    self._lanes = []
                    break
                self._is_locked_out = fresh and any(share.lines for share in wanted)
            elif fresh:
                break
            else:
                fresh = True
                self._list_lanes(connection)
        return claims, at

    def _may_take(self, connection: Connection, lease: LeaseId) -> bool:
        parameters = {"lease": lease, **self._where}
        return bool(connection.execute(_MAY_TAKE, parameters).scalar_one())

    def _list_lanes(self, connection: Connection) -> None:
        """List the batches that wait; the time of the next listing depends on the duration."""
        began = monotonic()
        parameters = {
            **self._where,
            "most": LANES_A_TENANT,
            "without": sorted(self._excluded_models),
        }
        self._lanes = [
            Lane(
                BatchId(row.id),
                TenantId(row.tenant_id),
                row.due_in,
                row.weight,
                row.at_risk,
                row.max_running,
                row.has_quota,
                row.priority,
                math.inf if row.barrier_in is None else row.barrier_in,
            )
            for row in connection.execute(_LANES[self._place.pool], parameters)
        ]
        waiting = {lane.batch for lane in self._lanes}
        self.marks = {batch: mark for batch, mark in self.marks.items() if batch in waiting}
        listed_at = monotonic()
        self._next_listing = listed_at + min(
            (listed_at - began) * _LISTING_SHARE, _MAX_LISTING_INTERVAL
        )

    def _collect_claims(
        self, shares: Sequence[Share], headroom: Mapping[TenantId, int], rows: Sequence[Any]
    ) -> list[Claim]:
        """Count the requests taken, and drop the lanes that had no more."""
        claims = {row.batch_id: _claims(row) for row in rows}
        self.marks |= {
            row.batch_id: Mark(self._place.fleet, self._place.pool.value, row.at, row.line)
            for row in rows
        }
        exhausted: list[Lane] = []
        for share in shares:
            remaining = _capped(share, headroom).lines
            for lane in share.lanes:
                remaining -= len(claims.get(lane.batch, ()))
                if remaining > 0:
                    exhausted.append(lane)
                    self.marks.pop(lane.batch, None)
            claimed = sum(len(claims.get(lane.batch, ())) for lane in share.lanes)
            self._turns.served(share, claimed)
            if claimed < share.lines:
                exhausted += share.lanes
        self._lanes = without(self._lanes, exhausted)
        return [
            claim
            for share in shares
            for lane in share.lanes
            for claim in claims.get(lane.batch, ())
        ]

    def _take(
        self, connection: Connection, lease: LeaseId, shares: Sequence[Share]
    ) -> Sequence[Any]:
        payload = [
            {
                "lines": share.lines,
                "lanes": [self._lane(lane.batch) for lane in share.lanes],
            }
            for share in shares
        ]
        parameters = {
            "lease": lease,
            **self._where,
            "shares": _encode(payload).decode(),
        }
        return connection.execute(_TAKE, parameters).all()

    def _lane(self, batch: BatchId) -> dict[str, Any]:
        mark = self.marks.get(batch)
        position = _START if mark is None else {"at": mark.at, "line": mark.line}
        return {"batch": batch, **position}


def _claims(row: Any) -> list[Claim]:
    batch, tenant, trace = BatchId(row.batch_id), TenantId(row.tenant_id), trace_of(row)
    data_key = DataKeyId(tenant, batch) if row.zero_retention else None
    endpoint, input_key, due_in, model = row.endpoint, row.input_key, row.due_in, row.model
    is_mixed = model is None
    return [
        Claim(
            batch,
            endpoint,
            input_key,
            line,
            start,
            length,
            attempts,
            interruptions,
            waited,
            None if checksum == _NO_CHECKSUM else checksum,
            tenant,
            trace,
            due_in,
            model,
            data_key,
            is_mixed,
        )
        for attempts, interruptions, waited, requests in _decode(row.runs)
        for line, start, length, checksum in _unpack(bytes.fromhex(requests))
    ]


def _headroom(
    connection: Connection, shares: Sequence[Share], locked: set[TenantId]
) -> dict[TenantId, int]:
    """Return how many more requests each tenant with a limit or a quota may have claimed.

    It is 0 once a quota is used up. `locked` holds the tenants that this transaction has locked, and
    gets those that it locks now. Once it has any, it does not wait for another, whose owner may be
    waiting for it: no room there.
    """
    closed = _used_up(connection, shares)
    limits = {
        share.tenant: share.lanes[0].max_running
        for share in shares
        if share.lanes[0].max_running is not None
    }
    if not limits:
        return closed
    lock = _TRY_LOCK_TENANT if locked else _LOCK_TENANT
    for tenant in sorted(limits.keys() - locked):
        if connection.execute(lock, {"key": f"claim {tenant}"}).scalar_one() is not False:
            locked.add(tenant)
    rows = connection.execute(_RUNNING, {"tenants": list(limits)})
    room = {row.id: max(0, limits[row.id] - row.running) if row.id in locked else 0 for row in rows}
    return room | closed


def _used_up(connection: Connection, shares: Sequence[Share]) -> dict[TenantId, int]:
    tenants = [share.tenant for share in shares if share.lanes[0].has_quota]
    if not tenants:
        return {}
    return dict.fromkeys(connection.execute(_USED_UP, {"tenants": tenants}).scalars(), 0)


def _capped(share: Share, headroom: Mapping[TenantId, int]) -> Share:
    return replace(share, lines=min(share.lines, headroom.get(share.tenant, share.lines)))
