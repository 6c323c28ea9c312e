"""An engine's load: as it reports it, and as a client measures its own part of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final

from lowtide.engines.outcomes import Answered
from lowtide.engines.telemetry import ENGINES, samples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lowtide.engines.outcomes import Outcome


_FIRST_TOKENS: Final = tuple(pair for names in ENGINES.values() for pair in names.first_token)
_NAMES: Final = (
    *(name for names in ENGINES.values() for name in (names.running, names.waiting)),
    *(name for pair in _FIRST_TOKENS for name in pair),
)


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """The first tokens of answers since the engine's start, and the sum of the seconds until each."""

    count: float
    seconds: float


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Requests in an engine, of all its clients: in its batch, and waiting for a place in it.

    `first_tokens` is None if the engine does not report them.
    """

    running: int
    waiting: int
    first_tokens: FirstTokens | None = None


def read_load(metrics: bytes) -> EngineLoad | None:
    """Return the load in a Prometheus text of vLLM, SGLang or llama.cpp; None if it is not there.

    An engine may have a series for each of its models or ranks: they are added up.
    """
    totals: dict[bytes, float] = {}
    for sample in samples(metrics, _NAMES):
        # Also false for NaN.
        if not 0 <= sample.value < math.inf:
            return None
        totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    for names in ENGINES.values():
        if names.running in totals and names.waiting in totals:
            first_tokens = _first_tokens(totals)
            return EngineLoad(
                round(totals[names.running]), round(totals[names.waiting]), first_tokens
            )
    return None


def _first_tokens(totals: Mapping[bytes, float]) -> FirstTokens | None:
    for seconds, count in _FIRST_TOKENS:
        if seconds in totals and count in totals:
            return FirstTokens(totals[count], totals[seconds])
    return None


@dataclass(frozen=True, slots=True)
class Interval:
    """A client's requests at an engine in an interval; times in seconds.

    `in_flight` is their mean number, `at_end` that at the end. `work` of the answered requests is
    in output tokens, or in requests if they have none; `latency` is the sum of their times.
    """

    seconds: float
    in_flight: float
    at_end: int
    answers: int = 0
    work: float = 0.0
    latency: float = 0.0


class LoadMeter:
    """Measures a client's requests at its engine from one reading to the next."""

    def __init__(self, timer: Callable[[], float] = monotonic) -> None:
        self._timer = timer
        self._in_flight = 0
        self._since = self._start = timer()
        self._reset()

    def begin(self) -> float:
        """Count a request that is sent now; return the time for `end`."""
        now = self._advance()
        self._in_flight += 1
        return now

    def end(self, began: float, outcome: Outcome | None) -> None:
        """Count the end of a request; None if it was cancelled. Only successes are work."""
        now = self._advance()
        self._in_flight -= 1
        if isinstance(outcome, Answered) and outcome.succeeded:
            self._answers += 1
            self._work += outcome.usage.output_tokens or 1
            self._latency += now - began

    def take(self) -> Interval:
        """Return what happened since the last call."""
        now = self._advance()
        seconds = now - self._start
        mean = self._area / seconds if seconds > 0 else float(self._in_flight)
        interval = Interval(
            seconds, mean, self._in_flight, self._answers, self._work, self._latency
        )
        self._start = now
        self._reset()
        return interval

    def _reset(self) -> None:
        self._area = self._work = self._latency = 0.0
        self._answers = 0

    def _advance(self) -> float:
        now = self._timer()
        self._area += self._in_flight * (now - self._since)
        self._since = now
        return now
