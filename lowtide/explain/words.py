"""The sentences of explanations: factors, advice and comparisons in words."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from lowtide.core.durations import duration
from lowtide.explain.model import Factor
from lowtide.planning.reasons import Bound, Reason, describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowtide.explain.model import Comparison, Numbers


def words(factor: Factor, numbers: Numbers) -> str:
    """Return a factor in words.

    >>> words(Factor.TENANT_LIMIT, {"limit": 8, "running": 8, "waiting": 1200})
    "The tenant's limit of 8 running requests is reached; 1,200 requests wait"
    """
    return _WORDS[factor](numbers)


def advice(factor: Factor, numbers: Numbers) -> str:
    """Return what removes a factor, in words.

    >>> advice(Factor.POOL_PAUSED, {"pool": "spot", "waiting": 12})
    'Resume spot'
    """
    return _ADVICE[factor](numbers)


def compared(comparison: Comparison) -> str:
    """Return how a batch compares with earlier runs of the same user and model.

    >>> from lowtide.explain.model import Comparison
    >>> compared(Comparison(2.0, 4.0, 7))
    '2 requests/s since its start; the median of the last 7 runs is 4 (50% slower)'
    """
    change = comparison.ratio - 1
    how = "as usual"
    if abs(change) >= 0.05:
        how = f"{abs(change):.0%} {'slower' if change < 0 else 'faster'}"
    runs = (
        "the last run had"
        if comparison.runs == 1
        else (f"the median of the last {comparison.runs} runs is")
    )
    return (
        f"{comparison.rate:.3g} requests/s since its start; {runs} {comparison.usual:.3g} ({how})"
    )


def _count(numbers: Numbers, name: str, noun: str = "request") -> str:
    count = int(numbers.get(name, 0))
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _of_fleet(numbers: Numbers) -> str:
    """Return the fleet of a pool, where its installation has several."""
    return f" of fleet {numbers['fleet']}" if "fleet" in numbers else ""


def _workers(numbers: Numbers, name: str) -> str:
    return _count(numbers, name, f"{numbers['pool']} worker") + _of_fleet(numbers)


def _worker(numbers: Numbers) -> str:
    return f"{numbers['pool']} worker{_of_fleet(numbers)}"


def _pool(numbers: Numbers) -> str:
    return f"The {numbers['pool']} pool{_of_fleet(numbers)}"


def _span(numbers: Numbers) -> str:
    return duration(timedelta(seconds=float(numbers.get("seconds", 0))))


def _validating(_: Numbers) -> str:
    return "The input file is being validated"


def _awaiting_events(numbers: Numbers) -> str:
    return f"Its next step has been waiting for {_span(numbers)}: the event is not delivered yet"


def _scheduler_late(numbers: Numbers) -> str:
    return f"The scheduler has not planned for {_span(numbers)}"


def _pool_paused(numbers: Numbers) -> str:
    if "waiting" not in numbers:
        return f"{_pool(numbers)} was paused"
    verb = "waits" if numbers["waiting"] == 1 else "wait"
    return f"{_pool(numbers)} is paused; {_count(numbers, 'waiting')} {verb} for it"


def _engine_away(numbers: Numbers) -> str:
    if "workers" not in numbers:
        return f"No {_worker(numbers)} had an engine"
    return f"The engine of {_workers(numbers, 'workers')} does not respond"


def _no_workers(numbers: Numbers) -> str:
    if "max" not in numbers:
        return f"No {_worker(numbers)} was available"
    return f"No {_worker(numbers)} is running; up to {numbers['max']} may"


def _cold_start(numbers: Numbers) -> str:
    workers = f"The {numbers['pool']} workers{_of_fleet(numbers)}"
    return f"{workers} are starting, which takes up to {_span(numbers)}"


def _tenant_limit(numbers: Numbers) -> str:
    limit = f"The tenant's limit of {_count(numbers, 'limit', 'running request')}"
    if not numbers.get("waiting"):
        return f"{limit} was in use"
    verb = "waits" if numbers["waiting"] == 1 else "wait"
    return f"{limit} is reached; {_count(numbers, 'waiting')} {verb}"


def _quota(numbers: Numbers) -> str:
    is_daily = numbers["quota"] == "tokens_per_day"
    what = "tokens for today are" if is_daily else "spend for this month is"
    verb = "waits" if numbers["waiting"] == 1 else "wait"
    return f"The tenant's {what} used up, for {_span(numbers)} more; {_count(numbers, 'waiting')} {verb}"


def _retries(numbers: Numbers) -> str:
    verb = "waits" if numbers.get("delayed") == 1 else "wait"
    delayed = f"; {_count(numbers, 'delayed')} {verb} for the next attempt"
    attempts = int(numbers.get("ended", 0)) + int(numbers.get("retries", 0))
    text = f"{int(numbers.get('retries', 0)):,} of {attempts:,} attempts failed and were repeated"
    return text + (delayed if numbers.get("delayed") else "")


def _interruptions(numbers: Numbers) -> str:
    return f"{_count(numbers, 'interruptions', 'interruption')}: these requests ran again"


def _queue_ahead(numbers: Numbers) -> str:
    if "seconds" in numbers:
        return f"It waited {_span(numbers)} until a worker was free"
    own, others = int(numbers.get("own", 0)), int(numbers.get("others", 0))
    if not own:
        return f"{_count(numbers, 'others')} of other tenants run before its last one"
    rest = f" and {others:,} of other tenants" if others else ""
    return f"{_count(numbers, 'own')} of its own tenant{rest} run before its last one"


def _deadline_bound(numbers: Numbers) -> str:
    bound = None
    if "capacity" in numbers:
        bound = Bound(
            int(numbers["open"]),
            float(numbers["seconds"]),
            int(numbers["replicas"]),
            float(numbers["rate"]),
            int(numbers["capacity"]),
        )
    return describe(Reason.DEADLINE_BOUND, bound)


def _pool_bound(numbers: Numbers) -> str:
    if "workers" not in numbers:
        return f"Its requests mostly waited for a free {_worker(numbers)}"
    workers, most = int(numbers["workers"]), int(numbers["max"])
    busy = _workers(numbers, "workers")
    if workers >= most:
        return f"{busy} {'is' if workers == 1 else 'are'} busy, the maximum"
    return f"{busy} {'is' if workers == 1 else 'are'} busy, of {numbers['wanted']} wanted"


def _engine_speed(numbers: Numbers) -> str:
    each = f", at {float(numbers['seconds']):.3g} s each" if "seconds" in numbers else ""
    if not numbers.get("running"):
        return f"Nothing but the engine's speed limited it{each}"
    verb = "runs" if numbers["running"] == 1 else "run"
    return f"All open requests run: {_count(numbers, 'running')} {verb}{each}"


def _finalizing(_: Numbers) -> str:
    return "All requests have ended; the output files are being written"


def _cancelled(numbers: Numbers) -> str:
    if numbers.get("running"):
        return f"It is being cancelled; {_count(numbers, 'running')} may still finish"
    return "It was cancelled"


def _rejected(numbers: Numbers) -> str:
    return f"The input file was rejected: {_count(numbers, 'problems', 'problem')}"


_WORDS: dict[Factor, Callable[[Numbers], str]] = {
    Factor.VALIDATING: _validating,
    Factor.AWAITING_EVENTS: _awaiting_events,
    Factor.SCHEDULER_LATE: _scheduler_late,
    Factor.POOL_PAUSED: _pool_paused,
    Factor.ENGINE_AWAY: _engine_away,
    Factor.NO_WORKERS: _no_workers,
    Factor.COLD_START: _cold_start,
    Factor.QUOTA: _quota,
    Factor.TENANT_LIMIT: _tenant_limit,
    Factor.RETRIES: _retries,
    Factor.INTERRUPTIONS: _interruptions,
    Factor.QUEUE_AHEAD: _queue_ahead,
    Factor.DEADLINE_BOUND: _deadline_bound,
    Factor.POOL_BOUND: _pool_bound,
    Factor.ENGINE_SPEED: _engine_speed,
    Factor.FINALIZING: _finalizing,
    Factor.CANCELLED: _cancelled,
    Factor.REJECTED: _rejected,
}


def _more_replicas(numbers: Numbers) -> str:
    replicas = f"{numbers['pool']} replicas{_of_fleet(numbers)}"
    return f"Allow {numbers['more']} {replicas}: the maximum is {numbers['max']}"


_ADVICE: dict[Factor, Callable[[Numbers], str]] = {
    Factor.TENANT_LIMIT: lambda numbers: (
        f"Raise the tenant's limit of {_count(numbers, 'limit', 'running request')}"
    ),
    Factor.RETRIES: lambda _: "Fix what fails: see the errors of its requests",
    Factor.POOL_PAUSED: lambda numbers: f"Resume {numbers['pool']}{_of_fleet(numbers)}",
    Factor.ENGINE_AWAY: lambda numbers: f"Bring the engine of {_workers(numbers, 'workers')} back",
    Factor.NO_WORKERS: lambda numbers: f"Start {_workers(numbers, 'max')}",
    Factor.QUEUE_AHEAD: _more_replicas,
    Factor.DEADLINE_BOUND: _more_replicas,
    Factor.POOL_BOUND: _more_replicas,
}
