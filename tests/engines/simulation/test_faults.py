"""Injected faults of the simulated engine: outcomes, shares, time windows."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from lowtide.core.fault_plans import Worker, parse_faults
from lowtide.engines.attribution import EngineState, Fault, attribute
from lowtide.engines.model import EngineRequest, Ping
from lowtide.engines.outcomes import Answered, NoAnswer, Unanswered
from lowtide.engines.simulated import SimulatedEngine
from lowtide.engines.simulation.faults import Faults, Limits

if TYPE_CHECKING:
    from lowtide.engines.outcomes import Outcome

WELL = Answered(200, b'{"object":"chat.completion"}')
REQUEST = EngineRequest(0, "/v1/chat/completions", b'{"model":"m"}', attempt=1, spot=True)
SPOT = Worker("spot", "infer-spot-1")
LIMITS = Limits(timeout=60.0, max_response_bytes=1000)


class Clock:
    """A clock that tests set by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def faults(plan: str, clock: Clock | None = None, *, seed: int = 0) -> Faults:
    return Faults(parse_faults(plan), SPOT, seed=seed, limits=LIMITS, clock=clock or Clock())


@pytest.mark.parametrize(
    ("plan", "code", "seconds", "fault"),
    [
        ("down", NoAnswer.UNREACHED, 0.0, Fault.ENGINE),
        ("hang", NoAnswer.TIMEOUT, 60.0, Fault.REQUEST),
        ("slow=59", NoAnswer.TIMEOUT, 60.0, Fault.REQUEST),
        ("garbage", NoAnswer.GARBAGE, 2.0, Fault.REQUEST),
        ("huge", NoAnswer.TOO_LARGE, 2.0, Fault.REQUEST),
        ("huge=1001", NoAnswer.TOO_LARGE, 2.0, Fault.REQUEST),
    ],
)
def test_fault_prevents_answer(plan: str, code: NoAnswer, seconds: float, fault: Fault) -> None:
    outcome, delay = faults(plan).strike(REQUEST, WELL, 2.0)
    assert isinstance(outcome, Unanswered)
    assert (outcome.code, delay) == (code, seconds)
    assert attribute(outcome, EngineState(answers_others=True)) is fault


@pytest.mark.parametrize(
    ("plan", "status", "retry_after", "fault"),
    [
        ("500", 500, None, Fault.REQUEST),
        ("400", 400, None, Fault.REQUEST),
        ("401", 401, None, Fault.ENGINE),
        ("502", 502, None, Fault.ENGINE),
        ("503", 503, None, Fault.ENGINE),
        ("503=3", 503, 3.0, Fault.BACK_PRESSURE),
        ("429", 429, None, Fault.BACK_PRESSURE),
        ("429=2", 429, 2.0, Fault.BACK_PRESSURE),
        ("poison", 500, None, Fault.REQUEST),
        ("slow=5", 200, None, None),
    ],
)
def test_fault_changes_answer(
    plan: str, status: int, retry_after: float | None, fault: Fault | None
) -> None:
    outcome, delay = faults(plan).strike(REQUEST, WELL, 2.0)
    assert isinstance(outcome, Answered)
    assert (outcome.status_code, outcome.retry_after) == (status, retry_after)
    assert delay == (7.0 if plan.startswith("slow") else 2.0)
    assert attribute(outcome, EngineState(answers_others=True)) is fault


def test_error_fault_has_status_200() -> None:
    outcome, _ = faults("error").strike(REQUEST, WELL, 2.0)
    assert isinstance(outcome, Answered)
    assert not outcome.succeeded
    assert json.loads(outcome.body)["error"]["type"] == "server_error"


def test_huge_fault_pads_answer_to_size() -> None:
    outcome, _ = faults("huge=900").strike(REQUEST, WELL, 2.0)
    assert isinstance(outcome, Answered)
    assert len(outcome.body) == 900
    assert json.loads(outcome.body)["object"] == "chat.completion"


