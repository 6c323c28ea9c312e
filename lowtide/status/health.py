"""The health of each component, with advice where it is bad. An idle component is healthy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from lowtide.core.durations import duration
from lowtide.core.pools import DEFAULT_FLEET, FleetPool, Pool
from lowtide.engines.breaker import BreakerState
from lowtide.events.model import EventType
from lowtide.status.concerns import EVENT_AGE, TICK_SILENCE, WORKER_WAIT, events
from lowtide.status.last_seen import TICK, Component, LastSeen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from lowtide.status.snapshot import Backlog, LostEngine, SystemSnapshot
    from lowtide.status.watch import Scale


BUSY: Final = timedelta(minutes=1)
"""A component last seen within this time is working."""
STEP_AGE: Final = timedelta(minutes=2)
"""Longer than each step takes: a file of the largest size is split or written in seconds."""
_TROUBLE: Final = timedelta(minutes=5)
_OLD_TROUBLE: Final = timedelta(hours=1)

HTTP_FUNCTIONS: Final = ("upload", "create_batch", "cancel_batch", "read")


class Condition(StrEnum):
    """The condition of a component: `unknown` was never seen, `idle` has nothing to do."""

    FINE = "fine"
    IDLE = "idle"
    UNKNOWN = "unknown"
    DOUBTFUL = "doubtful"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class ComponentHealth:
    """The health of a component in a word or two, with details; it was last seen at `at`.

    `advice` is the next step where the condition is bad.
    """

    part: str
    condition: Condition
    word: str
    detail: str = ""
    at: datetime | None = None
    advice: str = ""


def functions(snapshot: SystemSnapshot) -> tuple[ComponentHealth, ...]:
    """Return the health of the functions behind the API and behind events."""
    return (
        *(_of_sighting(snapshot, Component.FUNCTION, name, name) for name in HTTP_FUNCTIONS),
        _step(snapshot, "split", EventType.BATCH_CREATED, snapshot.unsplit),
        _step(snapshot, "finalize", EventType.BATCH_DRAINED, snapshot.unfinalized),
        _schedule(snapshot),
    )


def api(snapshot: SystemSnapshot) -> ComponentHealth:
    """Return the health of the API: the worst of its functions."""
    found = [_of_sighting(snapshot, Component.FUNCTION, name, name) for name in HTTP_FUNCTIONS]
    for condition in (Condition.BAD, Condition.DOUBTFUL):
        for each in found:
            if each.condition is condition:
                return replace(each, part="API", detail=f"{each.part}: {each.detail}")
    seen = [each for each in found if each.at is not None]
    if not seen:
        return ComponentHealth("API", Condition.UNKNOWN, "Not used yet")
    return replace(max(seen, key=lambda each: each.at or snapshot.at), part="API")


def broker(snapshot: SystemSnapshot) -> ComponentHealth:
    """Return the health of the broker: accepted events leave the outbox."""
    sent = [
        known for (component, _), known in snapshot.last_seen.items() if component is Component.SENT
    ]
    taken = max((each.succeeded_at for each in sent if each.succeeded_at), default=None)
    refused = max(
        (each for each in sent if each.failed_at),
        key=lambda each: each.failed_at or snapshot.at,
        default=None,
    )
    oldest = snapshot.events.since
    if oldest is not None and snapshot.at - oldest > EVENT_AGE:
        why = f": {refused.problem}" if refused is not None else ""
        return ComponentHealth(
            "Broker",
            Condition.BAD,
            "Not accepting events",
            f"{events(snapshot)} waiting, the oldest for {duration(snapshot.at - oldest)}{why}",
            taken,
            "Check that the Broker is ready and that K_SINK points to it: "
            "`kubectl get broker,trigger`. The scheduler resends the events; nothing is lost.",
        )
    if refused is not None and refused.failed_at is not None and not _later(taken, refused):
        return ComponentHealth(
            "Broker", Condition.DOUBTFUL, "Rejected last event", refused.problem, refused.failed_at
        )
    if taken is None:
        return ComponentHealth("Broker", Condition.UNKNOWN, "No events yet")
    return _at_work("Broker", taken, snapshot.at, "Accepting events")


def workers(snapshot: SystemSnapshot) -> tuple[ComponentHealth, ...]:
    """Return the health of each fleet's workers by pool; none are fine while no request waits."""
    return tuple(
        _worker_health(fleet, FleetPool(name, pool))
        for name, fleet in snapshot.by_fleet()
        for pool in Pool
    )


