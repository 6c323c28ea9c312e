"""Fault attribution: charge an unsuccessful outcome to the request, its engine, or neither."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, assert_never

from lowtide.engines.outcomes import (
    PERMANENT_CODES,
    Answered,
    BadInput,
    Interrupted,
    NoAnswer,
    Unanswered,
)

if TYPE_CHECKING:
    from lowtide.engines.outcomes import Outcome


class Fault(StrEnum):
    """The cause that an outcome is charged to.

    Only `request` counts as an attempt. `back_pressure`: the engine is healthy but busy;
    `capacity`: the worker went away; `input`: the object is missing or differs from the upload.
    """

    REQUEST = "request"
    ENGINE = "engine"
    BACK_PRESSURE = "back_pressure"
    CAPACITY = "capacity"
    INPUT = "input"


@dataclass(frozen=True, slots=True)
class EngineState:
    """A worker's knowledge of its engine at the time of an outcome.

    `answers_others`: another request succeeded within the last seconds. `fails_others`: other
    requests have failed since the last success. `probed_well` is the result of the worker's own
    probe, None without one.
    """

    answers_others: bool = False
    fails_others: bool = False
    probed_well: bool | None = None


_BUSY: Final = frozenset({429, 529})
# A rejected key or account, a redirect, and a proxy that cannot reach the engine affect every
# request alike.
NOT_THE_REQUEST: Final = frozenset({401, 402, 403, 407, 502, 503, 504, *range(300, 400)})
_PROXY_STATUSES: Final = frozenset({502, 503, 504})
_NOT_REACHED: Final = frozenset({NoAnswer.UNREACHED, NoAnswer.DNS, NoAnswer.TLS})


def attribute(outcome: Outcome, engine: EngineState) -> Fault | None:
    """Return the fault; None for a success.

    A 5xx, a timeout or garbage is ambiguous. It is charged to the engine, unless the engine answers
    other requests or, with none to compare with, passes its probe.
    """
    match outcome:
        case Interrupted():
            return Fault.CAPACITY
        case BadInput():
            return Fault.INPUT
        case Answered() if outcome.succeeded:
            return None
        case Answered() if _is_busy(outcome):
            return Fault.BACK_PRESSURE
        case Answered() | Unanswered():
            if _is_engine_fault(outcome):
                return Fault.ENGINE
            return _compare(engine) if is_ambiguous(outcome) else Fault.REQUEST
        case _:
            assert_never(outcome)


def is_ambiguous(outcome: Outcome) -> bool:
    """Return whether the outcome alone does not tell a request's fault from its engine's."""
    if isinstance(outcome, Answered):
        return outcome.status_code >= 500 and not (_is_busy(outcome) or _is_engine_fault(outcome))
    if isinstance(outcome, Unanswered):
        return outcome.code not in _NOT_REACHED | PERMANENT_CODES
    return False


def is_from_proxy(outcome: Outcome) -> bool:
    """Return whether a proxy answered for an absent engine, which the request may have crashed."""
    return isinstance(outcome, Answered) and outcome.status_code in _PROXY_STATUSES


def needs_probe(outcome: Outcome, engine: EngineState) -> bool:
    """Return whether attribution needs a probe of the engine."""
    return is_ambiguous(outcome) and not engine.answers_others and engine.probed_well is None


def kind_of(outcome: Outcome) -> str:
    """Return the kind of an unsuccessful outcome, for counting."""
    match outcome:
        case Answered(lacks_model=True):
            return "model_missing"
        case Answered(out_of_quota=True):
            return "out_of_quota"
        case Answered(status_code=401 | 403, refuses_content=False):
            return "key_refused"
        case Answered():
            return f"http_{outcome.status_code}"
        case Unanswered() | BadInput():
            return str(outcome.code)
        case Interrupted():
            return "interrupted"


def _compare(engine: EngineState) -> Fault:
    if engine.answers_others:
        return Fault.REQUEST
    return Fault.REQUEST if engine.probed_well and not engine.fails_others else Fault.ENGINE


def _is_busy(outcome: Answered) -> bool:
    if outcome.status_code == 503:
        return outcome.retry_after is not None
    return outcome.status_code in _BUSY and not outcome.out_of_quota


def _is_engine_fault(outcome: Answered | Unanswered) -> bool:
    if isinstance(outcome, Unanswered):
        return outcome.code in _NOT_REACHED
    if outcome.refuses_content:
        return False
    needs_operator = outcome.lacks_model or outcome.out_of_quota
    return needs_operator or outcome.status_code in NOT_THE_REQUEST


def reason_of(outcome: Outcome) -> str:
    """Return the reason for an unsuccessful outcome, as a sentence."""
    match outcome:
        case Answered(lacks_model=True):
            return "The engine does not serve the request's model"
        case Answered(out_of_quota=True):
            return "The engine's account is out of quota: check its plan and billing"
        case Answered(status_code=401 | 403 as status, refuses_content=False):
            return f"The engine rejected LOWTIDE_ENGINE_API_KEY (HTTP {status})"
        case Answered():
            return f"The engine returned HTTP {outcome.status_code}"
        case Unanswered() | BadInput():
            return outcome.message
        case Interrupted():
            return outcome.reason
