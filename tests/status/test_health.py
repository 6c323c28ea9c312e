"""The health of each component; a bad condition comes with advice."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from lowtide.core.pools import DEFAULT_FLEET, Depth, FleetPool, Pool, PoolPause
from lowtide.engines.breaker import BreakerState
from lowtide.events.model import EventType
from lowtide.fleets.render import worker_name
from lowtide.status import health
from lowtide.status.health import Condition
from lowtide.status.last_seen import TICK, Component, LastSeen
from lowtide.status.snapshot import Backlog, LiveWorkers, LostEngine, SystemSnapshot
from lowtide.status.watch import PoolSample, Sample, Scale, scales_of
from tests.status.test_watch import BY_FLEET, NOW, load

if TYPE_CHECKING:
    from lowtide.status.health import ComponentHealth

MINUTE = timedelta(minutes=1)
SPOT = FleetPool(DEFAULT_FLEET, Pool.SPOT)
NOTHING = SystemSnapshot(NOW)
CREATED = EventType.BATCH_CREATED
JUST = LastSeen(NOW - timedelta(seconds=5))
LONG_AGO = LastSeen(NOW - 12 * MINUTE)
FAILS = LastSeen(NOW - 9 * MINUTE, NOW - 2 * MINUTE, "HTTP 500")
RECOVERED = LastSeen(NOW - 1 * MINUTE, NOW - 2 * MINUTE, "HTTP 500")
FAILED_ONCE = LastSeen(None, NOW - timedelta(days=2), "HTTP 500")
HEALED = LastSeen(NOW - 8 * MINUTE, NOW - 9 * MINUTE, "HTTP 500")


def snapshot_with(
    *observations: tuple[Component, str, LastSeen],
    unsplit: Backlog = NOTHING.unsplit,
    unfinalized: Backlog = NOTHING.unfinalized,
) -> SystemSnapshot:
    """Return a snapshot with these observations."""
    last_seen = {(component, name): times for component, name, times in observations}
    return replace(NOTHING, last_seen=last_seen, unsplit=unsplit, unfinalized=unfinalized)


def function_finding(name: str, snapshot: SystemSnapshot) -> ComponentHealth:
    """Return the component of one function."""
    return next(component for component in health.functions(snapshot) if component.part == name)


@pytest.mark.parametrize(
    ("last_seen", "condition", "word"),
    [
        pytest.param(JUST, Condition.FINE, "Working", id="just answered"),
        pytest.param(LONG_AGO, Condition.IDLE, "Idle", id="scaled to zero"),
        pytest.param(FAILS, Condition.BAD, "Failing", id="failing"),
        pytest.param(
            RECOVERED, Condition.DOUBTFUL, "Failing intermittently", id="recovered recently"
        ),
        pytest.param(HEALED, Condition.IDLE, "Idle", id="recovered long ago"),
        pytest.param(FAILED_ONCE, Condition.DOUBTFUL, "Last call failed", id="failed days ago"),
    ],
)
def test_function_health_follows_last_seen(
    last_seen: LastSeen, condition: Condition, word: str
) -> None:
    component = function_finding("read", snapshot_with((Component.FUNCTION, "read", last_seen)))
    assert (component.condition, component.word) == (condition, word)
    assert bool(component.advice) == (word in {"Failing", "Last call failed"})


def test_unused_functions_are_unknown() -> None:
    components = health.functions(NOTHING)
    assert {each.condition for each in components} == {Condition.UNKNOWN}
    assert [each.part for each in components] == [
        "upload", "create_batch", "cancel_batch", "read", "split", "finalize", "schedule",
    ]  # fmt: skip


def test_idle_function_reports_its_last_answer() -> None:
    component = function_finding("upload", snapshot_with((Component.FUNCTION, "upload", LONG_AGO)))
    assert (component.detail, component.at) == ("for 12 min", NOW - 12 * MINUTE)


WAITING = Backlog(3, NOW - 3 * MINUTE)


@pytest.mark.parametrize(
    ("snapshot", "word", "detail", "advice"),
    [
        pytest.param(
            snapshot_with(unsplit=WAITING),
            "Not called",
            "not delivered",
            "trigger",
            id="no delivery",
        ),
        pytest.param(
            snapshot_with((Component.DELIVERED, CREATED, LONG_AGO), unsplit=WAITING),
            "Not called",
            "3 batches waiting, the oldest for 3 min",
            "kubectl get trigger,ksvc split",
            id="delivered before, not since",
        ),
        pytest.param(
            snapshot_with(
                (Component.DELIVERED, CREATED, JUST),
                (Component.FUNCTION, "split", JUST),
                unsplit=WAITING,
            ),
            "Stuck",
            "does not finish",
            "log",
            id="called without effect",
        ),
        pytest.param(
            snapshot_with((Component.FUNCTION, "split", FAILS), unsplit=WAITING),
            "Failing",
            "HTTP 500; 3 batches waiting",
            "log",
            id="failing",
        ),
    ],
)
def test_waiting_batches_make_function_bad(
    snapshot: SystemSnapshot, word: str, detail: str, advice: str
) -> None:
    component = function_finding("split", snapshot)
    assert (component.condition, component.word) == (Condition.BAD, word)
    assert detail in component.detail
    assert advice in component.advice


def test_batch_waiting_one_minute_leaves_function_idle() -> None:
    snapshot = snapshot_with(
        (Component.FUNCTION, "finalize", LONG_AGO), unfinalized=Backlog(1, NOW - MINUTE)
    )
    assert function_finding("finalize", snapshot).condition is Condition.IDLE


@pytest.mark.parametrize(
    ("ticked", "delivered", "condition", "word"),
    [
        pytest.param(None, None, Condition.UNKNOWN, "No tick yet", id="never"),
        pytest.param(11, None, Condition.FINE, "Ticking", id="by plan"),
        pytest.param(None, 11, Condition.FINE, "Ticking", id="by event"),
        pytest.param(600, 11, Condition.FINE, "Ticking", id="old plan, new event"),
        pytest.param(300, 300, Condition.BAD, "Not ticking", id="silent"),
    ],
)
def test_scheduler_health_follows_ticks(
    ticked: float | None, delivered: float | None, condition: Condition, word: str
) -> None:
    ticked_at = None if ticked is None else NOW - timedelta(seconds=ticked)
    observations = (
        ()
        if delivered is None
        else ((Component.DELIVERED, TICK, LastSeen(NOW - timedelta(seconds=delivered))),)
    )
    component = function_finding(
        "schedule", replace(snapshot_with(*observations), ticked_at=ticked_at)
    )
    assert (component.condition, component.word) == (condition, word)


def test_failing_scheduler_is_reported_before_it_is_silent() -> None:
    snapshot = snapshot_with((Component.FUNCTION, "schedule", FAILS))
    component = function_finding(
        "schedule", replace(snapshot, ticked_at=NOW - timedelta(seconds=70))
    )
    assert (component.word, component.detail) == ("Failing", "HTTP 500")


@pytest.mark.parametrize(
    ("last_seen", "waiting", "condition", "word"),
    [
        pytest.param(None, None, Condition.UNKNOWN, "No events yet", id="never"),
        pytest.param(JUST, None, Condition.FINE, "Accepting events", id="just now"),
        pytest.param(JUST, 30, Condition.FINE, "Accepting events", id="event in flight"),
        pytest.param(LONG_AGO, None, Condition.IDLE, "Idle", id="idle"),
        pytest.param(FAILS, None, Condition.DOUBTFUL, "Rejected last event", id="rejected"),
        pytest.param(FAILS, 180, Condition.BAD, "Not accepting events", id="events waiting"),
        pytest.param(None, 180, Condition.BAD, "Not accepting events", id="no event ever accepted"),
    ],
)
def test_broker_health_follows_outbox(
    last_seen: LastSeen | None, waiting: int | None, condition: Condition, word: str
) -> None:
    events = Backlog() if waiting is None else Backlog(12, NOW - timedelta(seconds=waiting))
    observations = () if last_seen is None else ((Component.SENT, CREATED.value, last_seen),)
    component = health.broker(replace(snapshot_with(*observations), events=events))
    assert (component.condition, component.word) == (condition, word)
    if condition is Condition.BAD:
        assert component.detail.startswith("12 events waiting, the oldest for 3 min")
        assert "kubectl get broker" in component.advice


@pytest.mark.parametrize(
    ("workers", "queued", "minutes", "condition", "word"),
    [
        pytest.param(0, 0, 0, Condition.IDLE, "Scaled to zero", id="nothing to do"),
        pytest.param(2, 0, 0, Condition.FINE, "2 workers", id="ready"),
        pytest.param(0, 5, 1, Condition.DOUBTFUL, "Starting", id="cold start"),
        pytest.param(0, 5, 9, Condition.BAD, "No workers", id="none started"),
    ],
)
def test_worker_health_follows_count_and_wait(
    workers: int, queued: int, minutes: float, condition: Condition, word: str
) -> None:
    live_workers = {Pool.SPOT: LiveWorkers(workers, NOW)} if workers else {}
    tenants = (load(spot=Depth(queued, 0), waits=minutes * MINUTE),)
    spot, dedicated = health.workers(replace(NOTHING, live_workers=live_workers, tenants=tenants))
    assert (spot.part, spot.condition, spot.word) == ("infer_spot", condition, word)
    assert dedicated.condition is Condition.IDLE


def test_paused_pool_needs_no_workers() -> None:
    pause = PoolPause(Pool.SPOT, NOW - 9 * MINUTE, "ana")
    tenants = (load(spot=Depth(5, 0), waits=9 * MINUTE),)
    spot, _ = health.workers(replace(NOTHING, tenants=tenants, pauses=(pause,)))
    assert (spot.condition, spot.word, spot.detail) == (Condition.IDLE, "Paused", "by ana")


def test_failing_engine_reports_its_problem() -> None:
    spot, dedicated = health.engines(snapshot_with((Component.ENGINE, "spot", FAILS)))
    assert (spot.condition, spot.detail) == (Condition.BAD, "HTTP 500")
    assert "LOWTIDE_ENGINE_URL" in spot.advice
    assert dedicated.condition is Condition.UNKNOWN


def _sample(minutes: float, workers: int, desired: int) -> Sample:
    none = PoolSample(0, 0)
    spot = replace(none, workers=workers, desired=desired)
    return Sample(
        NOW - minutes * MINUTE, {SPOT: spot, FleetPool(DEFAULT_FLEET, Pool.DEDICATED): none}
    )


@pytest.mark.parametrize(
    ("samples", "condition", "word"),
    [
        pytest.param([_sample(0, 0, 0)], Condition.IDLE, "At zero", id="none desired"),
        pytest.param([_sample(0, 4, 4)], Condition.FINE, "In sync", id="all running"),
        pytest.param([_sample(0, 4, 0)], Condition.FINE, "In sync", id="scaling down"),
        pytest.param(
            [_sample(2, 0, 4), _sample(0, 1, 4)], Condition.FINE, "Scaling up", id="starting"
        ),
        pytest.param(
            [_sample(8, 0, 2), _sample(0, 0, 4)], Condition.BAD, "Not scaling", id="none started"
        ),
        pytest.param(
            [_sample(8, 1, 2), _sample(0, 1, 4)],
            Condition.DOUBTFUL,
            "Too few replicas",
            id="too few",
        ),
        pytest.param(
            [_sample(9, 0, 2), _sample(2, 2, 2), _sample(0, 0, 2)],
            Condition.FINE,
            "Scaling up",
            id="reached in between",
        ),
    ],
)
def test_autoscaler_health_follows_replicas(
    samples: list[Sample], condition: Condition, word: str
) -> None:
    spot = health.autoscaler(scales_of(samples), NOW)[0]
    assert (spot.part, spot.condition, spot.word) == ("Autoscaler, spot", condition, word)


def test_autoscaler_without_samples_has_no_finding() -> None:
    assert health.autoscaler(scales_of([]), NOW) == ()
    scale = Scale(desired=1, live=1, short_since=None)
    assert health.autoscaler({SPOT: scale}, NOW)[0].detail == "1 running, 1 desired"


def test_health_names_fleets_and_their_workloads() -> None:
    large = FleetPool("large", Pool.SPOT)
    at = NOW + 9 * MINUTE
    last_seen = {(Component.ENGINE, large.key): FAILS, (Component.ENGINE, "spot"): JUST}
    lost = LostEngine("host/7", Pool.SPOT, BreakerState.OPEN, "HTTP 503", NOW, "small")
    snapshot = replace(BY_FLEET, at=at, last_seen=last_seen, lost_engines=(lost,), pauses=())
    by_part = {
        each.part: each
        for each in (
            *health.workers(snapshot),
            *health.engines(replace(snapshot, at=NOW)),
            *health.lost_engines(snapshot),
            *health.autoscaler({large: Scale(1, 0, NOW)}, at),
        )
    }
    assert by_part["infer_spot of small"].word == "2 workers"
    name = worker_name(*large)
    workers, engine = by_part["infer_spot of large"], by_part["Engine, spot of large"]
    assert f"scaledobject,deployment {name}`" in workers.advice
    assert f"scaledobject {name}`" in by_part["Autoscaler, spot of large"].advice
    assert (engine.condition, "api_key_env of large" in engine.advice) == (Condition.BAD, True)
    assert by_part["Engine, spot of small"].condition is Condition.UNKNOWN
    assert "Engine of host/7, spot of small" in by_part


@pytest.mark.parametrize(
    ("functions", "condition", "detail"),
    [
        pytest.param((), Condition.UNKNOWN, "", id="never"),
        pytest.param((("upload", LONG_AGO), ("read", JUST)), Condition.FINE, "", id="newest"),
        pytest.param(
            (("upload", FAILS), ("read", JUST)), Condition.BAD, "upload: HTTP 500", id="worst"
        ),
    ],
)
def test_api_health_follows_its_functions(
    functions: tuple[tuple[str, LastSeen], ...], condition: Condition, detail: str
) -> None:
    component = health.api(
        snapshot_with(*((Component.FUNCTION, name, each) for name, each in functions))
    )
    assert (component.part, component.condition, component.detail) == ("API", condition, detail)


@pytest.mark.parametrize(
    ("state", "condition", "word"),
    [
        (BreakerState.OPEN, Condition.BAD, "Unavailable"),
        (BreakerState.PROBING, Condition.BAD, "Unavailable"),
        (BreakerState.STARTING, Condition.DOUBTFUL, "Starting"),
    ],
)
def test_worker_without_engine_reports_reason(
    state: BreakerState, condition: Condition, word: str
) -> None:
    lost = LostEngine("host/7", Pool.SPOT, state, "HTTP 503", NOW - 3 * MINUTE)
    (component,) = health.lost_engines(replace(NOTHING, lost_engines=(lost,)))
    assert (component.part, component.condition, component.word) == (
        "Engine of host/7, spot",
        condition,
        word,
    )
    assert "HTTP 503" in component.detail
    assert "3 min" in component.detail
