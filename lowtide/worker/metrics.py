"""The worker's metrics, named as in the original."""

from __future__ import annotations

from collections import Counter as Tally
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from lowtide.engines.breaker import BreakerState
from lowtide.engines.outcomes import Answered, Interrupted
from lowtide.queue.metrics import buried, interrupted, judged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lowtide.core.pools import Pool, Prices
    from lowtide.engines.outcomes import Outcome
    from lowtide.queue.claims import Claim


_DEQUEUED = Counter("worker_dequeue_total", "Requests claimed from the queue.")
_COMPLETED = Counter("worker_completed_total", "Requests that completed.")
_FAILED = Counter("worker_failed_total", "Requests that failed or were released to the queue.")
# A gauge, because a counter would be exported as worker_idle_seconds_total.
_IDLE = Gauge("worker_idle_seconds", "Seconds spent waiting for work since the start.")
_WAIT = Histogram(
    "queue_wait_time_seconds",
    "Seconds from queueing to the first claim.",
    ["pool"],
    buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14_400, 43_200, 86_400),
)
_ANSWERS = Counter(
    "engine_answers_total",
    "Outcomes of requests: the engine's HTTP status, the reason for a missing one, or interrupted.",
    ["pool", "answer"],
)
_ENGINE_UP = Gauge(
    "worker_engine_up",
    "1 while the worker's engine breaker is closed, else 0.",
    ["pool"],
)
_ENGINE_FAULTS = Counter(
    "engine_faults_total",
    "Outcomes attributed to the engine, not to the request, by kind.",
    ["pool", "kind"],
)
_SPENT = Counter("replica_seconds_total", "Replica seconds of requests that ended.", ["pool"])
_COST = Counter(
    "cost_total",
    "Cost of replica seconds at LOWTIDE_SPOT_PRICE and LOWTIDE_DEDICATED_PRICE.",
    ["pool", "currency"],
)


class WorkerMetrics:
    """The metrics of one worker; `on_answer` is called with the kinds of answer from its engine."""

    def __init__(self, pool: Pool, prices: Prices, on_answer: Callable[[str], None]) -> None:
        self._on_answer = on_answer
        self._price = prices.of_second(pool)
        self._pool = pool.value
        # Initialized to 0, so that the first scrape shows an increase.
        _ANSWERS.labels(self._pool, "200")
        self._engine_up = _ENGINE_UP.labels(self._pool)
        self._engine_up.set(0)
        self._wait = _WAIT.labels(pool.value)
        self._spent = _SPENT.labels(pool.value)
        self._cost = _COST.labels(pool.value, prices.currency)

    def dequeued(self, claims: Sequence[Claim]) -> None:
        """Count claimed requests, and observe the wait of those claimed for the first time."""
        _DEQUEUED.inc(len(claims))
        for claim in claims:
            if claim.is_first:
                self._wait.observe(claim.waited)

    def ran(self, outcomes: Iterable[Outcome]) -> None:
        """Count the engine's answers."""
        for answer, lines in Tally(map(_answer, outcomes)).items():
            _ANSWERS.labels(self._pool, answer).inc(lines)
            self._on_answer(answer)

    def settled(self, completed: int, failed: int, dead_letters: int) -> None:
        """Count requests that left the worker; released ones count as failed."""
        _COMPLETED.inc(completed)
        _FAILED.inc(failed)
        buried(dead_letters)

    def judged(self, in_time: int, late: int) -> None:
        """Count requests that ended before or after their deadline."""
        judged(in_time, late)

    def interrupted(self, lines: int) -> None:
        """Count requests released because their capacity went away."""
        interrupted(lines)

    def spent(self, replica_seconds: float) -> None:
        """Count replica seconds, and their cost."""
        self._spent.inc(replica_seconds)
        self._cost.inc(replica_seconds * self._price)

    def idle(self, seconds: float) -> None:
        """Count a wait without any requests."""
        _IDLE.inc(seconds)

    def engine_failed(self, kind: str) -> None:
        """Count a fault of the engine."""
        _ENGINE_FAULTS.labels(self._pool, kind).inc()

    def engine_is(self, state: BreakerState) -> None:
        """Record the state of the engine breaker."""
        self._engine_up.set(state is BreakerState.CLOSED)


def _answer(outcome: Outcome) -> str:
    if isinstance(outcome, Answered):
        return str(outcome.status_code)
    return "interrupted" if isinstance(outcome, Interrupted) else str(outcome.code)
