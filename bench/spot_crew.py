"""The replicas of one pool: a replica runs one request after the other, at a rate that may change.

The request of a replica that stops starts over. Nothing changes within a step, so that a pool is
advanced in one.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from lowtide.planning.demand import RateSample

_ROUNDING = 1e-9
_MICROSECOND = 1e-6


@dataclass(slots=True)
class _Replica:
    """A replica, its progress with a request, and what it ended while it was full."""

    ready: float
    done: float = 0.0
    ended: int = 0
    full: float = 0.0


class Crew:
    """The replicas and the open requests of a pool.

    `paid` are replica-seconds, `worked` those of replicas that were ready.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.lines = 0
        self.paid = 0.0
        self.worked = 0.0
        self._replicas: list[_Replica] = []

    def __len__(self) -> int:
        return len(self._replicas)

    def starts(self, now: float) -> list[float]:
        """Return the seconds until each replica is ready."""
        return [max(0.0, each.ready - now) for each in self._replicas]

    def in_hand(self, now: float) -> int:
        """Return the number of running requests."""
        return min(sum(each.ready <= now for each in self._replicas), self.lines)

    def resize(self, replicas: int, ready: float) -> None:
        """Start replicas, or stop the newest ones."""
        del self._replicas[replicas:]
        self._replicas += [_Replica(ready) for _ in range(replicas - len(self._replicas))]

    def give_up(self, lines: int) -> None:
        """Drop running requests, those with the least progress first."""
        self.lines -= lines
        for each in sorted(self._replicas, key=lambda replica: replica.done)[:lines]:
            each.done = 0.0

    def samples(self) -> list[RateSample]:
        """Return what each replica ended while it was full, since the last call."""
        samples = [RateSample(each.ended, each.full) for each in self._replicas if each.full > 0]
        for each in self._replicas:
            each.ended, each.full = 0, 0.0
        return samples

    def run(self, start: float, end: float) -> float:
        """Work from `start` to `end`; return the end of the last request, `end` if not yet."""
        self.paid += len(self._replicas) * (end - start)
        finished = 0
        progress = []
        for each in self._replicas:
            seconds = max(0.0, end - max(start, each.ready))
            self.worked += seconds
            total = each.done + seconds * self.rate + _ROUNDING
            whole = int(total)
            finished += whole
            progress.append((whole, seconds, max(0.0, total - whole - _ROUNDING)))
        if finished + len(progress) > self.lines:
            return self._run_dry(start, end)
        self.lines -= finished
        for each, (whole, seconds, done) in zip(self._replicas, progress, strict=True):
            each.ended += whole
            each.full += seconds
            each.done = done
        return end

    def _run_dry(self, start: float, end: float) -> float:
        """Do the same request by request, as there may be fewer requests than replicas."""
        waiting = self.lines
        line = 1 / self.rate
        events: list[tuple[float, int]] = []
        last = start
        by_age = sorted(self._replicas, key=lambda each: -each.done)
        for position, replica in enumerate(by_age):
            begins = max(start, replica.ready)
            if waiting > 0 and begins < end:
                waiting -= 1
                events.append((begins + (1 - replica.done) * line, position))
                replica.full -= begins
        heapq.heapify(events)
        while events and events[0][0] <= end + _MICROSECOND:
            last, position = heapq.heappop(events)
            self.lines -= 1
            by_age[position].ended += 1
            if waiting > 0:
                waiting -= 1
                heapq.heappush(events, (last + line, position))
            else:
                by_age[position].full += last
        for replica in by_age:
            replica.done = 0.0
        for at, position in events:
            by_age[position].full += end
            by_age[position].done = min(max(0.0, 1 - (at - end) * self.rate), 1.0)
        return last if self.lines == 0 else end
