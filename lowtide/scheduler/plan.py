"""Planning over all open batches, and the resulting moves between pools."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import text

from lowtide.core.ids import BatchId, TenantId
from lowtide.core.pools import FleetPool, Pool
from lowtide.database.connections import begin
from lowtide.planning.escalation import OpenBatch
from lowtide.planning.reasons import Reason
from lowtide.planning.state import PlanResult, SchedulerState
from lowtide.planning.urgency import changed_barriers
from lowtide.queue.draining import note_drained
from lowtide.queue.moving import last_lines, moved, open_batches
from lowtide.queue.store import requeue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import Connection, Engine

    from lowtide.planning.escalation import Move, Plan
    from lowtide.planning.fallback import FleetMove


_GIVEN = """json_to_recordset(cast(:moves AS json))
    AS g (batch uuid, lines integer, reason text, bound jsonb)"""
_COUNTED = """counted AS (
  SELECT batch_id, tenant_id, sum(wanted)::integer AS lines FROM taken GROUP BY batch_id, tenant_id
)"""
# Delayed requests move only if no others remain.
ESCALATE = f"""
WITH given AS MATERIALIZED ({open_batches(f"SELECT * FROM {_GIVEN}")}), ready AS MATERIALIZED ({
    last_lines(
        "given", "q.fleet = :fleet AND q.pool = 'spot' AND q.available_at <= statement_timestamp()"
    )
}), remaining AS MATERIALIZED (
  SELECT g.batch, g.lines - coalesce(sum(r.wanted), 0) AS lines
  FROM given g LEFT JOIN ready r ON r.batch = g.batch GROUP BY g.batch, g.lines
), delayed AS MATERIALIZED ({
    last_lines(
        "remaining",
        "q.fleet = :fleet AND q.pool = 'spot' AND q.available_at > statement_timestamp()",
    )
}), {moved(("ready", "delayed"), fleet="fleet", pool="dedicated", escalated=True)}, {
    _COUNTED
}, noted AS (
  INSERT INTO request_events (tenant_id, batch_id, lines, kind, pool, reason, bound)
  SELECT c.tenant_id, c.batch_id, c.lines, 'escalated', 'dedicated', g.reason, g.bound
  FROM counted c JOIN given g ON g.batch = c.batch_id
)
INSERT INTO tallies AS t (batch_id, fleet, pool, lease_id, tenant_id, escalated)
SELECT batch_id, :fleet, 'dedicated', lease_of_fleet(:fleet), tenant_id, lines FROM counted
ORDER BY batch_id
ON CONFLICT (batch_id, pool, lease_id) DO UPDATE SET escalated = t.escalated + excluded.escalated
RETURNING (SELECT sum(lines)::bigint FROM counted) AS moved
"""  # noqa: S608 - a constant of ours
_ESCALATE = text(ESCALATE)
GIVE_BACK = f"""
WITH given AS MATERIALIZED ({open_batches(f"SELECT * FROM {_GIVEN}")}), last AS MATERIALIZED ({last_lines("given", "q.fleet = :fleet AND q.pool = 'dedicated'")}),
{moved(("last",), fleet="fleet", pool="spot", escalated=False)}, {_COUNTED}, tallied AS (
  UPDATE tallies t SET escalated = greatest(0, t.escalated - c.lines) FROM counted c
  WHERE t.batch_id = c.batch_id AND t.pool = 'dedicated'
    AND t.lease_id = lease_of_fleet(:fleet)
)
INSERT INTO request_events (tenant_id, batch_id, lines, kind, pool, reason)
SELECT c.tenant_id, c.batch_id, c.lines, 'returned', 'spot', g.reason
FROM counted c JOIN given g ON g.batch = c.batch_id
RETURNING (SELECT sum(lines)::bigint FROM counted) AS moved
"""  # noqa: S608 - a constant of ours
_GIVE_BACK = text(GIVE_BACK)
# The latest claims have the least to lose.
REVOKE = f"""
WITH given AS MATERIALIZED (
  SELECT * FROM {_GIVEN}
), latest AS MATERIALIZED (
  SELECT place, count(*)::integer AS wanted FROM (
    SELECT latest.place FROM given g CROSS JOIN LATERAL (
      SELECT running.place FROM (
        SELECT c.ctid AS place, c.size FROM claimed_runs c
        WHERE c.batch_id = g.batch AND c.fleet = :fleet AND c.pool = 'spot'
        ORDER BY c.claimed_at DESC, c.line DESC LIMIT g.lines FOR UPDATE SKIP LOCKED) running
      CROSS JOIN LATERAL generate_series(1, running.size) LIMIT g.lines) latest) line
  GROUP BY place
), taken AS MATERIALIZED (
  SELECT c.*, f.wanted, CASE WHEN f.wanted = c.size THEN c.lines
    ELSE c.lines - first_lines(c.lines, c.size - f.wanted) END AS mine
  FROM latest f CROSS JOIN LATERAL (
    SELECT ctid AS place, * FROM claimed_runs WHERE ctid = f.place OFFSET 0) c
), removed AS (
  DELETE FROM claimed_runs WHERE ctid = ANY(ARRAY(SELECT place FROM taken WHERE wanted = size))
), shortened AS (
  UPDATE claimed_runs c SET size = c.size - t.wanted, lines = c.lines - t.mine
  FROM taken t
  WHERE c.ctid = ANY(ARRAY(SELECT place FROM taken WHERE wanted < size)) AND t.place = c.ctid
)
SELECT m.batch_id, m.tenant_id, m.lease_id, m.deadline, m.queued_at, l.line, m.attempts,
  m.interruptions, m.lost_leases, m.escalated, m.fleet, m.pool, '' AS reason, 0 AS delay, false AS failed,
  true AS interrupted, g.reason AS revoked, g.bound
