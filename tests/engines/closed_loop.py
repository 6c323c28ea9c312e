"""A client that keeps an engine busy, in simulated time: what the search for concurrency sees."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random
from typing import TYPE_CHECKING

from bench.batching import Batch, Hardware
from lowtide.engines.concurrency import TICK, Concurrency
from lowtide.engines.load import EngineLoad, Interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TURNAROUND = 0.004
"""Seconds from an answer to the client's next request."""


@dataclass
class Run:
    """What happened by tick: the limit, the tokens of the engine, its queue."""

    limits: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    settled: list[bool] = field(default_factory=list)

    def rate(self, start: int, end: int) -> float:
        """Return tokens per second between two ticks."""
        return (self.tokens[end - 1] - self.tokens[start]) / ((end - 1 - start) * TICK)


class ClosedLoop:
    """Keeps `limit` requests in flight, or `work` if that is less; answers vary in length."""

    def __init__(self, hardware: Hardware, *, seed: int = 1, work: float = math.inf) -> None:
        self.batch = Batch(hardware)
        self.now = 0.0
        self.limit = 0
        self._work = work
        self._rng = Random(seed)  # noqa: S311
        self._ids = count()
        self._sent: dict[int, tuple[float, int]] = {}
        self._pending: list[float] = []
        self._ended: list[tuple[float, int]] = []
        self._step_end: float | None = None
        self._area, self._since = 0.0, 0.0

    @property
    def in_flight(self) -> int:
        """The requests that the engine has not answered."""
        return len(self._sent)

    def _length(self) -> int:
        return max(1, min(round(self._rng.lognormvariate(0.0, 0.7) * 31), 400))

    def _count(self, now: float) -> None:
        self._area += (now - self._since) * self.in_flight
        self._since = now

    def _send(self, now: float) -> None:
        while self.in_flight + len(self._pending) < min(self.limit, self._work):
            heapq.heappush(self._pending, now + TURNAROUND)
        while self._pending and self._pending[0] <= now:
            heapq.heappop(self._pending)
            self._count(now)
            number, tokens = next(self._ids), self._length()
            self._sent[number] = (now, tokens)
            self.batch.add(number, tokens)

    def run_until(self, end: float) -> None:
        """Advance the time."""
        while True:
            self._send(self.now)
            if self._step_end is None:
                seconds = self.batch.begin_step()
                self._step_end = self.now + seconds if seconds else None
            times = [time for time in (self._step_end, *self._pending[:1]) if time is not None]
            upcoming = min(times, default=end)
            if upcoming > end:
                self.now = end
                return
            self.now = upcoming
            if self._step_end is not None and upcoming >= self._step_end:
                self._step_end = None
                self._count(self.now)
                for number in self.batch.end_step():
                    began, tokens = self._sent.pop(number)
                    self._ended.append((self.now - began, tokens))
            if upcoming >= end:
                return

    def interval(self, seconds: float) -> Interval:
        """Return what happened since the last call, `seconds` ago."""
        self._count(self.now)
        ended, self._ended = self._ended, []
        mean, self._area = self._area / seconds, 0.0
        return Interval(
            seconds,
            mean,
            self.in_flight,
            len(ended),
            float(sum(tokens for _, tokens in ended)),
            sum(latency for latency, _ in ended),
        )

    def load(self) -> EngineLoad:
        """Return what the engine reports."""
        return EngineLoad(self.batch.running, self.batch.waiting)


def simulate(
    loop: ClosedLoop,
    concurrency: Concurrency | int,
    ticks: int,
    *,
    reports: bool = True,
    sizes: Mapping[int, int] = {},
    slowness: Sequence[float] = (),
) -> Run:
    """Run a search, or a fixed limit; `sizes` are those of the batch from a tick on.

    `slowness` has a factor of the time of a step, by tick.
    """
    run = Run()
    hardware = loop.batch.hardware
    for tick in range(ticks):
        if slowness:
            seconds = hardware.step * slowness[tick], hardware.sequence * slowness[tick]
            loop.batch.hardware = replace(hardware, step=seconds[0], sequence=seconds[1])
        if tick in sizes:
            loop.batch.resize(sizes[tick])
        loop.limit = concurrency if isinstance(concurrency, int) else concurrency.limit
        loop.run_until(loop.now + TICK)
        interval = loop.interval(TICK)
        load = loop.load()
        if isinstance(concurrency, Concurrency):
            concurrency.observe(loop.now, interval, load if reports else None)
            run.settled.append(concurrency.is_settled)
        run.limits.append(loop.limit)
        run.tokens.append(loop.batch.tokens)
        run.waiting.append(load.waiting)
    return run
