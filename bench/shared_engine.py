"""An engine that online traffic and a batch worker share, in simulated time.

Online requests arrive at random (Poisson); the worker keeps a number in flight. The engine takes
both in order of arrival (`bench.batching`), and reports what vLLM reports.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, replace
from itertools import count
from random import Random
from typing import TYPE_CHECKING

from bench.batching import Batch, Hardware
from lowtide.engines.concurrency import TICK
from lowtide.engines.load import EngineLoad, FirstTokens, Interval

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowtide.worker.tuning import Strategy

TURNAROUND = 0.004
"""Seconds from an answer to the worker's next request."""
MEAN_TOKENS, SPREAD, MAX_TOKENS = 150, 0.7, 1000
HARDWARE = Hardware(256, prefill=0.001)


@dataclass(frozen=True, slots=True)
class Moment:
    """A tick: the limit, the requests that wait in the engine, and that the worker has left.

    `tokens` are those of its answers so far.
    """

    at: float
    limit: int
    waiting: int
    left: float
    tokens: int


class SharedEngine:
    """The engine and its clients; `online(now)` are online requests per second, `left` the work."""

    def __init__(
        self,
        online: Callable[[float], float],
        *,
        seed: int,
        left: float = math.inf,
        hardware: Hardware = HARDWARE,
    ) -> None:
        self.now = 0.0
        self.limit = 0
        self.left = left
        self.tokens = 0
        self.done = 0
        self.first_tokens: list[tuple[float, float]] = []
        self._batch = Batch(hardware)
        self._online = online
        # Online traffic is the same, whatever the worker does.
        self._arrivals, self._lengths = Random(seed), Random(seed + 1)  # noqa: S311
        self._work = Random(seed + 2)  # noqa: S311
        self._ids = count()
        self._queued: deque[tuple[float, bool]] = deque()
        self._admitted: list[tuple[float, bool]] = []
        self._sent: dict[int, int] = {}
        self._pending: list[float] = []
        self._reported = FirstTokens(0.0, 0.0)
        self._step_end = math.inf
        self._next_online = self._gap()
        self._answers = 0

    @property
    def in_flight(self) -> int:
        """The worker's requests that the engine has not answered."""
        return len(self._sent) + len(self._pending)

    def revoke(self, requests: int) -> int:
        """Take the newest requests of the worker away; return their number.

        The engine still makes their tokens.
        """
        revoked = sorted(self._sent, reverse=True)[:requests]
        for number in revoked:
            del self._sent[number]
        return len(revoked)

    def run_until(self, end: float) -> None:
        """Advance the time."""
        while True:
            self._send()
            if self._step_end == math.inf:
                self._begin_step()
            upcoming = min(self._step_end, self._next_online, *self._pending[:1])
            if upcoming > end:
                self.now = end
                return
            self.now = upcoming
            if upcoming == self._step_end:
                self._end_step()

    def load(self) -> EngineLoad:
        """Return what the engine reports."""
        return EngineLoad(self._batch.running, self._batch.waiting, self._reported)

    def interval(self) -> Interval:
        """Return what the worker measured in the last tick, as far as a spare worker needs it."""
        answers, self._answers = self._answers, 0
        return Interval(TICK, self.in_flight, self.in_flight, answers)

    def _gap(self) -> float:
        return self.now + self._arrivals.expovariate(self._online(self.now))

    def _send(self) -> None:
        while self._next_online <= self.now:
            self._add(_length(self._lengths), is_online=True)
            self._next_online = self._gap()
        while self.left > 0 and self.in_flight < self.limit:
            self.left -= 1
            heapq.heappush(self._pending, self.now + TURNAROUND)
        while self._pending and self._pending[0] <= self.now:
            heapq.heappop(self._pending)
            tokens = _length(self._work)
            self._sent[self._add(tokens, is_online=False)] = tokens

    def _add(self, tokens: int, *, is_online: bool) -> int:
        number = next(self._ids)
        self._batch.add(number, tokens)
        self._queued.append((self.now, is_online))
        return number

    def _begin_step(self) -> None:
        seconds = self._batch.begin_step()
        while len(self._queued) > self._batch.waiting:
            self._admitted.append(self._queued.popleft())
        if seconds:
            self._step_end = self.now + seconds

    def _end_step(self) -> None:
        self._step_end = math.inf
        for arrived, is_online in self._admitted:
            seconds = self.now - arrived
            reported = self._reported
            self._reported = FirstTokens(reported.count + 1, reported.seconds + seconds)
            if is_online:
                self.first_tokens.append((arrived, seconds))
        self._admitted.clear()
        for number in self._batch.end_step():
            tokens = self._sent.pop(number, None)
            if tokens is not None:
                self.tokens += tokens
                self.done += 1
                self._answers += 1


def _length(rng: Random) -> int:
    length = rng.lognormvariate(-(SPREAD**2) / 2, SPREAD) * MEAN_TOKENS
    return max(1, min(round(length), MAX_TOKENS))


def follow(
    engine: SharedEngine,
    strategy: Strategy | int,
    seconds: float,
    each_tick: Callable[[], None] = lambda: None,
    *,
    reports: Callable[[EngineLoad], EngineLoad | None] = lambda load: load,
) -> list[Moment]:
    """Run a strategy, or a fixed number in flight; `reports` is what reaches the worker."""
    moments = []
    while engine.now < seconds:
        each_tick()
        engine.limit = strategy if isinstance(strategy, int) else strategy.limit
        engine.run_until(engine.now + TICK)
        interval, load = engine.interval(), engine.load()
        if not isinstance(strategy, int):
            strategy.observe(engine.now, interval, reports(load))
        moments.append(Moment(engine.now, engine.limit, load.waiting, engine.left, engine.tokens))
    return moments


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the sample below which a share of all lie."""
    return sorted(samples)[min(len(samples) - 1, int(share * len(samples)))]


def without_first_tokens(load: EngineLoad) -> EngineLoad:
    """Return the report of an engine that has no time to first token, such as llama.cpp."""
    return replace(load, first_tokens=None)
