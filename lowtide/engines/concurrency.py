"""The search for an engine's concurrency: pure, with the time as an argument.

More requests in flight make a batching engine faster until its batch is full; more than that only
wait inside it. Two signals find that point:

- The engine's own queue, where it reports one: while that is empty, the limit doubles from tick to
  tick; a queue that does not shrink sets the limit to what runs, and a cushion.
- Measured throughput, where it reports none, or refused more: the limit climbs while that gains,
  and afterwards probes a little more or less now and then.

Throughput follows from Little's law: requests in flight, times the work of the requests that ended,
divided by the seconds that these took. Lengths of answers, which vary, are in both sums, so that a
few dozen answers suffice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lowtide.engines.load import EngineLoad, Interval


START: Final = 32
TICK: Final = 1.0
"""Seconds between two observations."""
_FULL: Final = 0.85
"""Share of the limit that is in flight while there is enough work: else nothing is learned."""
_EMPTY_TICKS: Final = 3
"""Ticks with an empty queue after which a settled limit grows."""
_DOUBLE: Final = 2.0
_REFINE: Final = 1.25
_PROBE: Final = 1.125
"""Factors of the limit: in fast growth, after it, and of probes."""
_GAIN: Final = 0.02
_LOSS: Final = 0.01
"""Shares of throughput that a larger limit has to gain, and that a smaller one may lose."""
_NOISE: Final = 0.75
"""Standard deviation of an answer's length, relative to the mean, that growth reckons with."""
_CHANGED: Final = 0.2
"""Change of throughput at the same limit that is a change of the engine."""
_FIRST_PROBE: Final = 15.0
_LAST_PROBE: Final = 30.0
_FIRST_HOLD: Final = 60.0
_LAST_HOLD: Final = 600.0
"""Seconds between probes, and seconds without one after a refusal; each failure doubles them."""
_MIN_ANSWERS: Final = 32


@dataclass(frozen=True, slots=True)
class _Level:
    """A limit, and the work per second at it."""

    limit: int
    rate: float


class _Round:
    """Measures throughput at one limit, once the requests of the limit before it have ended."""

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, in_flight: int) -> None:
        """Drop what was measured: the limit changed while so many requests were in flight."""
        self._before = in_flight
        self._next()

    def _next(self) -> None:
        self._answers, self._work, self._latency = 0, 0.0, 0.0
        self._seconds, self._area = 0.0, 0.0

    def add(self, interval: Interval, limit: int, answers: int) -> float | None:
        """Return the work per second once `answers` are measured."""
        if interval.in_flight < _FULL * limit:
            self.restart(max(limit, interval.at_end))
            return None
        if self._before > 0:
            self._before -= interval.answers
            return None
        self._answers += interval.answers
        self._work += interval.work
        self._latency += interval.latency
        self._seconds += interval.seconds
        self._area += interval.in_flight * interval.seconds
        if self._answers < answers or not self._latency:
            return None
        rate = self._area / self._seconds * self._work / self._latency
        self._next()
        return rate