FROM taken m JOIN given g ON g.batch = m.batch_id CROSS JOIN LATERAL lines_in(m.mine) l (line)
"""  # noqa: S608 - a constant of ours
_REVOKE = text(REVOKE)

# From the end of the lane, what waits for spot first; all of it waits for dedicated then, which gives
# back what its own spot pool can run in time.
FALL_BACK = f"""
WITH given AS MATERIALIZED ({
    open_batches(
        "SELECT * FROM json_to_recordset(cast(:moves AS json)) AS g (batch uuid, lines integer)"
    )
}), of_spot AS MATERIALIZED ({last_lines("given", "q.fleet = :source AND q.pool = 'spot'")}),
remaining AS MATERIALIZED (
  SELECT g.batch, g.lines - coalesce(sum(s.wanted), 0) AS lines
  FROM given g LEFT JOIN of_spot s ON s.batch = g.batch GROUP BY g.batch, g.lines
), of_dedicated AS MATERIALIZED ({
    last_lines("remaining", "q.fleet = :source AND q.pool = 'dedicated'")
}), {moved(("of_spot", "of_dedicated"), fleet=":target", pool="dedicated", escalated=True)}
SELECT batch_id AS batch, sum(wanted)::integer AS lines,
  (sum(wanted) FILTER (WHERE pool = 'spot'))::integer AS spot
FROM taken GROUP BY batch_id ORDER BY batch_id
"""  # noqa: S608 - constants of ours
_FALL_BACK = text(FALL_BACK)
# A batch of one fleet becomes one of several. Only a batch that is split: the requests of its other
# segments would not know their fleet.
_SPREAD = text("""
WITH single AS (
  SELECT id, tenant_id, fleet, model, total, spot_price, dedicated_price FROM batches
  WHERE id = ANY(cast(:batches AS uuid[])) AND fleet IS NOT NULL ORDER BY id FOR NO KEY UPDATE
), spread AS (
  UPDATE batches b SET fleet = NULL, fleet_of_model = ARRAY[s.fleet] FROM single s WHERE b.id = s.id
)
INSERT INTO batch_fleets (batch_id, tenant_id, fleet, model, lines, split, spot_price, dedicated_price)
SELECT id, tenant_id, fleet, model, total, total, spot_price, dedicated_price FROM single
""")
_MOVE_PARTS = text("""
WITH moved AS (
  SELECT * FROM json_to_recordset(cast(:moved AS json)) AS g (batch uuid, lines integer)
), source AS (
  UPDATE batch_fleets p SET lines = p.lines - m.lines, split = p.split - m.lines
  FROM moved m WHERE p.batch_id = m.batch AND p.fleet = :source
  RETURNING m.batch, m.lines, p.tenant_id, p.model
), noted AS (
  INSERT INTO request_events (tenant_id, batch_id, lines, kind, pool, reason, detail)
  SELECT tenant_id, batch, lines, 'escalated', 'dedicated', 'fallback', :target FROM source
), counted AS (
  INSERT INTO tallies AS t (batch_id, fleet, pool, lease_id, tenant_id, escalated)
  SELECT batch, :target, 'dedicated', lease_of_fleet(:target), tenant_id, lines FROM source
  ORDER BY batch
  ON CONFLICT (batch_id, pool, lease_id) DO UPDATE SET escalated = t.escalated + excluded.escalated
)
INSERT INTO batch_fleets AS p (batch_id, tenant_id, fleet, model, lines, split, spot_price,
  dedicated_price)
