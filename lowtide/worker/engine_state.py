"""What a worker remembers of its engine: throttle, suspect requests, and missing models."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from lowtide.engines.breaker import probe_delay

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from lowtide.core.ids import BatchId
    from lowtide.engines.model import Ping


FIRST_PAUSE: Final = 1.0
"""Seconds of the first pause where the engine does not say how long; each further one is twice it."""


@dataclass(frozen=True, slots=True)
class Throttle:
    """One worker's limit of `most` requests in flight; times in seconds of one monotonic clock.

    A round is everything that was in flight when the limit was cut: it is cut once for all of it.
    """

    most: int
    limit: float
    paused_until: float = -math.inf
    rounds: int = 0

    @classmethod
    def of(cls, most: int) -> Throttle:
        """Return a throttle that lets `most` through."""
        return cls(most, float(most))

    def in_flight(self, now: float) -> int:
        """Return how many requests may be in flight now; none during a pause."""
        return 0 if now < self.paused_until else max(1, int(self.limit))

    def pressed(self, now: float, rng: Random, *, cap: float, wait: float | None) -> Throttle:
        """Return the throttle after back-pressure; `wait` is the engine's own, `cap` bounds it."""
        if now < self.paused_until:
            return replace(self, paused_until=max(self.paused_until, now + min(wait or 0.0, cap)))
        ceiling = min(cap, FIRST_PAUSE * 2.0 ** min(self.rounds, 30))
        pause = min(cap, wait) if wait is not None else rng.uniform(ceiling / 2, ceiling)
        return replace(
            self,
            limit=max(1.0, self.limit / 2),
            paused_until=now + pause,
            rounds=self.rounds + 1,
        )

    def succeeded(self, requests: int) -> Throttle:
        """Return the throttle after successes: one more in flight for each full round of them."""
        if self.limit >= self.most and not self.rounds:
            return self
        limit = min(float(self.most), self.limit + requests / self.limit)
        return replace(self, limit=limit, rounds=0)


BLAMED: Final = 16
"""From this fault in a row on, each with a success of others since the last, it is the request's own.
With the attempts that follow, a proxy that fails every second time ends one request in a million."""
_MOST: Final = 4096


class Suspects:
    """Faults in a row by request, the latest last; times in seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._seen: dict[tuple[BatchId, int], tuple[int, float]] = {}

    def blames(self, request: tuple[BatchId, int], now: float, last_success: float) -> bool:
        """Count a fault; return whether the request is at fault rather than its engine."""
        faults, at = self._seen.pop(request, (0, -math.inf))
        is_another = last_success > at
        self._seen[request] = (faults + is_another, now if is_another else at)
        if len(self._seen) > _MOST:
            del self._seen[next(iter(self._seen))]
        return is_another and faults + 1 >= BLAMED


_FORGET: Final = 300.0


@dataclass(frozen=True, slots=True)
class _Gap:
    """A missing model: when to ask again, how often it was asked.

    Once an answer leaves it open it is `tried`: requests of the model may be claimed again.
    """

    ping: Ping
    ask_at: float
    asked: int = 1
    tried: bool = False


class ModelGaps:
    """Missing models by name, "" where requests name none; times in seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._gaps: dict[str, _Gap] = {}

    def __bool__(self) -> bool:
        """Whether any is known, be it tried again."""
        return bool(self._gaps)

    @property
    def missing(self) -> frozenset[str]:
        """The models whose requests are not claimed."""
        return frozenset(model for model, gap in self._gaps.items() if not gap.tried)

    @property
    def times(self) -> list[float]:
        """When something is due."""
        return [gap.ask_at for gap in self._gaps.values()]

    def miss(self, ping: Ping, now: float) -> bool:
        """Note that the model of a request is missing; return whether that is new."""
        gap = self._gaps.get(ping.model or "")
        if gap is not None and not gap.tried:
            return False
        asked = 0 if gap is None else gap.asked
        self._gaps[ping.model or ""] = _Gap(ping, now + probe_delay(asked), asked + 1)
        return True

    def due(self, now: float) -> Ping | None:
        """Return what to ask now; forget what was tried long ago."""
        for model, gap in list(self._gaps.items()):
            if now >= gap.ask_at:
                if not gap.tried:
                    return gap.ping
                del self._gaps[model]
        return None

    def still_missing(self, ping: Ping, now: float) -> None:
        """Note that it was asked in vain."""
        gap = self._gaps.get(ping.model or "")
        if gap is not None:
            later = replace(gap, ask_at=now + probe_delay(gap.asked), asked=gap.asked + 1)
            self._gaps[ping.model or ""] = later

    def found(self, models: Iterable[str | None], now: float) -> bool:
        """Note that the engine runs models; return whether any was missing."""
        back = {model or "" for model in models} & self.missing
        for model in back:
            self._gaps[model] = replace(self._gaps[model], ask_at=now + _FORGET, tried=True)
        return bool(back)

    def forget(self, ping: Ping) -> None:
        """Forget what a request's model was."""
        self._gaps.pop(ping.model or "", None)

    def clear(self) -> None:
        """Forget all."""
        self._gaps.clear()