def engines(snapshot: SystemSnapshot) -> tuple[ComponentHealth, ...]:
    """Return the health of each fleet's engines by pool."""
    return tuple(
        _engine(snapshot, FleetPool(name, pool)) for name in snapshot.fleets for pool in Pool
    )


def _engine(snapshot: SystemSnapshot, place: FleetPool) -> ComponentHealth:
    name, part = place.key, f"Engine, {place.label}"
    return _of_sighting(snapshot, Component.ENGINE, name, part, advice=_engine_advice(place.fleet))


def _engine_advice(fleet: str) -> str:
    where = (
        "LOWTIDE_ENGINE_URL, LOWTIDE_ENGINE_API_KEY"
        if fleet == DEFAULT_FLEET
        else f"engine.url and engine.api_key_env of {fleet} in the file that LOWTIDE_FLEETS names"
    )
    return (
        f"Check that the engine runs, serves the model and accepts the key: {where}. Until then "
        "requests wait; no attempts are counted."
    )


def lost_engines(snapshot: SystemSnapshot) -> tuple[ComponentHealth, ...]:
    """Return each worker without an engine."""
    return tuple(_lost_engine(lost, snapshot.at) for lost in snapshot.lost_engines)


def _lost_engine(lost: LostEngine, now: datetime) -> ComponentHealth:
    starting = lost.state is BreakerState.STARTING
    return ComponentHealth(
        f"Engine of {lost.worker}, {FleetPool(lost.fleet, lost.pool).label}",
        Condition.DOUBTFUL if starting else Condition.BAD,
        "Starting" if starting else "Unavailable",
        f"{lost.reason}, for {duration(now - lost.since)}",
        now,
        "" if starting else _engine_advice(lost.fleet),
    )


def autoscaler(scales: Mapping[FleetPool, Scale], now: datetime) -> tuple[ComponentHealth, ...]:
    """Return the health of the autoscaler: a pool with too few replicas for too long is bad."""
    return tuple(_scaling(place, scale, now) for place, scale in scales.items())


def _of_sighting(
    snapshot: SystemSnapshot, component: Component, name: str, part: str, *, advice: str = ""
) -> ComponentHealth:
    known = snapshot.last_seen.get((component, name))
    if known is None or known.last_at is None:
        return ComponentHealth(part, Condition.UNKNOWN, "Not used yet")
    trouble = _trouble(part, known, snapshot.at, advice or _read_the_log(name))
    return trouble or _at_work(part, known.last_at, snapshot.at, "Working")


def _trouble(part: str, known: LastSeen, now: datetime, advice: str) -> ComponentHealth | None:
    """Return the failure, if any; one followed by a success counts for 5 minutes."""
    if known.failed_at is None:
        return None
    age = now - known.failed_at
    if known.fails:
        bad = age < _OLD_TROUBLE
        condition = Condition.BAD if bad else Condition.DOUBTFUL
        word = "Failing" if bad else "Last call failed"
        return ComponentHealth(part, condition, word, known.problem, known.failed_at, advice)
    if age < _TROUBLE:
        detail = f"{known.problem} {duration(age)} ago, working since"
        return ComponentHealth(
            part, Condition.DOUBTFUL, "Failing intermittently", detail, known.succeeded_at
        )
    return None


def _at_work(part: str, last: datetime, now: datetime, word: str) -> ComponentHealth:
    idle = now - last
    if idle <= BUSY:
        return ComponentHealth(part, Condition.FINE, word, "", last)
    return ComponentHealth(part, Condition.IDLE, "Idle", f"for {duration(idle)}", last)


def _step(
    snapshot: SystemSnapshot, name: str, type_: EventType, backlog: Backlog
) -> ComponentHealth:
    """Return the health of a function that an event calls once for each batch."""
    known = snapshot.last_seen.get((Component.FUNCTION, name))
    if backlog.since is None or snapshot.at - backlog.since <= STEP_AGE:
        return _of_sighting(snapshot, Component.FUNCTION, name, name)
    what = "1 batch waiting" if backlog.count == 1 else f"{backlog.count:,} batches waiting"
    detail = f"{what}, the oldest for {duration(snapshot.at - backlog.since)}"
    delivered = snapshot.last_seen.get((Component.DELIVERED, type_))
    last = None if delivered is None else delivered.last_at
    seen_at = None if known is None else known.last_at
    if known is not None and known.fails:
        return ComponentHealth(
            name,
            Condition.BAD,
            "Failing",
            f"{known.problem}; {detail}",
            seen_at,
            _read_the_log(name),
        )
    if last is not None and last >= backlog.since:
        detail += ": called, but does not finish"
        return ComponentHealth(name, Condition.BAD, "Stuck", detail, seen_at, _read_the_log(name))
    return ComponentHealth(
        name,
        Condition.BAD,
        "Not called",
        f"{detail}: its events are not delivered",
        seen_at,
        f"No {_short(type_)} event delivered since: check `kubectl get trigger,ksvc {_kebab(name)}`.",
    )