SELECT batch, tenant_id, :target, model, lines, lines, (f.spec -> 'spot' ->> 'price')::double precision,
  (f.spec -> 'dedicated' ->> 'price')::double precision
FROM source LEFT JOIN fleets f ON f.name = :target
ON CONFLICT (batch_id, fleet) DO UPDATE SET lines = p.lines + excluded.lines,
  split = p.split + excluded.split, model = CASE WHEN p.model = excluded.model THEN p.model END
""")


def escalate(connection: Connection, fleet: str, moves: Sequence[Move]) -> int:
    """Move waiting requests to the fleet's dedicated pool; return how many."""
    if not moves:
        return 0
    return connection.execute(_ESCALATE, {"fleet": fleet, "moves": given(moves)}).scalar() or 0


def give_back(connection: Connection, fleet: str, moves: Sequence[Move]) -> int:
    """Move requests that wait for dedicated back to spot; return how many."""
    if not moves:
        return 0
    return connection.execute(_GIVE_BACK, {"fleet": fleet, "moves": given(moves)}).scalar() or 0


def revoke(connection: Connection, fleet: str, moves: Sequence[Move]) -> tuple[int, list[BatchId]]:
    """Revoke claims of spot workers, as interruptions, for dedicated.

    Their workers' results are rejected from now on. Returns how many, and the batches that are
    ending, which this may have drained.
    """
    if not moves:
        return 0, []
    rows = connection.execute(_REVOKE, {"fleet": fleet, "moves": given(moves)}).all()
    return len(rows), requeue(connection, [row._asdict() for row in rows])


def move_to_fleet(
    connection: Connection, source: str, target: str, moves: Sequence[FleetMove]
) -> tuple[int, int]:
    """Move waiting requests to another fleet; return how many, and how many waited for spot."""
    batches = [move.batch for move in moves]
    connection.execute(_SPREAD, {"batches": batches})
    places = {"source": source, "target": target}
    encoded = msgspec.json.encode(moves).decode()
    rows = connection.execute(_FALL_BACK, {"moves": encoded, **places}).all()
    moved = [{"batch": row.batch, "lines": row.lines} for row in rows]
    connection.execute(_MOVE_PARTS, {"moved": msgspec.json.encode(moved).decode(), **places})
    return sum(row.lines for row in rows), sum(row.spot or 0 for row in rows)


def given(moves: Sequence[Move]) -> str:
    """Return moves as the statements' parameter."""
    return msgspec.json.encode(moves).decode()


