"""The worker's metrics, under the original's names."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

_DEQUEUED = Counter("worker_dequeue_total", "Lines claimed from the queue.")
_COMPLETED = Counter("worker_completed_total", "Lines that ended in success.")
_FAILED = Counter("worker_failed_total", "Lines that failed or went back to the queue.")
# A gauge, because a counter would be exported as worker_idle_seconds_total.
_IDLE = Gauge("worker_idle_seconds", "Seconds spent waiting for work, since the start.")


class PrometheusMeter:
    """Port WorkerMeter."""

    def dequeued(self, lines: int) -> None:
        """Count lines that were claimed."""
        _DEQUEUED.inc(lines)

    def settled(self, completed: int, failed: int) -> None:
        """Count lines that left the worker; going back to the queue counts as failed."""
        _COMPLETED.inc(completed)
        _FAILED.inc(failed)

    def idle(self, seconds: float) -> None:
        """Count a wait with nothing in hand."""
        _IDLE.inc(seconds)
