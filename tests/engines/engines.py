"""A simulated engine with its clients, in simulated time, for the search for concurrency."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import TYPE_CHECKING

from bench.batching import Batch, Hardware
from lowtide.engines.concurrency import TICK, Concurrency
from lowtide.engines.load import EngineLoad, Interval

if TYPE_CHECKING:
    from collections.abc import Mapping

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


class Simulation:
    """A closed loop: as many requests as the limit allows are in flight, as long as there is work."""

    def __init__(
        self, hardware: Hardware, *, seed: int = 1, tokens: float = 40.0, work: int | None = None
    ) -> None:
        self.batch = Batch(hardware)
        self.rng = Random(seed)  # noqa: S311
        self.mean = tokens
        self.now = 0.0
        self.work = work
        self._ids = count()
        self._begun: dict[int, tuple[float, int]] = {}
        self._idle: list[float] = []
        self.limit = 0
        self._area, self._since = 0.0, 0.0
        self._ended: list[tuple[float, int]] = []
        self._step_end: float | None = None
        self._pending: list[float] = []

    def length(self) -> int:
        return max(1, min(int(self.rng.lognormvariate(0.0, 0.7) * self.mean * 0.78), 400))

    @property
    def in_flight(self) -> int:
        return len(self._begun)

    def _count(self, now: float) -> None:
        self._area += (now - self._since) * self.in_flight
        self._since = now

    def _send(self, now: float) -> None:
        while self.in_flight + len(self._pending) < self.limit and self.work != 0:
            heapq.heappush(self._pending, now + TURNAROUND)
            if self.work is not None:
                self.work -= 1
        while self._pending and self._pending[0] <= now:
            heapq.heappop(self._pending)
            self._count(now)
            number, tokens = next(self._ids), self.length()
            self._begun[number] = (now, tokens)
            self.batch.add(number, tokens)

    def run_until(self, end: float) -> None:
        """Advance the engine."""
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
                    began, tokens = self._begun.pop(number)
                    self._ended.append((self.now - began, tokens))
            if upcoming >= end:
                return

    def interval(self, seconds: float) -> Interval:
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
        return EngineLoad(self.batch.running, self.batch.waiting)


def simulate(
    simulation: Simulation,
    concurrency: Concurrency | int,
    ticks: int,
    *,
    reports: bool = True,
    sizes: Mapping[int, int] = {},
) -> Run:
    """Run a controller, or a fixed limit; `sizes` are those of the batch from a tick on."""
    run = Run()
    for tick in range(ticks):
        if tick in sizes:
            simulation.batch.resize(sizes[tick])
        simulation.limit = concurrency if isinstance(concurrency, int) else concurrency.limit
        simulation.run_until(simulation.now + TICK)
        interval = simulation.interval(TICK)
        load = simulation.load()
        if isinstance(concurrency, Concurrency):
            concurrency.observe(simulation.now, interval, load if reports else None)
            run.settled.append(concurrency.is_settled)
        run.limits.append(simulation.limit)
        run.tokens.append(simulation.batch.tokens)
        run.waiting.append(load.waiting)
    return run
