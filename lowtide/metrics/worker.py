"""The worker's metrics, under the original's names."""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from lowtide.domain.breaker import BreakerState
from lowtide.domain.outcomes import Answered, Interrupted
from lowtide.metrics import requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lowtide.domain.claims import Claim
    from lowtide.domain.outcomes import Outcome
    from lowtide.domain.pools import Pool
    from lowtide.domain.pricing import Prices

_DEQUEUED = Counter("worker_dequeue_total", "Lines claimed from the queue.")
_COMPLETED = Counter("worker_completed_total", "Lines that ended in success.")
_FAILED = Counter("worker_failed_total", "Lines that failed or went back to the queue.")
# A gauge, because a counter would be exported as worker_idle_seconds_total.
_IDLE = Gauge("worker_idle_seconds", "Seconds spent waiting for work, since the start.")
_WAIT = Histogram(
    "queue_wait_time_seconds",
    "Seconds from being queued to being claimed for the first time.",
    ["pool"],
    buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14_400, 43_200, 86_400),
)
_ANSWERS = Counter(
    "engine_answers_total",
    "What engines said of lines: an HTTP status, why there is none, or that spot was taken away.",
    ["pool", "answer"],
)
_ENGINE_UP = Gauge(
    "worker_engine_up",
    "1 while the worker's engine breaker is closed, 0 while it is not.",
    ["pool"],
)
_ENGINE_FAULTS = Counter(
    "engine_faults_total",
    "Outcomes that were the engine's fault and no request's, by what they were.",
    ["pool", "kind"],
)
_SPENT = Counter(
    "replica_seconds_total", "Seconds of replicas' time behind requests that ended.", ["pool"]
)
_COST = Counter(
    "cost_total",
    "What that time cost, by LOWTIDE_SPOT_PRICE and LOWTIDE_DEDICATED_PRICE.",
    ["pool", "currency"],
)


class PrometheusMeter:
    """Port WorkerMeter, for one worker of a pool; `on_answer` is told what its engine said."""

    def __init__(self, pool: Pool, prices: Prices, on_answer: Callable[[str], None]) -> None:
        self._on_answer = on_answer
        self._price = prices.of_second(pool)
        self._pool = pool.value
        # From 0 on, so that what the first scrape sees is a rise.
        _ANSWERS.labels(self._pool, "200")
        self._engine_up = _ENGINE_UP.labels(self._pool)
        self._engine_up.set(0)
        self._wait = _WAIT.labels(pool.value)
        self._spent = _SPENT.labels(pool.value)
        self._cost = _COST.labels(pool.value, prices.currency)

    def dequeued(self, claims: Sequence[Claim]) -> None:
        """Count lines that were claimed, and how long new ones had waited."""
        _DEQUEUED.inc(len(claims))
        for claim in claims:
            if claim.is_first:
                self._wait.observe(claim.waited)

    def ran(self, outcomes: Iterable[Outcome]) -> None:
        """Count what the engine said."""
        for answer, lines in Tally(map(_answer, outcomes)).items():
            _ANSWERS.labels(self._pool, answer).inc(lines)
            self._on_answer(answer)

    def settled(self, completed: int, failed: int, dead_letters: int) -> None:
        """Count lines that left the worker; going back to the queue counts as failed."""
        _COMPLETED.inc(completed)
        _FAILED.inc(failed)
        requests.buried(dead_letters)

    def judged(self, in_time: int, late: int) -> None:
        """Count lines that ended before or after their deadline."""
        requests.judged(in_time, late)

    def interrupted(self, lines: int) -> None:
        """Count lines that went back because the capacity under them went away."""
        requests.interrupted(lines)

    def spent(self, replica_seconds: float) -> None:
        """Count replica time, and what it cost."""
        self._spent.inc(replica_seconds)
        self._cost.inc(replica_seconds * self._price)

    def idle(self, seconds: float) -> None:
        """Count a wait with nothing in hand."""
        _IDLE.inc(seconds)

    def engine_failed(self, kind: str) -> None:
        """Count an outcome that was the engine's fault."""
        _ENGINE_FAULTS.labels(self._pool, kind).inc()

    def engine_is(self, state: BreakerState) -> None:
        """Note the state of the engine breaker."""
        self._engine_up.set(state is BreakerState.CLOSED)


def _answer(outcome: Outcome) -> str:
    if isinstance(outcome, Answered):
        return str(outcome.status_code)
    return "interrupted" if isinstance(outcome, Interrupted) else str(outcome.code)
