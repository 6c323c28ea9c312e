"""An engine's throughput over time, by its own samples."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOW = 3.0
"""Seconds over which a rate counts as reached."""


@dataclass(frozen=True)
class Sample:
    """The engine at one time; `tokens` and `completed` count from its start."""

    at: float
    tokens: int
    running: int
    waiting: int
    completed: int


class Timeline:
    """What the engine did, by its own samples."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self._times = [sample.at for sample in samples]

    def at(self, when: float) -> Sample:
        """Return the first sample from a time on."""
        return self.samples[min(bisect_left(self._times, when), len(self.samples) - 1)]

    def rate(self, start: float, end: float) -> float:
        """Return tokens per second."""
        first, last = self.at(start), self.at(end)
        return (last.tokens - first.tokens) / max(last.at - first.at, 1e-9)

    def first(self) -> float:
        """Return when the engine got its first request."""
        return next(sample.at for sample in self.samples if sample.running)

    def completed(self, requests: int) -> float:
        """Return when so many requests were complete."""
        return next(sample.at for sample in self.samples if sample.completed >= requests)

    def reached(self, rate: float, start: float, end: float) -> float | None:
        """Return the seconds after `start` from which the rate is reached."""
        times = (sample.at for sample in self.samples if start <= sample.at <= end - WINDOW)
        found = next((at for at in times if self.rate(at, at + WINDOW) >= rate), None)
        return None if found is None else found - start

    def queue_short(self, start: float, size: int) -> float | None:
        """Return the seconds after `start` from which fewer than half a batch wait."""
        after = (s.at for s in self.samples if s.at >= start + 0.3 and s.waiting < size / 2)
        return next((at - start for at in after), None)
