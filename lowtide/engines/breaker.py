"""The engine breaker of a worker: pure, with the time passed in.

    starting -> closed            the engine answers its first probe
    closed -> open                STREAK engine faults in a row, or BARREN outcomes, and no success
    open -> probing               the engine's health is well again: one request may be tried
    open, probing -> closed       it answered a minimal request
    probing -> closed             the canary was answered, or nothing waits
    probing -> open               it was not
    closed -> probing             all that waits is of models that the engine lacked

`starting` becomes `open` once a worker has waited longer for its engine than a start may take. While
it is starting or open a worker claims nothing and holds nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from lowtide.engines.attribution import Fault

STREAK: Final = 3
"""Engine faults in a row, with no success between, that open it."""
BARREN: Final = 20
"""Outcomes in a row without a success that open it, whoever was at fault."""
FIRST_PROBE: Final = 0.5
LAST_PROBE: Final = 15.0
"""Seconds until the first and between the last probes; they double in between."""


class BreakerState(StrEnum):
    """As in the `workers` table."""

    STARTING = "starting"
    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe of an engine found.

    `well`: its health is, or it does not say; `answers`: it even answered a minimal request, or it
    `lacks_model`; `reason` says why it is not well.
    """

    well: bool
    answers: bool = False
    reason: str = ""
    lacks_model: bool = False


@dataclass(frozen=True, slots=True)
class Breaker:
    """One worker's breaker; times in seconds of one monotonic clock.

    `reason` is why it is not closed. `patience` bounds `starting`.
    """

    state: BreakerState = BreakerState.STARTING
    since: float = 0.0
    reason: str = "The engine has not answered yet."
    patience: float = math.inf
    faults: int = 0
    barren: int = 0
    failed_probes: int = 0
    probe_at: float = 0.0

    @property
    def is_shut_off(self) -> bool:
        """Whether no request may be sent."""
        return self.state in {BreakerState.STARTING, BreakerState.OPEN}

    @property
    def is_suspicious(self) -> bool:
        """Whether one more outcome without a success opens it."""
        return self.barren >= BARREN - 1

    def succeeded(self, now: float) -> Breaker:
        """Return what a success makes of it; one that arrives while it is open was sent before."""
        if self.state is BreakerState.PROBING:
            return replace(self._closed(now), failed_probes=0)
        if not (self.faults or self.barren or self.failed_probes):
            return self
        return replace(self, faults=0, barren=0, failed_probes=0)

    def failed(self, fault: Fault, reason: str, now: float, *, ambiguous: bool) -> Breaker:
        """Return what an outcome without success makes of it.

        One that is the request's own and not `ambiguous`, and back-pressure, are answers of a
        living engine.
        """
        if fault not in {Fault.ENGINE, Fault.REQUEST, Fault.BACK_PRESSURE}:
            return self
        alive = fault is Fault.BACK_PRESSURE or (fault is Fault.REQUEST and not ambiguous)
        if self.state is BreakerState.PROBING:
            return self._closed(now) if alive else self._opened(reason, now)
        if alive or self.state is not BreakerState.CLOSED:
            return self
        counted = replace(
            self, faults=self.faults + (fault is Fault.ENGINE), barren=self.barren + 1
        )
        if counted.faults >= STREAK or counted.barren >= BARREN:
            return self._opened(reason, now)
        return counted

    def probed(self, probe: Probed, now: float) -> Breaker:
        """Return what a probe makes of it."""
        if self.state is BreakerState.CLOSED:
            return replace(self, faults=0, barren=0) if probe.answers else self
        if self.state is BreakerState.PROBING:
            return self._closed(now) if probe.answers else self
        if probe.answers or (probe.well and self.state is BreakerState.STARTING):
            return self._closed(now)
        if probe.well:
            return replace(self, state=BreakerState.PROBING)
        later = replace(
            self,
            reason=probe.reason,
            failed_probes=self.failed_probes + 1,
            probe_at=now + probe_delay(self.failed_probes),
        )
        waited = now - self.since
        overdue = self.state is BreakerState.STARTING and waited >= self.patience
        return replace(later, state=BreakerState.OPEN) if overdue else later

    def doubted(self, reason: str, now: float) -> Breaker:
        """Return what it becomes where only requests wait that the engine could not run."""
        if self.state is not BreakerState.CLOSED:
            return self
        return replace(self, state=BreakerState.PROBING, since=now, reason=reason)

    def found_nothing(self, now: float) -> Breaker:
        """Return what it becomes where no request waits that could be tried."""
        return self._closed(now) if self.state is BreakerState.PROBING else self

    def _closed(self, now: float) -> Breaker:
        """Return it closed. Only a request's success lets the next probes come soon again."""
        closed = Breaker(BreakerState.CLOSED, now, "", self.patience)
        return replace(closed, failed_probes=self.failed_probes)

    def _opened(self, reason: str, now: float) -> Breaker:
        return replace(
            self,
            state=BreakerState.OPEN,
            since=self.since if self.state is BreakerState.PROBING else now,
            reason=reason,
            faults=0,
            barren=0,
            failed_probes=self.failed_probes + 1,
            probe_at=now + probe_delay(self.failed_probes),
        )


def probe_delay(failed: int) -> float:
    """Return the seconds until the next probe after as many that `failed`."""
    return min(LAST_PROBE, FIRST_PROBE * 2.0 ** min(failed, 10))
