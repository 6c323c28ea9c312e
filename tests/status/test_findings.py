"""The health of each component: idle is not broken, and what is bad says what to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from lowtide.core.pools import Depth, Pool, PoolPause
from lowtide.engines.breaker import BreakerState
from lowtide.events.model import EventType
from lowtide.status import findings
from lowtide.status.findings import Condition
from lowtide.status.last_seen import TICK, Component, LastSeen
from lowtide.status.snapshot import Backlog, Crew, LostEngine, SystemSnapshot
from lowtide.status.watch import PoolSample, Sample, Scale, scales_of
from tests.status.test_watch import NOW, load

if TYPE_CHECKING:
    from lowtide.status.findings import Finding

MINUTE = timedelta(minutes=1)
NOTHING = SystemSnapshot(NOW)
CREATED = EventType.BATCH_CREATED
JUST = LastSeen(NOW - timedelta(seconds=5))
LONG_AGO = LastSeen(NOW - 12 * MINUTE)
FAILS = LastSeen(NOW - 9 * MINUTE, NOW - 2 * MINUTE, "HTTP 500")
RECOVERED = LastSeen(NOW - 1 * MINUTE, NOW - 2 * MINUTE, "HTTP 500")
FAILED_ONCE = LastSeen(None, NOW - timedelta(days=2), "HTTP 500")
HEALED = LastSeen(NOW - 8 * MINUTE, NOW - 9 * MINUTE, "HTTP 500")


def saw(
    *known: tuple[Component, str, LastSeen],
    unsplit: Backlog = NOTHING.unsplit,
    unfinalized: Backlog = NOTHING.unfinalized,
) -> SystemSnapshot:
    """Return a snapshot with these observations."""
    seen = {(sight, name): sighting for sight, name, sighting in known}
    return replace(NOTHING, last_seen=seen, unsplit=unsplit, unfinalized=unfinalized)


def function(name: str, snapshot: SystemSnapshot) -> Finding:
    """Return the finding of one function."""
    return next(each for each in findings.functions(snapshot) if each.part == name)


@pytest.mark.parametrize(
    ("sighting", "condition", "word"),
    [
        pytest.param(JUST, Condition.FINE, "Working", id="just answered"),
        pytest.param(LONG_AGO, Condition.IDLE, "Idle", id="scaled to zero"),
        pytest.param(FAILS, Condition.BAD, "Failing", id="fails"),
        pytest.param(RECOVERED, Condition.DOUBTFUL, "Failing intermittently", id="fine since"),
        pytest.param(HEALED, Condition.IDLE, "Idle", id="fine for long"),
        pytest.param(FAILED_ONCE, Condition.DOUBTFUL, "Last call failed", id="failed days ago"),
    ],
)
def test_a_function_is_known_by_its_answers(
    sighting: LastSeen, condition: Condition, word: str
) -> None:
    found = function("read", saw((Component.FUNCTION, "read", sighting)))
    assert (found.condition, found.word) == (condition, word)
    assert bool(found.advice) == (word in {"Failing", "Last call failed"})


def test_a_function_that_nobody_used_is_no_trouble() -> None:
    found = findings.functions(NOTHING)
    assert {each.condition for each in found} == {Condition.UNKNOWN}
    assert [each.part for each in found] == [
        "upload", "create_batch", "cancel_batch", "read", "split", "finalize", "schedule",
    ]  # fmt: skip


def test_idle_says_since_when() -> None:
    found = function("upload", saw((Component.FUNCTION, "upload", LONG_AGO)))
    assert (found.detail, found.at) == ("for 12 min", NOW - 12 * MINUTE)


WAITING = Backlog(3, NOW - 3 * MINUTE)


@pytest.mark.parametrize(
    ("snapshot", "word", "says", "advice"),
    [
        pytest.param(
            saw(unsplit=WAITING), "Not called", "not delivered", "trigger", id="no delivery"
        ),
        pytest.param(
            saw((Component.DELIVERED, CREATED, LONG_AGO), unsplit=WAITING),
            "Not called",
            "3 batches waiting, the oldest for 3 min",
            "kubectl get trigger,ksvc split",
            id="delivered before, not since",
        ),
        pytest.param(
            saw(
                (Component.DELIVERED, CREATED, JUST),
                (Component.FUNCTION, "split", JUST),
                unsplit=WAITING,
            ),
            "Stuck",
            "does not finish",
            "log",
            id="called in vain",
        ),
        pytest.param(
            saw((Component.FUNCTION, "split", FAILS), unsplit=WAITING),
            "Failing",
            "HTTP 500; 3 batches waiting",
            "log",
            id="fails",
        ),
    ],
)
def test_batches_that_wait_for_a_step(
    snapshot: SystemSnapshot, word: str, says: str, advice: str
) -> None:
    found = function("split", snapshot)
    assert (found.condition, found.word) == (Condition.BAD, word)
    assert says in found.detail
    assert advice in found.advice


def test_a_batch_that_came_this_minute_waits_for_nobody() -> None:
    snapshot = saw((Component.FUNCTION, "finalize", LONG_AGO), unfinalized=Backlog(1, NOW - MINUTE))
    assert function("finalize", snapshot).condition is Condition.IDLE


@pytest.mark.parametrize(
    ("ticked", "seen", "condition", "word"),
    [
        pytest.param(None, None, Condition.UNKNOWN, "No tick yet", id="never"),
        pytest.param(11, None, Condition.FINE, "Ticking", id="by its plan"),
        pytest.param(None, 11, Condition.FINE, "Ticking", id="by its event"),
        pytest.param(600, 11, Condition.FINE, "Ticking", id="another tick was at it"),
        pytest.param(300, 300, Condition.BAD, "Not ticking", id="silent"),
    ],
)
def test_the_scheduler_is_known_by_its_ticks(
    ticked: float | None, seen: float | None, condition: Condition, word: str
) -> None:
    ticked_at = None if ticked is None else NOW - timedelta(seconds=ticked)
    known = (
        ()
        if seen is None
        else ((Component.DELIVERED, TICK, LastSeen(NOW - timedelta(seconds=seen))),)
    )
    found = function("schedule", replace(saw(*known), ticked_at=ticked_at))
    assert (found.condition, found.word) == (condition, word)


def test_a_scheduler_that_fails_says_so_before_it_is_silent() -> None:
    snapshot = saw((Component.FUNCTION, "schedule", FAILS))
    found = function("schedule", replace(snapshot, ticked_at=NOW - timedelta(seconds=70)))
    assert (found.word, found.detail) == ("Failing", "HTTP 500")


@pytest.mark.parametrize(
    ("sighting", "waiting", "condition", "word"),
    [
        pytest.param(None, None, Condition.UNKNOWN, "No events yet", id="never"),
        pytest.param(JUST, None, Condition.FINE, "Accepting events", id="just now"),
        pytest.param(JUST, 30, Condition.FINE, "Accepting events", id="one is on its way"),
        pytest.param(LONG_AGO, None, Condition.IDLE, "Idle", id="quiet"),
        pytest.param(FAILS, None, Condition.DOUBTFUL, "Rejected last event", id="refused"),
        pytest.param(FAILS, 180, Condition.BAD, "Not accepting events", id="events wait"),
        pytest.param(None, 180, Condition.BAD, "Not accepting events", id="nobody ever sent one"),
    ],
)
def test_the_broker_is_known_by_the_outbox(
    sighting: LastSeen | None, waiting: int | None, condition: Condition, word: str
) -> None:
    events = Backlog() if waiting is None else Backlog(12, NOW - timedelta(seconds=waiting))
    known = () if sighting is None else ((Component.SENT, CREATED.value, sighting),)
    found = findings.broker(replace(saw(*known), events=events))
    assert (found.condition, found.word) == (condition, word)
    if condition is Condition.BAD:
        assert found.detail.startswith("12 events waiting, the oldest for 3 min")
        assert "kubectl get broker" in found.advice


@pytest.mark.parametrize(
    ("workers", "queued", "minutes", "condition", "word"),
    [
        pytest.param(0, 0, 0, Condition.IDLE, "Scaled to zero", id="nothing to do"),
        pytest.param(2, 0, 0, Condition.FINE, "2 workers", id="ready"),
        pytest.param(0, 5, 1, Condition.DOUBTFUL, "Starting", id="a cold start"),
        pytest.param(0, 5, 9, Condition.BAD, "No workers", id="none comes"),
    ],
)
def test_workers(
    workers: int, queued: int, minutes: float, condition: Condition, word: str
) -> None:
    crews = {Pool.SPOT: Crew(workers, NOW)} if workers else {}
    tenants = (load(spot=Depth(queued, 0), waits=minutes * MINUTE),)
    spot, dedicated = findings.workers(replace(NOTHING, crews=crews, tenants=tenants))
    assert (spot.part, spot.condition, spot.word) == ("infer_spot", condition, word)
    assert dedicated.condition is Condition.IDLE


def test_a_paused_pool_misses_no_workers() -> None:
    pause = PoolPause(Pool.SPOT, NOW - 9 * MINUTE, "ana")
    tenants = (load(spot=Depth(5, 0), waits=9 * MINUTE),)
    spot, _ = findings.workers(replace(NOTHING, tenants=tenants, pauses=(pause,)))
    assert (spot.condition, spot.word, spot.detail) == (Condition.IDLE, "Paused", "by ana")


def test_an_engine_that_fails_names_what_it_said() -> None:
    spot, dedicated = findings.engines(saw((Component.ENGINE, "spot", FAILS)))
    assert (spot.condition, spot.detail) == (Condition.BAD, "HTTP 500")
    assert "LOWTIDE_ENGINE_URL" in spot.advice
    assert dedicated.condition is Condition.UNKNOWN


def _sample(minutes: float, workers: int, desired: int) -> Sample:
    none = PoolSample(0, 0, 0, 0)
    spot = replace(none, workers=workers, desired=desired)
    return Sample(NOW - minutes * MINUTE, {Pool.SPOT: spot, Pool.DEDICATED: none})


@pytest.mark.parametrize(
    ("samples", "condition", "word"),
    [
        pytest.param([_sample(0, 0, 0)], Condition.IDLE, "At zero", id="nothing wanted"),
        pytest.param([_sample(0, 4, 4)], Condition.FINE, "In sync", id="all there"),
        pytest.param([_sample(0, 4, 0)], Condition.FINE, "In sync", id="scaling down"),
        pytest.param(
            [_sample(2, 0, 4), _sample(0, 1, 4)], Condition.FINE, "Scaling up", id="on the way"
        ),
        pytest.param(
            [_sample(8, 0, 2), _sample(0, 0, 4)], Condition.BAD, "Not scaling", id="none comes"
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
            id="it did in between",
        ),
    ],
)
def test_the_autoscaler_is_known_by_what_it_brings(
    samples: list[Sample], condition: Condition, word: str
) -> None:
    spot = findings.autoscaler(scales_of(samples), NOW)[0]
    assert (spot.part, spot.condition, spot.word) == ("Autoscaler, spot", condition, word)


def test_without_samples_nothing_is_said_of_the_autoscaler() -> None:
    assert findings.autoscaler(scales_of([]), NOW) == ()
    scale = Scale(desired=1, live=1, short_since=None)
    assert findings.autoscaler({Pool.SPOT: scale}, NOW)[0].detail == "1 running, 1 desired"


@pytest.mark.parametrize(
    ("known", "condition", "detail"),
    [
        pytest.param((), Condition.UNKNOWN, "", id="never"),
        pytest.param((("upload", LONG_AGO), ("read", JUST)), Condition.FINE, "", id="the newest"),
        pytest.param(
            (("upload", FAILS), ("read", JUST)), Condition.BAD, "upload: HTTP 500", id="the worst"
        ),
    ],
)
def test_the_api_is_known_by_its_functions(
    known: tuple[tuple[str, LastSeen], ...], condition: Condition, detail: str
) -> None:
    found = findings.api(saw(*((Component.FUNCTION, name, each) for name, each in known)))
    assert (found.part, found.condition, found.detail) == ("API", condition, detail)


@pytest.mark.parametrize(
    ("state", "condition", "word"),
    [
        (BreakerState.OPEN, Condition.BAD, "Unavailable"),
        (BreakerState.PROBING, Condition.BAD, "Unavailable"),
        (BreakerState.STARTING, Condition.DOUBTFUL, "Starting"),
    ],
)
def test_a_worker_without_an_engine_says_why(
    state: BreakerState, condition: Condition, word: str
) -> None:
    lost = LostEngine("host/7", Pool.SPOT, state, "HTTP 503", NOW - 3 * MINUTE)
    *_, found = findings.engines(replace(NOTHING, lost_engines=(lost,)))
    assert (found.part, found.condition, found.word) == ("Engine of host/7, spot", condition, word)
    assert "HTTP 503" in found.detail
    assert "3 min" in found.detail
