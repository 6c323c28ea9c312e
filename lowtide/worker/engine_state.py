"""A worker's memory of its engine: the throttle, suspect requests, and missing models."""

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
"""Seconds of the first pause if the engine names none; each further pause is twice as long."""


@dataclass(frozen=True, slots=True)
class Throttle:
    """A worker's limit on requests in flight, up to `most`; times in seconds of a monotonic clock.

    The limit is cut once per round, that is, for everything in flight at that time.
    """

    most: int
    limit: float
    paused_until: float = -math.inf
    rounds: int = 0

    @classmethod
    def of(cls, limit: int) -> Throttle:
        """Return a throttle that admits `limit` requests."""
        return cls(limit, float(limit))

    def allowing(self, most: int) -> Throttle:
        """Return the throttle with another max; a limit below the old one stays."""
        limit = float(most) if self.limit >= self.most else min(self.limit, float(most))
        return replace(self, most=most, limit=limit)

    def in_flight(self, now: float) -> int:
        """Return the max number of requests in flight now; 0 during a pause."""
        return 0 if now < self.paused_until else max(1, int(self.limit))

    def pressed(self, now: float, rng: Random, *, cap: float, wait: float | None) -> Throttle:
        """Return the throttle after back-pressure; `wait` is the engine's, bounded by `cap`."""
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
        """Return the throttle after successes: a full round of them admits one more request."""
        if self.limit >= self.most and not self.rounds:
            return self
        limit = min(float(self.most), self.limit + requests / self.limit)
        return replace(self, limit=limit, rounds=0)


BLAMED: Final = 16
"""Faults in a row, each after another request's success, that are charged to the request.

With the attempts that follow, a proxy that fails half the time ends one request in a million."""
_MAX_SUSPECTS: Final = 4096


class Suspects:
    """Faults in a row by request, latest last; times in seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._faults: dict[tuple[BatchId, int], tuple[int, float]] = {}

    def blames(self, request: tuple[BatchId, int], now: float, last_success: float) -> bool:
        """Count a fault; return whether to charge it to the request rather than its engine."""
        faults, at = self._faults.pop(request, (0, -math.inf))
        is_another = last_success > at
        self._faults[request] = (faults + is_another, now if is_another else at)
        if len(self._faults) > _MAX_SUSPECTS:
            del self._faults[next(iter(self._faults))]
        return is_another and faults + 1 >= BLAMED


_FORGET: Final = 300.0


@dataclass(frozen=True, slots=True)
class _Gap:
    """A missing model: the time of the next probe, and the number of probes.

    `is_retried`: the model may be back, and its requests may be claimed again.
    """

    ping: Ping
    probe_at: float
    probes: int = 1
    is_retried: bool = False


class ModelGaps:
    """Missing models by name, "" if requests name none; times in seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._gaps: dict[str, _Gap] = {}

    def __bool__(self) -> bool:
        """Return whether any model is recorded, tried again or not."""
        return bool(self._gaps)

    @property
    def missing(self) -> frozenset[str]:
        """The models whose requests are not claimed."""
        return frozenset(model for model, gap in self._gaps.items() if not gap.is_retried)

    @property
    def times(self) -> list[float]:
        """The times from which `due` has an effect."""
        return [gap.probe_at for gap in self._gaps.values()]

    def miss(self, ping: Ping, now: float) -> bool:
        """Record that a request's model is missing; return whether that is new."""
        gap = self._gaps.get(ping.model or "")
        if gap is not None and not gap.is_retried:
            return False
        probes = 0 if gap is None else gap.probes
        self._gaps[ping.model or ""] = _Gap(ping, now + probe_delay(probes), probes + 1)
        return True

    def due(self, now: float) -> Ping | None:
        """Return the probe to send now, if any; drop models that were tried long ago."""
        for model, gap in list(self._gaps.items()):
            if now >= gap.probe_at:
                if not gap.is_retried:
                    return gap.ping
                del self._gaps[model]
        return None

    def still_missing(self, ping: Ping, now: float) -> None:
        """Record a probe that found the model still missing."""
        gap = self._gaps.get(ping.model or "")
        if gap is not None:
            updated = replace(gap, probe_at=now + probe_delay(gap.probes), probes=gap.probes + 1)
            self._gaps[ping.model or ""] = updated

    def found(self, models: Iterable[str | None], now: float) -> bool:
        """Record that the engine runs models; return whether any was missing."""
        restored = {model or "" for model in models} & self.missing
        for model in restored:
            self._gaps[model] = replace(self._gaps[model], probe_at=now + _FORGET, is_retried=True)
        return bool(restored)

    def forget(self, ping: Ping) -> None:
        """Drop the model of a request."""
        self._gaps.pop(ping.model or "", None)

    def clear(self) -> None:
        """Drop all models."""
        self._gaps.clear()
