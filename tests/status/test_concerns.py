"""Concerns: the conditions that need an operator."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from urllib.parse import parse_qsl, urlsplit

import pytest

from lowtide.batches.model import SlaState
from lowtide.batches.views import BatchFilter
from lowtide.core.pools import Depth, Pool, PoolPause
from lowtide.dead_letters.model import LetterFilter, LetterState
from lowtide.engines.breaker import BreakerState
from lowtide.status.concerns import Severity, concerns
from lowtide.status.snapshot import (
    MAX_COUNTED,
    MAX_LISTED,
    Backlog,
    LostEngine,
    SystemSnapshot,
    Totals,
)
from portal.queries import BatchQuery, LetterQuery
from tests.status.test_watch import BY_FLEET, NOW, load, snapshot

MINUTE = timedelta(minutes=1)
WAITING = load(spot=Depth(4, 0), waits=10 * MINUTE)
CALM = replace(snapshot(workers=1, tenants=(WAITING,)), ticked_at=NOW - timedelta(seconds=11))


def _lost(state: BreakerState = BreakerState.OPEN) -> LostEngine:
    return LostEngine("host/7", Pool.SPOT, state, "HTTP 503", NOW - MINUTE)


def test_healthy_installation_has_no_concerns() -> None:
    assert concerns(snapshot()) == concerns(CALM) == ()


@pytest.mark.parametrize(
    ("snapshot", "text", "path"),
    [
        pytest.param(
            replace(CALM, ticked_at=NOW - 7 * MINUTE),
            "No scheduler tick for 7 min",
            "/health",
            id="silent",
        ),
        pytest.param(
            replace(CALM, ticked_at=None), "The scheduler has not ticked yet", "/health", id="never"
        ),
        pytest.param(
            replace(CALM, events=Backlog(1, NOW - 3 * MINUTE)),
            "1 event is waiting for the broker",
            "/health",
            id="outbox",
        ),
        pytest.param(
            replace(CALM, events=Backlog(MAX_COUNTED, NOW - 3 * MINUTE)),
            "10,000+ events are waiting for the broker",
            "/health",
            id="more than the max count",
        ),
        pytest.param(
            replace(CALM, live_workers={}),
            "Requests are queued in spot, but no worker is running",
            "/queues",
            id="no workers",
        ),
        pytest.param(
            replace(CALM, totals=Totals(at_risk=1)),
            "1 batch is at risk of missing the deadline",
            "/batches?sla=At+risk",
            id="one at risk",
        ),
        pytest.param(
            replace(CALM, totals=Totals(at_risk=2)),
            "2 batches are at risk of missing the deadline",
            "/batches?sla=At+risk",
            id="two at risk",
        ),
        pytest.param(
            replace(CALM, totals=Totals(missed=1)),
            "1 batch missed the deadline in the last 24 hours",
            "/batches?sla=Missed&ended=24h",
            id="one missed",
        ),
        pytest.param(
            replace(CALM, totals=Totals(all_failed=2)),
            "All requests of 2 batches failed in the last 24 hours",
            "/batches?all_failed=1&ended=24h",
            id="two failed entirely",
        ),
        pytest.param(
            replace(CALM, letters=100),
            "100 dead letters are open",
            "/dead-letters?state=open",
            id="dead letters",
        ),
        pytest.param(
            replace(CALM, letters=MAX_LISTED),
            "1,000+ dead letters are open",
            "/dead-letters?state=open",
            id="more dead letters than are counted",
        ),
        pytest.param(
            replace(CALM, lost_engines=(_lost(), _lost(BreakerState.PROBING))),
            "2 spot workers have no working engine",
            "/health",
            id="open breakers",
        ),
    ],
)
def test_condition_raises_concern(snapshot: SystemSnapshot, text: str, path: str) -> None:
    (concern,) = concerns(snapshot)
    assert (concern.text, concern.path) == (text, path)


def test_concerns_name_the_fleet() -> None:
    waiting = replace(BY_FLEET.fleets["large"], tenants=(WAITING,))
    lost = LostEngine("host/7", Pool.SPOT, BreakerState.OPEN, "HTTP 503", NOW, "small")
    bad = replace(
        BY_FLEET,
        ticked_at=NOW,
        fleets={**BY_FLEET.fleets, "large": waiting},
        lost_engines=(lost,),
        pauses=(PoolPause(Pool.SPOT, NOW, "ana", "small"),),
    )
    assert [(concern.text, concern.path) for concern in concerns(bad)] == [
        ("Requests are queued in spot of large, but no worker is running", "/queues?fleet=large"),
        ("1 spot worker of small has no working engine", "/health"),
    ]


def test_engine_that_starts_raises_no_concern() -> None:
    assert concerns(replace(CALM, lost_engines=(_lost(BreakerState.STARTING),))) == ()


def test_concerns_about_work_precede_those_about_outcomes() -> None:
    bad = replace(
        CALM,
        ticked_at=NOW - 7 * MINUTE,
        lost_engines=(_lost(),),
        totals=Totals(at_risk=1, missed=1, all_failed=1),
        letters=1,
    )
    found = concerns(bad)
    assert [concern.text.split()[0] for concern in found] == ["No", "1", "1", "1", "All", "1"]
    assert [concern.severity for concern in found] == sorted(each.severity for each in found)
    assert found[1].severity is Severity.CRITICAL
    assert found[2].severity is Severity.WARNING


def test_links_of_concerns_set_filters_of_their_pages() -> None:
    bad = replace(CALM, totals=Totals(at_risk=1, missed=1, all_failed=1), letters=1)
    queries = [
        dict(parse_qsl(parts.query))
        for parts in (urlsplit(concern.path) for concern in concerns(bad))
    ]
    batches = [BatchQuery.read(query).filter({}) for query in queries[:3]]
    assert batches == [
        BatchFilter(sla=frozenset({SlaState.AT_RISK})),
        BatchFilter(sla=frozenset({SlaState.MISSED}), ended_lately=True),
        BatchFilter(all_failed=True, ended_lately=True),
    ]
    assert LetterQuery.read(queries[3]).filter() == LetterFilter(state=LetterState.OPEN)


def test_paused_pool_without_workers_raises_no_concern() -> None:
    paused = replace(CALM, live_workers={}, pauses=(PoolPause(Pool.SPOT, NOW, "ana"),))
    assert concerns(paused) == ()
