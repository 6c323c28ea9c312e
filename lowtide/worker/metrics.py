"""The worker's metrics, named as in the original, and those that its engine reports."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Tally
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from lowtide.engines.breaker import BreakerState
from lowtide.engines.outcomes import Answered, Interrupted
from lowtide.queue.metrics import buried, interrupted, judged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client.metrics_core import Metric

    from lowtide.core.pools import Pool, Prices
    from lowtide.engines.outcomes import Outcome
    from lowtide.engines.telemetry import EngineTelemetry, Times
    from lowtide.queue.claims import Claim


_DEQUEUED = Counter("worker_dequeue_total", "Requests claimed from the queue.")
_COMPLETED = Counter("worker_completed_total", "Requests that completed.")
_FAILED = Counter("worker_failed_total", "Requests that failed or were released to the queue.")
# A gauge, because a counter would be exported as worker_idle_seconds_total.
_IDLE = Gauge("worker_idle_seconds", "Seconds spent waiting for work since the start.")
_ANSWERS = Counter(
    "engine_answers_total",
    "Outcomes of requests: the engine's HTTP status, the reason for a missing one, or interrupted.",
    ["fleet", "pool", "answer"],
)
_ENGINE_UP = Gauge(
    "worker_engine_up",
    "1 while the worker's engine breaker is closed, else 0.",
    ["fleet", "pool"],
)
_ENGINE_FAULTS = Counter(
    "engine_faults_total",
    "Outcomes attributed to the engine, not to the request, by kind.",
    ["fleet", "pool", "kind"],
)
_PROMPT_TOKENS = Counter(
    "engine_prompt_tokens_total", "Input tokens of answers, by their usage.", ["fleet", "pool"]
)
_OUTPUT_TOKENS = Counter(
    "engine_output_tokens_total", "Output tokens of answers, by their usage.", ["fleet", "pool"]
)
_CONCURRENCY = Gauge(
    "worker_concurrency",
    "Max requests in flight while the engine is well; with `auto`, as far as the search has come.",
    ["fleet", "pool"],
)
_SPENT = Counter(
    "replica_seconds_total", "Replica seconds of requests that ended.", ["fleet", "pool"]
)
_COST = Counter(
    "cost_total",
    "Cost of replica seconds at the prices of the fleet's pools.",
    ["fleet", "pool", "currency"],
)


class _EngineReport(Collector):
    """Collector of the last report of the worker's engine; what is unknown has no series."""

    def __init__(self) -> None:
        self.labels: tuple[str, str] = ("", "")
        self.seen: EngineTelemetry | None = None

    def describe(self) -> Iterable[Metric]:
        """Return the exported metrics without samples."""
        return [*_engine_numbers().values(), *_engine_times().values()]

    def collect(self) -> Iterable[Metric]:
        """Return what the engine reported."""
        if self.seen is None:
            return
        for field, number in _engine_numbers().items():
            if (value := getattr(self.seen, field)) is not None:
                number.add_metric(self.labels, value)
                yield number
        for field, histogram in _engine_times().items():
            if (times := getattr(self.seen, field)) is not None:
                yield _with_times(histogram, times, self.labels)


_BY_FLEET = ("fleet", "pool")
_WAIT_BUCKETS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0)


