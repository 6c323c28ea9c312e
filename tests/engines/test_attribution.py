"""Fault attribution by outcome and engine state."""

from __future__ import annotations

from typing import Any

import pytest

from lowtide.engines.attribution import EngineState, Fault, attribute, needs_probe
from lowtide.engines.outcomes import Answered, BadInput, Interrupted, NoAnswer, Outcome, Unanswered

UNKNOWN = EngineState()
ANSWERS_OTHERS = EngineState(answers_others=True)
PROBE_OK = EngineState(probed_well=True)
PROBE_FAILED = EngineState(probed_well=False)
FAILS_OTHERS = EngineState(fails_others=True, probed_well=True)
STATES = (UNKNOWN, ANSWERS_OTHERS, PROBE_OK, PROBE_FAILED, FAILS_OTHERS)


def _status(status: int, **fields: Any) -> Answered:
    return Answered(status, b"{}", **fields)


ALWAYS: dict[str, tuple[Outcome, Fault | None]] = {
    **{f"HTTP {status}": (_status(status), None) for status in (200, 201, 299)},
    **{
        f"HTTP {status}": (_status(status), Fault.REQUEST)
        for status in (400, 404, 405, 408, 409, 413, 415, 422, 425, 451)
    },
    "no such model": (_status(404, lacks_model=True), Fault.ENGINE),
    **{
        f"HTTP {status}": (_status(status), Fault.ENGINE)
        for status in (301, 302, 307, 308, 401, 402, 403, 407, 502, 503, 504)
    },
    "HTTP 429": (_status(429), Fault.BACK_PRESSURE),
    "HTTP 429 with Retry-After": (_status(429, retry_after=7.0), Fault.BACK_PRESSURE),
    "HTTP 503 with Retry-After": (_status(503, retry_after=0.0), Fault.BACK_PRESSURE),
    "HTTP 529": (_status(529), Fault.BACK_PRESSURE),
    "refused, reset before a byte": (Unanswered(NoAnswer.UNREACHED, ""), Fault.ENGINE),
    "DNS": (Unanswered(NoAnswer.DNS, ""), Fault.ENGINE),
    "TLS": (Unanswered(NoAnswer.TLS, ""), Fault.ENGINE),
    "an answer over the limit": (Unanswered(NoAnswer.TOO_LARGE, ""), Fault.REQUEST),
    "a body that cannot be sent": (Unanswered(NoAnswer.UNSENDABLE, ""), Fault.REQUEST),
    "spot interruption": (Interrupted("gone"), Fault.CAPACITY),
    "input missing": (BadInput("input_missing", ""), Fault.INPUT),
    "input corrupt": (BadInput("input_corrupt", ""), Fault.INPUT),
}


@pytest.mark.parametrize("state", STATES, ids=str)
@pytest.mark.parametrize(("outcome", "fault"), ALWAYS.values(), ids=ALWAYS.keys())
def test_clear_outcome_ignores_engine_state(
    outcome: Outcome, fault: Fault | None, state: EngineState
) -> None:
    assert attribute(outcome, state) is fault
    assert not needs_probe(outcome, state)


AMBIGUOUS: dict[str, Outcome] = {
    **{f"HTTP {status}": _status(status) for status in (500, 501, 505, 520, 599)},
    "timeout": Unanswered(NoAnswer.TIMEOUT, ""),
    "connection lost": Unanswered(NoAnswer.LOST, ""),
    "garbage": Unanswered(NoAnswer.GARBAGE, ""),
    "internal fault": Unanswered(NoAnswer.FAULT, ""),
    "unknown code": Unanswered("odd", ""),
}


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        pytest.param(UNKNOWN, Fault.ENGINE, id="unknown"),
        pytest.param(ANSWERS_OTHERS, Fault.REQUEST, id="others answered"),
        pytest.param(PROBE_OK, Fault.REQUEST, id="probe ok"),
        pytest.param(PROBE_FAILED, Fault.ENGINE, id="probe failed"),
        pytest.param(FAILS_OTHERS, Fault.ENGINE, id="others fail"),
        pytest.param(
            EngineState(answers_others=True, fails_others=True, probed_well=False),
            Fault.REQUEST,
            id="an answer outweighs failures",
        ),
    ],
)
@pytest.mark.parametrize("outcome", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_ambiguous_outcome_is_decided_by_others_or_probe(
    outcome: Outcome, state: EngineState, fault: Fault
) -> None:
    assert attribute(outcome, state) is fault
    assert needs_probe(outcome, state) is (state == UNKNOWN)