def _schedule(snapshot: SystemSnapshot) -> ComponentHealth:
    known = snapshot.last_seen.get((Component.FUNCTION, "schedule"), LastSeen())
    called = snapshot.last_seen.get((Component.DELIVERED, TICK), LastSeen())
    ticked = max((at for at in (snapshot.ticked_at, called.succeeded_at) if at), default=None)
    if known.fails and known.failed_at is not None and snapshot.at - known.failed_at < _TROUBLE:
        return ComponentHealth(
            "schedule",
            Condition.BAD,
            "Failing",
            known.problem,
            known.failed_at,
            _read_the_log("schedule"),
        )
    if ticked is None:
        return ComponentHealth("schedule", Condition.UNKNOWN, "No tick yet")
    silence = snapshot.at - ticked
    if silence <= TICK_SILENCE:
        return ComponentHealth("schedule", Condition.FINE, "Ticking", "", ticked)
    return ComponentHealth(
        "schedule",
        Condition.BAD,
        "Not ticking",
        f"no tick for {duration(silence)}: no repairs, no deadline checks",
        ticked,
        "Check what triggers it: `kubectl get pingsource,ksvc`.",
    )


def _worker_health(snapshot: SystemSnapshot, place: FleetPool) -> ComponentHealth:
    pool, part = place.pool, f"infer_{place.label}"
    queued = snapshot.depth(pool).queued
    age = timedelta(seconds=snapshot.oldest_age(pool))
    live = snapshot.live_workers.get(pool)
    if live is not None and live.workers:
        word = "1 worker" if live.workers == 1 else f"{live.workers:,} workers"
        return ComponentHealth(part, Condition.FINE, word, "", live.heartbeat_at)
    known = snapshot.last_seen.get((Component.FUNCTION, f"infer_{place.key}"))
    last = None if known is None else known.last_at
    pause = snapshot.pause(place)
    if pause is not None:
        return ComponentHealth(part, Condition.IDLE, "Paused", f"by {pause.by}", last)
    if not queued:
        detail = "" if last is None else f"for {duration(snapshot.at - last)}"
        return ComponentHealth(part, Condition.IDLE, "Scaled to zero", detail, last)
    lines = "1 request queued" if queued == 1 else f"{queued:,} requests queued"
    if age <= WORKER_WAIT:
        return ComponentHealth(part, Condition.DOUBTFUL, "Starting", lines, last)
    return ComponentHealth(
        part,
        Condition.BAD,
        "No workers",
        f"{lines}, the oldest for {duration(age)}",
        last,
        f"Check why no pod starts: `kubectl describe scaledobject,deployment {_workload(place)}`.",
    )


def _scaling(place: FleetPool, scale: Scale, now: datetime) -> ComponentHealth:
    part = f"Autoscaler, {place.label}"
    detail = f"{scale.live:,} running, {scale.desired:,} desired"
    if not scale.desired and not scale.live:
        return ComponentHealth(part, Condition.IDLE, "At zero", "none desired", now)
    short = scale.short_since
    if short is None:
        return ComponentHealth(part, Condition.FINE, "In sync", detail, now)
    waits = now - short
    if waits <= WORKER_WAIT:
        return ComponentHealth(part, Condition.FINE, "Scaling up", detail, now)
    none = not scale.live
    return ComponentHealth(
        part,
        Condition.BAD if none else Condition.DOUBTFUL,
        "Not scaling" if none else "Too few replicas",
        f"{detail}, for {duration(waits)}",
        now,
        f"Look for errors and pending pods: `kubectl describe scaledobject {_workload(place)}`, "
        "`kubectl get pods`.",
    )


def _later(taken: datetime | None, refused: LastSeen) -> bool:
    return taken is not None and refused.failed_at is not None and taken >= refused.failed_at


def _read_the_log(name: str) -> str:
    return f"Check its log: `kubectl logs -l app.kubernetes.io/name={_kebab(name)}`."


def _workload(place: FleetPool) -> str:
    """Return the name of a pool's Deployment and ScaledObject."""
    name = f"infer-{place.pool}"
    return name if place.fleet == DEFAULT_FLEET else f"{name}-{place.fleet}"


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _short(type_: EventType) -> str:
    return type_.value.removeprefix("dev.lowtide.")
