"""Faults of the simulated engine, with the outcomes of a real engine's faults."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Final

from lowtide.core.fault_plans import Kind, PlannedFault, Worker
from lowtide.engines.outcomes import Answered, NoAnswer, Unanswered
from lowtide.engines.replies import Reply, outcome_of
from lowtide.engines.simulation.answers import failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowtide.engines.model import EngineRequest
    from lowtide.engines.outcomes import Outcome


REFUSED: Final = Unanswered(
    NoAnswer.UNREACHED, "The engine could not be reached: simulated: connection refused"
)
RESET: Final = Unanswered(
    NoAnswer.UNREACHED, "The engine could not be reached: simulated: connection reset"
)
_GARBAGE: Final = b"<html>Simulated garbage</html>"
_SLOW_SECONDS: Final = 10.0
_PADDING: Final = b'"padding":"'


@dataclass(frozen=True, slots=True)
class Limits:
    """The max wait for an answer in seconds, and the max size of an answer in bytes."""

    timeout: float = 600.0
    max_response_bytes: int = 64 * 1024 * 1024


class Faults:
    """The planned faults of one worker. The requests that they hit are drawn anew per attempt.

    Only `poison` hits the same requests every time, on every worker.
    """

    def __init__(
        self,
        plan: Sequence[PlannedFault],
        worker: Worker,
        *,
        seed: int = 0,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._plan = [fault for fault in plan if fault.concerns(worker)]
        self._random = Random(f"{seed} {worker.pool} {worker.name}")  # noqa: S311
        self._seed = seed
        self._limits = limits or Limits()
        self._clock = clock
        self._started = clock()

    def __bool__(self) -> bool:
        return bool(self._plan)

    def strike(
        self, request: EngineRequest | None, outcome: Outcome, seconds: float
    ) -> tuple[Outcome, float]:
        """Return the outcome of a request sent now, and the seconds until it arrives.

        `outcome` and `seconds` are those without faults. A probe, a `request` of None, is never
        poison.
        """
        now = self._clock()
        for fault in self._plan:
            if fault.wait(now, self._started) == 0 and self._hits(fault, request):
                outcome, seconds = self._apply(fault, outcome, seconds)
                break
        return self._cut(now, outcome, seconds)

    def refusal(self) -> Unanswered | None:
        """Return the failure of a health check sent now; None if it is answered."""
        now = self._clock()
        for fault in self._plan:
            if fault.wait(now, self._started) == 0 and self._hits(fault, None):
                if fault.kind is Kind.DOWN:
                    return REFUSED
                if fault.kind is Kind.HANG:
                    return self._timeout_outcome()
        return None

    def _hits(self, fault: PlannedFault, request: EngineRequest | None) -> bool:
        if fault.kind is Kind.POISON:
            if request is None:
                return False
            digest = blake2b(request.body, key=str(self._seed).encode(), digest_size=8).digest()
            return int.from_bytes(digest) / 2**64 < fault.share
        return fault.share == 1 or self._random.random() < fault.share

    def _apply(
        self, fault: PlannedFault, outcome: Outcome, seconds: float
    ) -> tuple[Outcome, float]:
        match fault.kind:
            case Kind.DOWN:
                return REFUSED, 0.0
            case Kind.HANG:
                seconds = math.inf
            case Kind.SLOW:
                seconds += _SLOW_SECONDS if fault.value is None else fault.value
            case _:
                return self._replacement(fault, outcome), seconds
        if seconds < self._limits.timeout:
            return outcome, seconds
        return self._timeout_outcome(), self._limits.timeout

    def _replacement(self, fault: PlannedFault, outcome: Outcome) -> Outcome:
        """Return the outcome that replaces an answer, after the same time."""
        if fault.kind is Kind.HUGE:
            return self._pad(outcome, fault.value)
        if fault.kind is Kind.GARBAGE:
            return outcome_of(Reply(200, "OK", _GARBAGE))
        if fault.kind is Kind.ERROR:
            return outcome_of(Reply(200, "OK", failure("The simulated server failed.")))
        return _status(fault.status or 500, fault.value)

    def _timeout_outcome(self) -> Unanswered:
        text = f"The engine did not respond within {self._limits.timeout:g} s."
        return Unanswered(NoAnswer.TIMEOUT, text)

    def _pad(self, outcome: Outcome, size: float | None) -> Outcome:
        """Return the answer padded to `size` bytes; without a size, it is too large."""
        largest = self._limits.max_response_bytes
        if size is None or size > largest:
            limit = f"larger than {largest} bytes (LOWTIDE_MAX_RESPONSE_BYTES)"
            text = f"Invalid response from the engine: {limit}."
            return Unanswered(NoAnswer.TOO_LARGE, text)
        if not isinstance(outcome, Answered) or not outcome.succeeded:
            return outcome
        padding = int(size) - len(outcome.body) - len(_PADDING) - 2
        body = b"".join((b"{", _PADDING, b"x" * max(0, padding), b'",', outcome.body[1:]))
        return Answered(outcome.status_code, body, outcome.request_id, outcome.usage)

    def _cut(self, now: float, outcome: Outcome, seconds: float) -> tuple[Outcome, float]:
        """Return a reset instead if the engine goes down before the answer arrives."""
        for fault in self._plan:
            if fault.kind is Kind.DOWN and fault.share == 1:
                wait = fault.wait(now, self._started)
                if 0 < wait < seconds:
                    return RESET, wait
        return outcome, seconds


def _status(status: int, retry_after: float | None) -> Outcome:
    kind = "rate_limit_error" if status == 429 else "server_error"
    body = failure(f"The simulated server returned HTTP {status}.", kind)
    after = "" if retry_after is None else f"{retry_after:g}"
    return outcome_of(Reply(status, "", body, retry_after=after))