class _Waits:
    """Waits that many requests share: observing each one would dominate a claim."""

    def __init__(self) -> None:
        self._requests = [0] * (len(_WAIT_BUCKETS) + 1)
        self._seconds = 0.0

    def observe(self, seconds: float, requests: int) -> None:
        """Count requests that waited as long."""
        self._requests[bisect_left(_WAIT_BUCKETS, seconds)] += requests
        self._seconds += seconds * requests

    def add_to(self, histogram: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Add the waits so far."""
        bounds = [*map(floatToGoString, _WAIT_BUCKETS), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._requests), strict=True))
        histogram.add_metric(labels, buckets, self._seconds)


class _WaitHistogram(Collector):
    """Collector of the waits by fleet and pool."""

    def __init__(self) -> None:
        self._waits: dict[tuple[str, str], _Waits] = {}

    def labels(self, fleet: str, pool: str) -> _Waits:
        """Return the waits in a fleet's pool, none at first."""
        return self._waits.setdefault((fleet, pool), _Waits())

    def describe(self) -> Iterable[Metric]:
        """Return the metric without samples."""
        return [self._histogram()]

    def collect(self) -> Iterable[Metric]:
        """Return the waits so far."""
        histogram = self._histogram()
        for labels, waits in list(self._waits.items()):
            waits.add_to(histogram, labels)
        yield histogram

    @staticmethod
    def _histogram() -> HistogramMetricFamily:
        return HistogramMetricFamily(
            "queue_wait_time_seconds",
            "Seconds from queueing to the first claim.",
            labels=_BY_FLEET,
        )


_WAIT = _WaitHistogram()
REGISTRY.register(_WAIT)


def _engine_numbers() -> dict[str, GaugeMetricFamily | CounterMetricFamily]:
    """Return the metric of each number of EngineTelemetry."""
    return {
        "running": GaugeMetricFamily(
            "engine_requests_running", "Requests in the engine's batch.", labels=_BY_FLEET
        ),
        "waiting": GaugeMetricFamily(
            "engine_requests_waiting", "Requests in the engine's queue.", labels=_BY_FLEET
        ),
        "kv_cache": GaugeMetricFamily(
            "engine_kv_cache_usage_ratio", "Used share of the engine's KV cache.", labels=_BY_FLEET
        ),
        "prefix_queries": CounterMetricFamily(
            "engine_prefix_cache_queries", "Input tokens of the engine.", labels=_BY_FLEET
        ),
        "prefix_hits": CounterMetricFamily(
            "engine_prefix_cache_hits",
            "Input tokens that the engine found in its prefix cache.",
            labels=_BY_FLEET,
        ),
    }


def _engine_times() -> dict[str, HistogramMetricFamily]:
    """Return the metric of each of the Times of EngineTelemetry."""
    return {
        "first_token": HistogramMetricFamily(
            "engine_time_to_first_token_seconds",
            "Seconds to the first token, as the engine reports them.",
            labels=_BY_FLEET,
        ),
        "output_token": HistogramMetricFamily(
            "engine_time_per_output_token_seconds",
            "Seconds per output token, as the engine reports them.",
            labels=_BY_FLEET,
        ),
    }


def _with_times(histogram: HistogramMetricFamily, times: Times, labels: tuple[str, str]) -> Metric:
    """Return a metric of times; without buckets only their sum and number: no quantile is known."""
    if times.buckets:
        histogram.add_metric(labels, times.buckets, times.seconds)
        return histogram
    summary = SummaryMetricFamily(histogram.name, histogram.documentation, labels=_BY_FLEET)
    summary.add_metric(labels, times.count, times.seconds)
    return summary


_ENGINE_REPORT = _EngineReport()
REGISTRY.register(_ENGINE_REPORT)


class WorkerMetrics:
    """The metrics of one worker; `on_answer` is called with the kinds of answer from its engine.

    `tokens` counts the input and output tokens of all answers.
    """

    def __init__(
        self,
        pool: Pool,
        prices: Prices,
        on_answer: Callable[[str], None],
        *,
        fleet: str = "default",
    ) -> None:
        self.tokens = (0, 0)
        by_fleet = (fleet, pool.value)
        self._prompt_tokens = _PROMPT_TOKENS.labels(*by_fleet)
        self._output_tokens = _OUTPUT_TOKENS.labels(*by_fleet)
        self._concurrency = _CONCURRENCY.labels(*by_fleet)
        _ENGINE_REPORT.labels = by_fleet
        self._on_answer = on_answer
        self._price = prices.of_second(pool)
        self._by_fleet = by_fleet
        # Initialized to 0, so that the first scrape shows an increase.
        _ANSWERS.labels(*by_fleet, "200")
        self._engine_up = _ENGINE_UP.labels(*by_fleet)
        self._engine_up.set(0)
        self._waits = _WAIT.labels(*by_fleet)
        self._spent = _SPENT.labels(*by_fleet)
        self._cost = _COST.labels(*by_fleet, prices.currency)

    def dequeued(self, claims: Sequence[Claim]) -> None:
        """Count claimed requests, and observe the wait of those claimed for the first time."""
        _DEQUEUED.inc(len(claims))
        for waited, requests in Tally(claim.waited for claim in claims if claim.is_first).items():
            self._waits.observe(waited, requests)

    def ran(self, outcomes: Iterable[Outcome]) -> None:
        """Count the engine's answers and their tokens."""
        outcomes = list(outcomes)
        for answer, lines in Tally(map(_answer, outcomes)).items():
            _ANSWERS.labels(*self._by_fleet, answer).inc(lines)
            self._on_answer(answer)
        usages = [outcome.usage for outcome in outcomes if isinstance(outcome, Answered)]
        prompt = sum(usage.input_tokens for usage in usages)
        output = sum(usage.output_tokens for usage in usages)
        self._prompt_tokens.inc(prompt)
        self._output_tokens.inc(output)
        self.tokens = (self.tokens[0] + prompt, self.tokens[1] + output)

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
        _ENGINE_FAULTS.labels(*self._by_fleet, kind).inc()

    def engine_reports(self, telemetry: EngineTelemetry | None) -> None:
        """Export what the engine reports of itself; None for nothing."""
        _ENGINE_REPORT.seen = telemetry

    def allowed(self, in_flight: int) -> None:
        """Record the max number of requests in flight."""
        self._concurrency.set(in_flight)

    def engine_is(self, state: BreakerState) -> None:
        """Record the state of the engine breaker."""
        self._engine_up.set(state is BreakerState.CLOSED)


def _answer(outcome: Outcome) -> str:
    if isinstance(outcome, Answered):
        return str(outcome.status_code)
    return "interrupted" if isinstance(outcome, Interrupted) else str(outcome.code)