# Locked until the transaction ends: two ticks must not apply plans that ignore each other. No tick
# waits for the lock.
_LOCK = text("SELECT pg_try_advisory_xact_lock(hashtextextended('plan', 0))")
# The requests that wait for spot are those that have not ended and are nowhere else: counting them
# takes longer the more there are. Each part of a batch is looked up by key, whatever the statistics.
# `held` requests cannot be claimed: a quota of their tenant is used up.
BATCHES = """
SELECT b.id, p.fleet, b.deadline, p.model,
  greatest(0, p.split - t.ended - d.dedicated - c.running_spot - c.running_dedicated) AS spot,
  d.dedicated, c.running_spot, c.running_dedicated, p.lines - p.split AS unsplit, t.ended, t.retried,
  b.start_pool = 'dedicated' AS pinned, b.tenant_id, b.priority, b.barrier, x.held
FROM batches b CROSS JOIN LATERAL (SELECT EXISTS (
  SELECT FROM exhausted_quotas WHERE tenant_id = b.tenant_id AND until > now()) AS held) x
CROSS JOIN LATERAL (
  SELECT fleet, model, lines, split FROM batch_parts WHERE batch_id = b.id OFFSET 0) p
CROSS JOIN LATERAL (
  SELECT coalesce(sum(completed + failed), 0) AS ended, coalesce(sum(retried), 0) AS retried
  FROM tallies WHERE batch_id = b.id AND fleet = p.fleet) t
CROSS JOIN LATERAL (
  SELECT coalesce(sum(size), 0) AS dedicated FROM queued_runs
  WHERE fleet = p.fleet AND pool = 'dedicated' AND batch_id = b.id) d
CROSS JOIN LATERAL (
  SELECT coalesce(sum(size) FILTER (WHERE pool = 'spot'), 0) AS running_spot,
    coalesce(sum(size) FILTER (WHERE pool = 'dedicated'), 0) AS running_dedicated
  FROM claimed_runs WHERE batch_id = b.id AND fleet = p.fleet) c
WHERE b.status = 'in_progress' AND b.drained_at IS NULL AND NOT b.expiring
UNION ALL
SELECT b.id, p.fleet, b.deadline, NULL, 0, 0, 0, 0, p.lines, 0, 0, false, b.tenant_id, b.priority,
  b.barrier, EXISTS (
    SELECT FROM exhausted_quotas WHERE tenant_id = b.tenant_id AND until > now())
FROM batches b CROSS JOIN LATERAL (
  SELECT fleet, lines FROM batch_parts WHERE batch_id = b.id OFFSET 0) p
WHERE b.status = 'validating' AND b.deadline > now()
"""
_BATCHES = text(BATCHES)
_FLEETS = text("""
SELECT now() AS now, f.name, w.since, c.concurrency,
  ARRAY(SELECT pool FROM paused_pools p WHERE p.fleet = f.name) AS paused
FROM fleets f LEFT JOIN wanted_replicas w ON w.fleet = f.name AND w.pool = 'dedicated'
LEFT JOIN found_concurrency c ON c.fleet = f.name AND c.pool = 'dedicated'
ORDER BY f.name
""")
_WORKERS = text("""
SELECT fleet, pool, count(*) AS workers, count(*) FILTER (WHERE engine_state = 'closed') AS present,
  count(*) FILTER (WHERE engine_state IN ('open', 'probing')) AS away
FROM workers WHERE expires_at > now() GROUP BY fleet, pool
""")
_WANT = text("""
INSERT INTO wanted_replicas (fleet, pool, replicas, since)
SELECT * FROM json_to_recordset(cast(:wanted AS json)) AS g (
  fleet text, pool text, replicas integer, since timestamptz[])
ON CONFLICT (fleet, pool) DO UPDATE SET replicas = excluded.replicas, since = excluded.since, at = now()
""")
_UNTIL_TOO_LATE = text("""
SELECT b.id FROM exhausted_quotas x JOIN batches b ON b.tenant_id = x.tenant_id
WHERE x.until > now() AND x.until >= b.deadline AND b.status = 'in_progress' AND b.drained_at IS NULL
  AND NOT b.expiring AND EXISTS (
    SELECT FROM fleets f CROSS JOIN LATERAL (
      SELECT FROM queued_runs WHERE fleet = f.name AND pool IN ('spot', 'dedicated') AND batch_id = b.id
      LIMIT 1) q)
""")
# In the order of ids, as everywhere else; the statement after it sees what a concurrent tick marked.
_LOCK_RISKY = text("""
SELECT id FROM batches WHERE status = 'in_progress' AND (at_risk OR id = ANY(cast(:risky AS uuid[])))
ORDER BY id FOR NO KEY UPDATE
""")
# A batch that stays at risk gets the numbers of this tick, without another event. Admission, which
# may mark a batch first, has no numbers. A batch that waits for a quota is in no plan, which does not
# put it back on track.
MARK_RISK = """
WITH risky AS (
  SELECT * FROM json_to_recordset(cast(:risky AS json)) AS r (batch uuid, reason text, bound jsonb)
), changed AS (
  UPDATE batches b SET at_risk = c.risky, risk_reason = c.reason, risk_bound = c.bound,
    risk_since = CASE WHEN NOT c.risky THEN NULL
      WHEN b.risk_reason = c.reason THEN b.risk_since ELSE now() END
  FROM (
    SELECT o.id, r.batch IS NOT NULL AS risky, r.reason, r.bound,
      o.at_risk IS DISTINCT FROM (r.batch IS NOT NULL) OR o.risk_reason IS DISTINCT FROM r.reason
        OR o.risk_bound IS NULL AND r.bound IS NOT NULL AS is_event
    FROM batches o LEFT JOIN risky r ON r.batch = o.id
    WHERE o.status = 'in_progress' AND (o.at_risk IS DISTINCT FROM (r.batch IS NOT NULL)
      OR o.risk_reason IS DISTINCT FROM r.reason OR o.risk_bound IS DISTINCT FROM r.bound)
      AND (r.batch IS NOT NULL OR o.risk_reason = 'quota_used_up' OR NOT EXISTS (
        SELECT FROM exhausted_quotas WHERE tenant_id = o.tenant_id AND until > now()))) c
  WHERE b.id = c.id AND b.status = 'in_progress'
  RETURNING b.id, b.tenant_id, b.at_risk, b.total, b.risk_reason, b.risk_bound, c.is_event
)
INSERT INTO request_events (tenant_id, batch_id, lines, kind, pool, reason, bound)
SELECT tenant_id, id, total, CASE WHEN at_risk THEN 'at_risk' ELSE 'on_track' END, 'dedicated',
  risk_reason, risk_bound FROM changed WHERE is_event
"""
_MARK_RISK = text(MARK_RISK)
_SET_BARRIERS = text("""
WITH given AS (
  SELECT * FROM json_to_recordset(cast(:given AS json)) AS g (batch uuid, barrier timestamptz)
), locked AS MATERIALIZED (
  SELECT id FROM batches WHERE id IN (SELECT batch FROM given) ORDER BY id FOR NO KEY UPDATE
)
UPDATE batches b SET barrier = g.barrier FROM given g JOIN locked l ON l.id = g.batch WHERE b.id = l.id
""")


