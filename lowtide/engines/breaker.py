"""The circuit breaker between a worker and its engine: pure, with the time as an argument.

    starting -> closed            the engine passes a probe
    closed -> open                STREAK engine faults or BARREN outcomes without a success between
    open -> probing               the engine's health check passes: one request may be tried
    open, probing -> closed       a minimal request succeeded
    probing -> closed             the canary was answered, or no request waits
    probing -> open               the canary failed
    closed -> probing             all waiting requests are of models that the engine lacked

`starting` becomes `open` once a worker has waited longer for its engine than a start may take.
While the breaker is starting or open, the worker claims nothing and keeps no claims.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from lowtide.engines.attribution import Fault

STREAK: Final = 3
"""Engine faults without a success between that open the breaker."""
BARREN: Final = 20
"""Outcomes without a success between that open the breaker, engine faults or not."""
FIRST_PROBE: Final = 0.5
LAST_PROBE: Final = 15.0
"""Seconds before the first probe, and max seconds between probes; each delay doubles the last."""


class BreakerState(StrEnum):
    """Breaker states, as stored in the `workers` table."""

    STARTING = "starting"
    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


@dataclass(frozen=True, slots=True)
class Probed:
    """The result of a probe.

    `well`: the health check passed, or there is none; `answers`: a minimal request succeeded, too;
    `lacks_model`: the engine lacks that request's model; `reason` explains why it is not well.
    """

    well: bool
    answers: bool = False
    reason: str = ""
    lacks_model: bool = False


@dataclass(frozen=True, slots=True)
class Breaker:
    """One worker's breaker; times in seconds of one monotonic clock.

    `reason` explains a breaker that is not closed. `patience` bounds `starting`.
    """

    state: BreakerState = BreakerState.STARTING
    since: float = 0.0
    reason: str = "The engine has not responded yet."
    patience: float = math.inf
    faults: int = 0
    barren: int = 0
    failed_probes: int = 0
    probe_at: float = 0.0

    @property
    def is_shut_off(self) -> bool:
        """True while no request may be sent."""
        return self.state in {BreakerState.STARTING, BreakerState.OPEN}

    @property
    def is_suspicious(self) -> bool:
        """True if one more outcome without a success opens the breaker."""
        return self.barren >= BARREN - 1

    def succeeded(self, now: float) -> Breaker:
        """Return the breaker after a success; a late one does not close an open breaker."""
        if self.state is BreakerState.PROBING:
            return replace(self._closed(now), failed_probes=0)
        if not (self.faults or self.barren or self.failed_probes):
            return self
        return replace(self, faults=0, barren=0, failed_probes=0)

    def failed(self, fault: Fault, reason: str, now: float, *, ambiguous: bool) -> Breaker:
        """Return the breaker after an outcome without success.

        Back-pressure, and a fault of the request that is not `ambiguous`, prove the engine alive.
        """
        if fault not in {Fault.ENGINE, Fault.REQUEST, Fault.BACK_PRESSURE}:
            return self
        alive = fault is Fault.BACK_PRESSURE or (fault is Fault.REQUEST and not ambiguous)
        if self.state is BreakerState.PROBING:
            return self._closed(now) if alive else self._opened(reason, now)
        if alive or self.state is not BreakerState.CLOSED:
            return self
        updated = replace(
            self, faults=self.faults + (fault is Fault.ENGINE), barren=self.barren + 1
        )
        if updated.faults >= STREAK or updated.barren >= BARREN:
            return self._opened(reason, now)
        return updated

    def probed(self, probe: Probed, now: float) -> Breaker:
        """Return the breaker after a probe."""
        if self.state is BreakerState.CLOSED:
            return replace(self, faults=0, barren=0) if probe.answers else self
        if self.state is BreakerState.PROBING:
            return self._closed(now) if probe.answers else self
        if probe.answers or (probe.well and self.state is BreakerState.STARTING):
            return self._closed(now)
        if probe.well:
            return replace(self, state=BreakerState.PROBING)
        waiting = replace(
            self,
            reason=probe.reason,
            failed_probes=self.failed_probes + 1,
            probe_at=now + probe_delay(self.failed_probes),
        )
        elapsed = now - self.since
        is_overdue = self.state is BreakerState.STARTING and elapsed >= self.patience
        return replace(waiting, state=BreakerState.OPEN) if is_overdue else waiting

    def doubted(self, reason: str, now: float) -> Breaker:
        """Return the breaker once only requests wait that the engine could not run."""
        if self.state is not BreakerState.CLOSED:
            return self
        return replace(self, state=BreakerState.PROBING, since=now, reason=reason)

    def found_nothing(self, now: float) -> Breaker:
        """Return the breaker once no request waits that could be tried."""
        return self._closed(now) if self.state is BreakerState.PROBING else self

    def _closed(self, now: float) -> Breaker:
        """Return it closed. Only a request's success resets the delay of probes."""
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
    """Return the seconds until the next probe after `failed` failures."""
    return min(LAST_PROBE, FIRST_PROBE * 2.0 ** min(failed, 10))
