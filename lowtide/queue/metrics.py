"""Counters of how requests end, for every process that ends them: workers and the scheduler."""

from __future__ import annotations

from prometheus_client import Counter

_MET = Counter("requests_sla_met_total", "Requests that ended before their deadline.")
_VIOLATED = Counter(
    "requests_sla_violated_total", "Requests that missed their deadline other than by a quota."
)
_INTERRUPTED = Counter(
    "spot_interruptions_total",
    "Requests interrupted because spot capacity went away; they run again.",
)
_DEAD_LETTERS = Counter("dead_letters_total", "Dead-lettered requests.")


def judged(in_time: int, late: int) -> None:
    """Count requests whose deadline was met or missed."""
    _MET.inc(in_time)
    _VIOLATED.inc(late)


def buried(requests: int) -> None:
    """Count dead-lettered requests."""
    _DEAD_LETTERS.inc(requests)


def interrupted(requests: int) -> None:
    """Count interrupted requests."""
    _INTERRUPTED.inc(requests)