class PlanStore:
    """Read the open batches, and apply the plans of all fleets in one transaction."""

    def __init__(self, engine: Engine, *, new_id: Callable[[], UUID]) -> None:
        self._engine = engine
        self._new_id = new_id

    def replan(
        self,
        decide: Callable[[SchedulerState], Plan],
        fall_back: Callable[
            [Mapping[str, SchedulerState], Mapping[str, Plan]], Sequence[FleetMove]
        ] = lambda _states, _plans: (),
    ) -> dict[str, PlanResult] | None:
        """Read the state of each fleet, decide, and move requests; None while another tick does so.

        Returns the results by fleet.
        """
        with begin(self._engine) as connection:
            if not connection.execute(_LOCK).scalar_one():
                return None
            states = look(connection)
            plans = {fleet: decide(state) for fleet, state in states.items()}
            replanned = {
                fleet: self._apply(connection, plan, states[fleet]) for fleet, plan in plans.items()
            }
            _want(connection, states, plans)
            self._fall_back(connection, fall_back(states, plans), replanned)
        self._mark_at_risk(plans.values())
        self._set_barriers(states, plans)
        return replanned

    def _apply(self, connection: Connection, plan: Plan, state: SchedulerState) -> PlanResult:
        """Move requests. The lock order is claims, batches, as everywhere else."""
        revoked, ending = revoke(connection, state.fleet, plan.revocations)
        note_drained(connection, ending, self._new_id, delay=0)
        escalated = escalate(connection, state.fleet, plan.escalations)
        returned = give_back(connection, state.fleet, plan.returns)
        return PlanResult(
            plan,
            state.depths(),
            state.paused,
            state.stranded,
            escalated=escalated,
            revoked=revoked,
            returned=returned,
        )

    @staticmethod
    def _fall_back(
        connection: Connection, moves: Sequence[FleetMove], results: dict[str, PlanResult]
    ) -> None:
        """Move requests between fleets, which their plans follow at the next tick."""
        ways: dict[tuple[str, str], list[FleetMove]] = {}
        for move in moves:
            ways.setdefault((move.source, move.target), []).append(move)
        for (source, target), those in ways.items():
            lines, spot = move_to_fleet(connection, source, target, those)
            before, host = results[source], results[target]
            left = {Pool.SPOT: spot, Pool.DEDICATED: lines - spot}
            results[source] = replace(before, left=left, fell_back=lines)
            results[target] = replace(host, joined=host.joined + lines)

    def _mark_at_risk(self, plans: Iterable[Plan]) -> None:
        """Mark exactly these running batches at risk, in a transaction without other locks.

        A batch that is at risk in several fleets gets the reason of the first. Those of a tenant whose
        quota is used up are in no plan.
        """
        risky: dict[BatchId, dict[str, object]] = {}
        for plan in plans:
            for batch in plan.at_risk:
                mark = {"batch": batch, "reason": plan.risk, "bound": plan.bounds.get(batch)}
                risky.setdefault(batch, mark)
        with begin(self._engine) as connection:
            for batch in connection.execute(_UNTIL_TOO_LATE).scalars():
                risky[BatchId(batch)] = {"batch": batch, "reason": Reason.QUOTA_USED_UP}
            connection.execute(_LOCK_RISKY, {"risky": list(risky)})
            marks = msgspec.json.encode(list(risky.values())).decode()
            connection.execute(_MARK_RISK, {"risky": marks})

    def _set_barriers(
        self, states: Mapping[str, SchedulerState], plans: Mapping[str, Plan]
    ) -> None:
        """Record the barriers that have changed, in a transaction without other locks."""
        changed = changed_barriers(
            (state.batches, plans[fleet].tight) for fleet, state in states.items()
        )
        if changed:
            given = [{"batch": batch, "barrier": barrier} for batch, barrier in changed.items()]
            with begin(self._engine) as connection:
                connection.execute(_SET_BARRIERS, {"given": msgspec.json.encode(given).decode()})