def test_fault_is_active_within_window() -> None:
    clock = Clock()
    plan = faults("500@10-20", clock)
    statuses = []
    for _ in range(4):
        outcome, _ = plan.strike(REQUEST, WELL, 1.0)
        statuses.append(getattr(outcome, "status_code", None))
        clock.now += 7.0
    assert statuses == [200, 200, 500, 200]


def test_outage_interrupts_requests_in_flight() -> None:
    plan = faults("down@10-20")
    assert plan.strike(REQUEST, WELL, 9.0) == (WELL, 9.0)
    outcome, delay = plan.strike(REQUEST, WELL, 11.0)
    assert isinstance(outcome, Unanswered)
    assert (outcome.code, delay) == (NoAnswer.UNREACHED, 10.0)


def test_fault_share_is_drawn_per_attempt() -> None:
    plan = faults("500:0.2")
    struck = [plan.strike(REQUEST, WELL, 1.0)[0] is not WELL for _ in range(4000)]
    assert sum(struck) == pytest.approx(800, rel=0.15)


def test_poison_affects_same_requests_on_every_worker() -> None:
    def poisoned(worker: str) -> set[int]:
        plan = Faults(parse_faults("poison:0.2"), Worker("spot", worker), limits=LIMITS)
        bodies = {n: b'{"user":"%d"}' % n for n in range(1000)}
        return {
            n
            for n, body in bodies.items()
            if plan.strike(EngineRequest(n, "/v1/x", body, 1, spot=True), WELL, 1.0)[0] is not WELL
        }

    assert poisoned("a") == poisoned("b")
    assert len(poisoned("a")) == pytest.approx(200, rel=0.3)


def test_first_matching_fault_wins() -> None:
    outcome, _ = faults("dedicated:down,500,garbage").strike(REQUEST, WELL, 1.0)
    assert getattr(outcome, "status_code", None) == 500


@pytest.mark.parametrize("latency", [0.0, 0.001])
def test_engine_applies_faults(latency: float) -> None:
    async def run() -> list[Outcome]:
        engine = SimulatedEngine(latency=latency, faults=faults("503"))
        requests = [EngineRequest(n, "/v1/embeddings", b"{}", 1, spot=True) for n in range(20)]
        return [outcome async for group in engine.run(requests) for _, outcome in group]

    outcomes = asyncio.run(run())
    assert [getattr(outcome, "status_code", None) for outcome in outcomes] == [503] * 20


@pytest.mark.parametrize(
    ("plan", "well", "answers", "reason"),
    [
        ("dedicated:down", True, True, ""),
        ("down", False, False, "connection refused"),
        ("hang", False, False, "did not respond within 60 s"),
        ("500", False, False, "500"),
        ("401", False, False, "401"),
        ("garbage", False, False, "JSON"),
        ("429", True, False, ""),
        ("slow=5", True, True, ""),
    ],
)
def test_probe_is_affected_by_faults(plan: str, reason: str, *, well: bool, answers: bool) -> None:
    engine = SimulatedEngine(latency=0.5, faults=faults(plan))
    probed = asyncio.run(engine.probe(Ping("/v1/chat/completions", "m")))
    assert (probed.well, probed.answers) == (well, answers)
    assert reason in probed.reason


def test_health_probe_detects_only_unreachable_engine() -> None:
    for plan, well in (("down", False), ("hang", False), ("500", True)):
        probed = asyncio.run(SimulatedEngine(faults=faults(plan)).probe())
        assert (probed.well, probed.answers) == (well, False)


def test_probe_is_never_poison() -> None:
    plan = faults("poison")
    assert plan.strike(REQUEST, WELL, 1.0)[0] is not WELL
    assert plan.strike(None, WELL, 1.0) == (WELL, 1.0)
    assert faults("500").strike(None, WELL, 1.0)[0] is not WELL