class Concurrency:
    """Finds the limit on requests in flight, between 1 and `most`; times in seconds.

    It starts at `start`. `is_settled` once growth has ended: from then on the limit only follows
    changes.
    """

    needs_load = False

    def __init__(self, most: int, start: int = START) -> None:
        self._most = most
        self.start = start
        self.restart()

    def restart(self) -> None:
        """Search from the start: the engine may be another one."""
        self.limit = min(self.start, self._most)
        self.is_settled = False
        self._ceiling = self._most
        self._step = _DOUBLE
        self._round = _Round()
        self._load: EngineLoad | None = None
        self._empty_ticks = 0
        self._base: _Level | None = None
        self._is_trial = False
        self._upward = True
        self._probe_at = -math.inf
        self._probe_delay = _FIRST_PROBE
        self._refused_at = -math.inf
        self._hold = _FIRST_HOLD

    def observe(self, now: float, interval: Interval, load: EngineLoad | None) -> None:
        """Adapt the limit to the last tick; `load` is None if the engine does not report it."""
        limit = self.limit
        answers = max(_MIN_ANSWERS, 2 * limit if self.is_settled else limit)
        rate = self._round.add(interval, limit, answers)
        if load is not None:
            self._follow_queue(interval, load)
        if rate is not None and self.limit == limit and self._needs_rate(load):
            self._climb(now, _Level(limit, rate))
        self._load = load
        if self.limit != limit:
            self._round.restart(max(limit, self.limit))

    def refused(self, now: float) -> None:
        """Halve the limit, and stay below the refused one for a while."""
        is_repeated = now - self._refused_at < 2 * self._hold
        self._hold = min(2 * self._hold, _LAST_HOLD) if is_repeated else _FIRST_HOLD
        self._refused_at = now
        self._ceiling = max(1, int(0.9 * self.limit))
        self.limit = max(1, self.limit // 2)
        self._forget(_REFINE)
        self._probe_at = now + self._hold

    def _needs_rate(self, load: EngineLoad | None) -> bool:
        """Return whether the engine's queue leaves open what the best limit is.

        With an empty queue at `most`, it does not: an engine that admits all of them batches all of
        them. To try less would cost throughput, for as long as the requests of a trial take.
        """
        is_refused = self._is_at_ceiling and self._ceiling < self._most
        return load is None or (_is_short(load) and (self._is_trial or is_refused))

    @property
    def _is_at_ceiling(self) -> bool:
        return self.limit >= self._ceiling

    def _follow_queue(self, interval: Interval, load: EngineLoad) -> None:
        cushion = _cushion(load.running)
        is_short = _is_short(load)
        is_empty = is_short and interval.at_end >= _FULL * self.limit
        self._empty_ticks = self._empty_ticks + 1 if is_empty else 0
        if load.waiting > 3 * cushion:
            if self._is_stuck(load):
                # Other clients may share the engine: each keeps its share of what runs.
                own = math.ceil(interval.at_end * load.running / (load.running + load.waiting))
                self._set(min(self.limit, max(1, own) + _cushion(own)))
        elif not is_short:
            self._settle()
        elif self._is_trial:
            return
        elif self._is_at_ceiling:
            self.is_settled = True
        elif self._empty_ticks >= (_EMPTY_TICKS if self.is_settled else 1):
            if self.is_settled:
                self._forget(_REFINE)
            self.limit = min(self._ceiling, math.ceil(self.limit * self._step))
            self._step = min(_DOUBLE, self._step * _REFINE)

    def _is_stuck(self, load: EngineLoad) -> bool:
        """Return whether the queue is long and the engine admits no more from it.

        After a jump of the limit, prompts wait until the engine has read those before them.
        """
        last = self._load
        return (
            last is not None
            and last.waiting > 3 * _cushion(last.running)
            and load.running <= 1.02 * last.running
        )

    def _set(self, limit: int) -> None:
        self.limit = limit
        self._settle()

    def _settle(self) -> None:
        """Leave what follows to the engine's queue."""
        self.is_settled = True
        self._base, self._is_trial = None, False

    def _forget(self, step: float) -> None:
        """Grow again, from the present limit on."""
        self.is_settled = self._is_trial = False
        self._base = None
        self._empty_ticks = 0
        self._step = step
        self._upward = True

    def _climb(self, now: float, level: _Level) -> None:
        base = self._base
        if base is None:
            self._base = level
            if not self.is_settled:
                self._grow(now)
        elif self._is_trial:
            self._is_trial = False
            self._judge(now, base, level)
        else:
            self._check(now, base, level)

    def _grow(self, now: float) -> None:
        """Try a larger limit, below the ceiling; settle if there is none."""
        limit = min(self._ceiling, math.ceil(self.limit * self._step))
        if limit > self.limit:
            self.limit, self._is_trial = limit, True
        else:
            self._end_growth(now)

    def _end_growth(self, now: float) -> None:
        self.is_settled = True
        self._step = _PROBE
        self._probe_at = max(self._probe_at, now + _FIRST_PROBE)
        self._probe_delay = _FIRST_PROBE

    def _judge(self, now: float, base: _Level, level: _Level) -> None:
        """Keep the limit of a trial, or return to the one before it."""
        needed = _GAIN if level.limit > base.limit else -_LOSS
        if not self.is_settled:
            # Over few answers, throughput varies by chance.
            needed = max(needed, _NOISE / math.sqrt(max(level.limit, _MIN_ANSWERS)))
        is_better = level.rate >= (1 + needed) * base.rate
        if is_better:
            self._base = level
        else:
            self.limit = base.limit
        if not self.is_settled:
            if is_better:
                self._grow(now)
            elif self._step > _REFINE:
                self._step = _REFINE
                self._grow(now)
            else:
                self._end_growth(now)
            return
        self._ceiling = self.limit
        if is_better:
            self._step = min(_DOUBLE if self._upward else _REFINE, self._step**2)
            self._probe_delay = _FIRST_PROBE
            self._try(now)
        else:
            self._upward = not self._upward
            self._step = _PROBE
            self._probe_delay = min(_LAST_PROBE, 2 * self._probe_delay)
            self._probe_at = now + self._probe_delay

    def _check(self, now: float, base: _Level, level: _Level) -> None:
        """Follow a change of the engine, or probe when it is time."""
        change = level.rate / base.rate
        self._base = replace(level, rate=(base.rate + level.rate) / 2)
        if abs(change - 1) > _CHANGED:
            self._base = level
            self._upward = change > 1
            # Much less at once would cost the engine, if it is only slower for a while.
            self._step = min(_DOUBLE, max(_PROBE, change)) if self._upward else _PROBE
            # The next round is the first one that is wholly after the change.
            self._probe_at = now
        elif now >= self._probe_at:
            self._try(now)

    def _try(self, now: float) -> None:
        """Try a larger or a smaller limit."""
        if self._upward and self.limit >= self._most:
            self._upward = False
        elif not self._upward and self.limit == 1:
            self._upward = True
        step = self._step if self._upward else 1 / self._step
        limit = self.limit * step
        limit = min(self._most, math.ceil(limit)) if self._upward else max(1, math.floor(limit))
        self._is_trial = limit != self.limit
        self.limit = limit
        self._probe_at = now + self._probe_delay


def _cushion(running: int) -> int:
    """Return the requests that should wait in the engine, ready for the places of ended ones."""
    return max(1, math.ceil(running / 8))


def _is_short(load: EngineLoad) -> bool:
    """Return whether the engine may run out of requests."""
    return load.waiting <= _cushion(load.running) // 4