def look(connection: Connection) -> dict[str, SchedulerState]:
    """Return the open batches and the replicas by fleet; the rates are measured elsewhere.

    Of a batch whose requests cannot be claimed, since a quota of its tenant is used up, only those that
    run on dedicated count: their replicas must stay until they end.
    """
    fleets = connection.execute(_FLEETS).all()
    workers = {FleetPool(row.fleet, Pool(row.pool)): row for row in connection.execute(_WORKERS)}
    rows: dict[str, list[Any]] = {fleet.name: [] for fleet in fleets}
    for row in connection.execute(_BATCHES):
        if row.held and not row.running_dedicated:
            continue
        rows.setdefault(row.fleet, []).append(row)
    return {fleet.name: _state(fleet, rows[fleet.name], workers) for fleet in fleets}


def _state(fleet: Any, rows: Sequence[Any], workers: Mapping[FleetPool, Any]) -> SchedulerState:
    dedicated = workers.get(FleetPool(fleet.name, Pool.DEDICATED))
    return SchedulerState(
        fleet=fleet.name,
        now=fleet.now,
        batches=tuple(map(_open_batch, rows)),
        present=0 if dedicated is None else dedicated.present,
        wished=tuple(fleet.since or ()),
        models=frozenset(row.model for row in rows if row.model is not None),
        ended=sum(row.ended for row in rows),
        retried=sum(row.retried for row in rows),
        concurrency=fleet.concurrency,
        paused=frozenset(map(Pool, fleet.paused)),
        stranded={
            place.pool: row.workers
            for place, row in workers.items()
            if place.fleet == fleet.name and row.away == row.workers
        },
        away=0 if dedicated is None else dedicated.away,
    )


def _open_batch(row: Any) -> OpenBatch:
    return OpenBatch(
        id=BatchId(row.id),
        deadline=row.deadline,
        spot=0 if row.held else row.spot,
        running_spot=0 if row.held else row.running_spot,
        dedicated=0 if row.held else row.dedicated,
        running_dedicated=row.running_dedicated,
        unsplit=0 if row.held else row.unsplit,
        pinned=row.pinned,
        tenant=TenantId(row.tenant_id),
        priority=row.priority,
        barrier=row.barrier,
    )


def _want(
    connection: Connection, states: Mapping[str, SchedulerState], plans: Mapping[str, Plan]
) -> None:
    wanted = []
    for fleet, plan in plans.items():
        since = states[fleet].wishes(plan.replicas)
        wanted.append(
            {"fleet": fleet, "pool": Pool.DEDICATED, "replicas": len(since), "since": since}
        )
    connection.execute(_WANT, {"wanted": msgspec.json.encode(wanted).decode()})
